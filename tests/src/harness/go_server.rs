//! A real HTTP server written in Go (`tests/go/http-server`), and a client that speaks just enough HTTP.
//!
//! Invariants: the server is what Go's net/http does by itself, so its listener is the one a Go program has; it dies
//! with its guard. `BRIDGE_GO_SERVER` names it: no trial passes with something else in its place.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::netns::Netns;
use super::proc::Guarded;
use super::wait::{patience, until};

/// A running server.
pub(crate) struct GoServer(Guarded);

impl GoServer {
    /// Starts the server inside `netns` with these variables, and waits until it listens.
    pub(crate) fn start(netns: &Netns, address: SocketAddr, variables: &[(&str, &str)]) -> Result<Self> {
        let program = std::env::var_os("BRIDGE_GO_SERVER").context(
            "BRIDGE_GO_SERVER is not set: `cargo xtask setup` builds target/go/http-server, set it to that path",
        )?;
        let mut command = Command::new(program);
        command.arg(address.to_string()).env_remove("GODEBUG").envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = netns.spawn(&mut command).context("failed to start the Go server")?;
        let mut server = Self(Guarded::new(child));
        until("the Go server listens", patience(10), || {
            if let Some(status) = server.0.ended()? {
                bail!("the Go server ended with {status}");
            }
            Ok(netns.listening()?.contains(&address).then_some(()))
        })?;
        Ok(server)
    }

    /// Ends the server, and returns once its listener is closed.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.0.stop(Signal::SIGTERM)?;
        Ok(())
    }
}

/// One kept-alive HTTP connection.
pub(crate) struct Http(BufReader<TcpStream>);

impl Http {
    /// Takes over a connected socket.
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self(BufReader::new(stream))
    }

    /// The body of `GET path`.
    pub(crate) fn get(&mut self, path: &str) -> Result<String> {
        let body = self.exchange(&format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"), &[])?;
        String::from_utf8(body).context("the body is no text")
    }

    /// The body that `POST path` answers to `body`.
    pub(crate) fn post(&mut self, path: &str, body: &[u8]) -> Result<Vec<u8>> {
        let length = body.len();
        let head = format!("POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n");
        self.exchange(&head, body)
    }

    fn exchange(&mut self, head: &str, body: &[u8]) -> Result<Vec<u8>> {
        let request = head.lines().next().unwrap_or_default();
        let stream = self.0.get_mut();
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).context("failed to send")?;
        self.answer().with_context(|| format!("no proper answer to {request}"))
    }

    fn answer(&mut self) -> Result<Vec<u8>> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            ensure!(self.0.read_line(&mut line)? > 0, "the connection ended in the head: {lines:?}");
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        ensure!(lines.first().is_some_and(|line| line == "HTTP/1.1 200 OK"), "the head is {lines:?}");
        let length = lines.iter().find_map(|line| line.strip_prefix("Content-Length: "));
        let length = length.with_context(|| format!("no Content-Length in {lines:?}"))?;
        let mut body = vec![0; length.parse()?];
        self.0.read_exact(&mut body).context("failed to read the body")?;
        Ok(body)
    }
}
