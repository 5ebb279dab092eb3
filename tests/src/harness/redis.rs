//! A real `redis-server` on loopback, and a client that speaks just enough of its protocol.
//!
//! Invariant: the server runs without persistence in its own directory and dies with its guard.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::client;
use super::netns::Netns;
use super::proc::Guarded;
use super::topology::local;
use super::wait::{patience, until};

/// A running Redis.
pub(crate) struct Redis {
    server: Guarded,
    directory: TempDir,
}

impl Redis {
    /// Starts Redis at its usual port, for clients from any address.
    pub(crate) fn open(netns: &Netns) -> Result<Self> {
        Self::start(netns, 6379, &["--protected-mode", "no"])
    }

    /// Starts Redis on 127.0.0.1:`port` and waits until it answers there.
    pub(crate) fn start(netns: &Netns, port: u16, options: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let log = std::fs::File::create(directory.path().join("log"))?;
        let mut command = Command::new("redis-server");
        command.args([
            "--bind",
            "127.0.0.1",
            "--port",
            &port.to_string(),
            "--save",
            "",
            "--appendonly",
            "no",
        ]);
        command.arg("--dir").arg(directory.path()).args(options);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = netns.spawn(&mut command).context("failed to start redis-server: is it installed?")?;
        let mut redis = Self { server: Guarded::new(child), directory };
        let ready = until("redis answers on loopback", patience(15), || redis.probe(netns, port));
        ready.with_context(|| format!("redis log: {}", redis.log()))?;
        Ok(redis)
    }

    fn probe(&mut self, netns: &Netns, port: u16) -> Result<Option<()>> {
        if let Some(status) = self.server.ended()? {
            bail!("redis ended with {status}");
        }
        let Ok(stream) = netns.run(|| client::dial(local(port))) else { return Ok(None) };
        Ok((Session::new(stream)?.command("PING")? == "+PONG").then_some(()))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Ends the server without giving it a chance to clean up.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.server.stop(Signal::SIGKILL).map(drop)
    }
}

/// A client in `netns` is answered by Redis.
pub(crate) fn ping(netns: &Netns, to: SocketAddr) -> Result<()> {
    let pong = Session::open(netns, to)?.command("PING")?;
    ensure!(pong == "+PONG", "redis said {pong}");
    Ok(())
}

/// One client connection.
pub(crate) struct Session {
    reader: BufReader<TcpStream>,
}

impl Session {
    /// Connects from inside `netns`.
    pub(crate) fn open(netns: &Netns, to: SocketAddr) -> Result<Self> {
        Self::new(client::connect(netns, to)?)
    }

    fn new(stream: TcpStream) -> Result<Self> {
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// The client's own address.
    pub(crate) fn local_addr(&self) -> Result<SocketAddr> {
        Ok(self.reader.get_ref().local_addr()?)
    }

    /// Sends an inline command and returns its reply: a status or error line with its sign, or a
    /// bulk string without its header.
    pub(crate) fn command(&mut self, text: &str) -> Result<String> {
        self.reader
            .get_mut()
            .write_all(format!("{text}\r\n").as_bytes())
            .context("failed to send to redis")?;
        self.reply()
    }

    /// Reads one reply; Redis also sends one unasked when it refuses a client.
    pub(crate) fn reply(&mut self) -> Result<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line).context("failed to read from redis")?;
        ensure!(!line.is_empty(), "redis closed the connection without a reply");
        let line = line.trim_end().to_owned();
        let Some(length) = line.strip_prefix('$') else { return Ok(line) };
        let mut body =
            vec![0; length.parse::<usize>().with_context(|| format!("odd bulk length {length}"))? + 2];
        self.reader.read_exact(&mut body).context("failed to read a bulk reply")?;
        Ok(String::from_utf8_lossy(&body).trim_end().to_owned())
    }
}
