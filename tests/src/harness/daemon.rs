//! `bridge-user run` as a service manager runs it: what it says by sd_notify, how it is stopped, killed and reloaded.
//!
//! Invariants: started means that it said READY=1, so everything that could be attached is; it dies with its guard, and
//! what it logged goes into the transcript.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::cli::Cli;
use super::log::Log;
use super::proc::Guarded;
use super::sys::unblock_signals_in;
use super::transcript::note;
use super::wait::{patience, until};

/// A running daemon and its file.
pub(crate) struct Daemon {
    process: Guarded,
    /// What it logs.
    said: Log,
    told: Receiver<String>,
    directory: TempDir,
}

impl Daemon {
    /// Writes its file, starts it, and waits until it is ready.
    pub(crate) fn start(cli: &Cli<'_>, config: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("bridge-tests-daemon-").tempdir()?;
        std::fs::write(directory.path().join("config.toml"), config)?;
        Self::start_in(cli, directory)
    }

    /// Starts it with the file in a directory of its own.
    pub(crate) fn start_in(cli: &Cli<'_>, directory: TempDir) -> Result<Self> {
        let socket = directory.path().join("notify");
        let _ = std::fs::remove_file(&socket);
        let manager = UnixDatagram::bind(&socket).context("failed to make the manager's socket")?;
        let config = directory.path().join("config.toml");
        let arguments = ["run", "--config", &*config.to_string_lossy()];
        note(format!("$ bridge-user {} &", arguments.join(" ")));
        let mut command = cli.command(&arguments)?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .env("NOTIFY_SOCKET", &socket);
        unblock_signals_in(&mut command);
        let mut child = cli.start(&mut command)?;
        let said = Log::of(child.stderr.take().context("the daemon has no stderr pipe")?);
        let mut daemon = Self { process: Guarded::new(child), said, told: listen(manager), directory };
        daemon.told("READY=1").with_context(|| format!("it said: {}", daemon.said()))?;
        Ok(daemon)
    }

    /// Waits until the service manager is told this.
    pub(crate) fn told(&mut self, state: &str) -> Result<()> {
        until(&format!("the daemon says {state}"), patience(15), || {
            ensure!(self.process.ended()?.is_none(), "the daemon ended");
            Ok(self.told.try_iter().any(|line| line == state).then_some(()))
        })
    }

    /// The file it goes by.
    pub(crate) fn config(&self) -> PathBuf {
        self.directory.path().join("config.toml")
    }

    /// Replaces the file as an editor does.
    pub(crate) fn write(&self, config: &str) -> Result<()> {
        let new = self.directory.path().join("config.toml.new");
        std::fs::write(&new, config)?;
        std::fs::rename(new, self.config())?;
        Ok(())
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Sends a signal and goes on.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Ends it by a signal, and starts it again with the same file.
    pub(crate) fn restart(self, cli: &Cli<'_>, signal: Signal) -> Result<Self> {
        let directory = self.stop(signal)?;
        Self::start_in(cli, directory)
    }

    /// Ends it by a signal; returns its directory.
    pub(crate) fn stop(mut self, signal: Signal) -> Result<TempDir> {
        self.process.stop(signal)?;
        let said = self.said();
        note(format!("the daemon said: {said}"));
        Ok(std::mem::replace(&mut self.directory, tempfile::tempdir()?))
    }

    /// Everything it logged so far.
    pub(crate) fn said(&self) -> String {
        self.said.text()
    }

    /// The lines that it logged so far, and when they arrived.
    pub(crate) fn lines(&self) -> Vec<(SystemTime, String)> {
        self.said.lines()
    }

    /// Waits until a line of its log contains every needle.
    pub(crate) fn says(&self, needles: &[&str]) -> Result<()> {
        self.said.says("the daemon", needles, patience(10)).map(drop)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        note(format!("the daemon with pid {} said: {}", self.pid(), self.said()));
    }
}

/// What is told, line by line. The daemon would wait if nobody listened.
fn listen(manager: UnixDatagram) -> Receiver<String> {
    let (sender, told) = channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length) = manager.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text.lines().any(|line| sender.send(line.to_owned()).is_err()) {
                return;
            }
        }
    });
    told
}

/// Waits until an attachment is there and ready.
pub(crate) fn until_ready(cli: &Cli<'_>, name: &str) -> Result<()> {
    until(&format!("{name} is ready"), patience(15), || {
        let all = cli.status()?;
        let found = all.iter().find(|one| one.name == name && one.state == "ready");
        Ok(found.map(|_| ()))
    })
}

/// Waits until no attachment has this name.
pub(crate) fn until_gone(cli: &Cli<'_>, name: &str) -> Result<()> {
    until(&format!("{name} is gone"), patience(15), || {
        Ok(cli.status()?.iter().all(|one| one.name != name).then_some(()))
    })
}
