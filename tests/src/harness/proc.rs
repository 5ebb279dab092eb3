//! Child processes with deadlines, and what /proc says about processes and sockets.
//!
//! Invariant: no child outlives its guard and no wait is unbounded.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::netns::Netns;
use super::wait::{patience, until};

/// What a finished process said. `code` is `None` when a signal ended it.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// An error with the output unless the exit code is 0.
    pub(crate) fn success(&self) -> Result<()> {
        match self.code {
            Some(0) => Ok(()),
            code => bail!("exit code {code:?}: {}{}", self.stdout, self.stderr),
        }
    }
}

/// A long-running child that is killed and reaped when dropped.
pub(crate) struct Guarded(Child);

impl Guarded {
    /// Takes over a started child.
    pub(crate) fn new(child: Child) -> Self {
        Self(child)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Whether the child has ended on its own.
    pub(crate) fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        Ok(self.0.try_wait()?)
    }

    /// Sends `signal` and goes on.
    pub(crate) fn signal(&self, signal: Signal) {
        signal_process(self.0.id(), signal);
    }

    /// Sends `signal` and waits for the end; kills at the deadline.
    pub(crate) fn stop(&mut self, signal: Signal) -> Result<std::process::ExitStatus> {
        signal_process(self.0.id(), signal);
        let child = &mut self.0;
        until(&format!("process {} ends after {signal}", child.id()), patience(20), || Ok(child.try_wait()?))
    }

    /// Sends SIGTERM and gives the child this long to end; whether it does is left to the guard.
    pub(crate) fn ask_to_end(&mut self, limit: Duration) {
        if matches!(self.0.try_wait(), Ok(None)) {
            signal_process(self.0.id(), Signal::SIGTERM);
            let child = &mut self.0;
            drop(until("a child ends", limit, || Ok(child.try_wait()?)));
        }
    }

    /// A line-by-line reader of the child's stdout; the child must have been started with a pipe.
    pub(crate) fn lines(&mut self) -> Result<Receiver<String>> {
        let stdout = self.0.stdout.take().context("the child has no stdout pipe")?;
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for line in std::io::BufRead::lines(std::io::BufReader::new(stdout)).map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(receiver)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            signal_process(self.0.id(), Signal::SIGKILL);
        }
        if let Err(error) = self.0.wait() {
            eprintln!("suite: failed to reap process {}: {error}", self.0.id());
        }
    }
}

/// Signals a process this suite started; one that has just ended is not an error.
fn signal_process(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("process ids fit in i32"));
    if let Err(error) = kill(pid, signal)
        && error != nix::errno::Errno::ESRCH
    {
        eprintln!("suite: failed to send {signal} to process {pid}: {error}");
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A read error ends the text early; the receiver then compares against what arrived.
        drop(pipe.read_to_end(&mut bytes));
        drop(sender.send(String::from_utf8_lossy(&bytes).into_owned()));
    });
    receiver
}

/// Waits for a child started with both output pipes; kills it at the deadline.
pub(crate) fn finish(mut child: Child, limit: Duration) -> Result<Output> {
    let stdout = collect(child.stdout.take().context("the child has no stdout pipe")?);
    let stderr = collect(child.stderr.take().context("the child has no stderr pipe")?);
    let mut guard = Guarded::new(child);
    let status = until(&format!("process {} ends", guard.pid()), limit, || guard.ended())?;
    let text = |from: Receiver<String>| {
        from.recv_timeout(patience(5)).context("a process it started still holds its output open")
    };
    Ok(Output { code: status.code(), stdout: text(stdout)?, stderr: text(stderr)? })
}

/// Runs a short command inside a namespace.
pub(crate) fn run_in(netns: &Netns, command: &mut Command) -> Result<Output> {
    pipe_through(netns, command, "")
}

/// Runs a short command inside a namespace with `input` on its stdin.
pub(crate) fn pipe_through(netns: &Netns, command: &mut Command, input: &str) -> Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child =
        netns.spawn(command).with_context(|| format!("failed to run {name}: is it installed?"))?;
    let mut stdin = child.stdin.take().context("the child has no stdin pipe")?;
    let fed = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = finish(child, patience(20)).with_context(|| format!("failed to run {name}"))?;
    if output.code == Some(0) {
        fed.with_context(|| format!("{name} ended without reading its input"))?;
    }
    Ok(output)
}

/// Processes whose executable is called `name` and that are in `netns`.
pub(crate) fn running_in(netns: &Netns, name: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|text| text.parse().ok()) else { continue };
        // Processes end while the list is read; one that is gone is not running.
        let Ok(executable) = std::fs::read_link(entry.path().join("exe")) else { continue };
        let Ok(namespace) = std::fs::metadata(entry.path().join("ns/net")) else { continue };
        let same_name = executable.file_name().is_some_and(|file| file == name);
        if same_name && namespace.ino() == netns.inode() {
            found.push(pid);
        }
    }
    Ok(found)
}

/// The local address in one row of `/proc/net/tcp` or `tcp6`, if the socket listens.
pub(crate) fn listening_row(row: &str) -> Option<SocketAddr> {
    let mut fields = row.split_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    if fields.nth(1)? != "0A" {
        return None;
    }
    let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = if address.len() == 8 {
        IpAddr::V4(Ipv4Addr::from(word(0)?))
    } else {
        let words = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
        IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(words).ok()?))
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}
