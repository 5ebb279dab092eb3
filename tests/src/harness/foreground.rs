//! `bridge-user attach --foreground`: a relay that lives as long as its process.
//!
//! Invariant: the process ends with its guard, at the latest by a signal it cannot refuse; its own way to end is
//! [`Foreground::stop`].

use std::net::SocketAddr;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::cli::Cli;
use super::group::Group;
use super::netns::Netns;
use super::transcript::note;
use super::wait::{patience, until};

/// A running relay of the binary under test.
pub(crate) struct Foreground {
    processes: Group,
    log: TempDir,
}

impl Foreground {
    /// Starts `bridge-user` with these arguments inside `netns` and waits until it listens on `from`.
    pub(crate) fn start(netns: &Netns, arguments: &[&str], from: SocketAddr) -> Result<Self> {
        let log = tempfile::tempdir()?;
        let output = std::fs::File::create(log.path().join("output"))?;
        let mut command = Cli::new(netns).command(arguments)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let processes = Group::spawn(netns, &mut command).context("failed to start bridge-user")?;
        let mut relay = Self { processes, log };
        let listens = until(&format!("bridge-user listens on {from}"), patience(10), || {
            if let Some(status) = relay.processes.ended()? {
                bail!("bridge-user ended with {status}");
            }
            Ok(netns.listening()?.contains(&from).then_some(()))
        });
        note(format!("$ bridge-user {} &\n{}", arguments.join(" "), relay.output()));
        listens.with_context(|| format!("bridge-user {}: {}", arguments.join(" "), relay.output()))?;
        Ok(relay)
    }

    /// Its processes.
    pub(crate) fn processes(&self) -> &Group {
        &self.processes
    }

    /// What it printed so far, on both streams.
    pub(crate) fn output(&self) -> String {
        std::fs::read_to_string(self.log.path().join("output")).unwrap_or_default().trim_end().to_owned()
    }

    /// Asks it to end, which must succeed.
    pub(crate) fn stop(mut self) -> Result<()> {
        let status = self.processes.leader().stop(Signal::SIGTERM)?;
        ensure!(status.success(), "bridge-user ended with {status} after SIGTERM: {}", self.output());
        Ok(())
    }
}
