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
    /// Starts `bridge-user` with these arguments inside `netns` and waits for its report,
    /// which comes once it accepts, on `from`, and `status` knows it.
    pub(crate) fn start(netns: &Netns, arguments: &[&str], from: SocketAddr) -> Result<Self> {
        let log = tempfile::tempdir()?;
        let [report, errors] = ["report", "errors"].map(|name| std::fs::File::create(log.path().join(name)));
        let mut command = Cli::new(netns).command(arguments)?;
        command.stdin(Stdio::null()).stdout(report?).stderr(errors?);
        let processes = Group::spawn(netns, &mut command).context("failed to start bridge-user")?;
        let mut relay = Self { processes, log };
        let reports = until("bridge-user reports", patience(10), || {
            if let Some(status) = relay.processes.ended()? {
                bail!("bridge-user ended with {status}");
            }
            Ok(relay.report().ends_with('\n').then_some(()))
        });
        note(format!("$ bridge-user {} &\n{}", arguments.join(" "), relay.output()));
        reports.with_context(|| format!("bridge-user {}: {}", arguments.join(" "), relay.output()))?;
        ensure!(netns.listening()?.contains(&from), "nobody listens on {from} after: {}", relay.output());
        Ok(relay)
    }

    /// Its processes.
    pub(crate) fn processes(&self) -> &Group {
        &self.processes
    }

    /// What it printed so far on stdout.
    fn report(&self) -> String {
        self.said("report")
    }

    /// What it printed so far, on both streams.
    pub(crate) fn output(&self) -> String {
        format!("{}{}", self.report(), self.said("errors"))
    }

    fn said(&self, stream: &str) -> String {
        std::fs::read_to_string(self.log.path().join(stream)).unwrap_or_default()
    }

    /// Asks it to end, which must succeed.
    pub(crate) fn stop(mut self) -> Result<()> {
        let status = self.processes.leader().stop(Signal::SIGTERM)?;
        ensure!(status.success(), "bridge-user ended with {status} after SIGTERM: {}", self.output());
        Ok(())
    }
}
