//! A topology plus the binary under test, and the proof that traffic took the kernel path.
//!
//! Invariant: dropping a rig removes whatever the binary pinned for its namespace, so a failed
//! trial cannot disturb the next one.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::cli::{Attachment, Cli};
pub(crate) use super::counts::Moved;
use super::counts::Strays;
use super::netns::{Netns, pin_traces};
use super::topology::Topology;

/// The test network with nothing attached yet.
pub(crate) struct Rig {
    pub(crate) net: Topology,
}

impl Rig {
    /// Builds the network.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { net: Topology::new()? })
    }

    /// The binary, inside the host namespace.
    pub(crate) fn cli(&self) -> Cli<'_> {
        Cli::new(&self.net.host)
    }

    /// Attaches `spec` to br-a.
    pub(crate) fn attach(&self, spec: &str) -> Result<()> {
        self.attach_with(spec, &[])
    }

    /// Attaches `spec` to br-a with more options.
    pub(crate) fn attach_with(&self, spec: &str, options: &[&str]) -> Result<()> {
        self.cli().ok(&[&["attach", spec, "--bridge", "br-a"], options].concat())?;
        Ok(())
    }

    /// Runs `body` and expects the attachment's counters to move by exactly `expected`, on the
    /// steered datapath.
    pub(crate) fn expect<T>(
        &self,
        name: &str,
        expected: Moved,
        body: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.expect_on("steer", name, expected, body)
    }

    /// [`Rig::expect`] for an attachment with an MPTCP listener.
    pub(crate) fn expect_tc<T>(
        &self,
        name: &str,
        expected: Moved,
        body: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.expect_on("steer-tc", name, expected, body)
    }

    fn expect_on<T>(
        &self,
        datapath: &str,
        name: &str,
        expected: Moved,
        body: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        expect_moved_on(datapath, &self.cli(), name, expected, || self.net.strays(), body)
    }

    /// The counters are as expected, but for the strays since `before`. That is what [`Rig::expect`] allows, for
    /// counters that are read without it.
    pub(crate) fn expect_counts(&self, before: Strays, found: Moved, expected: Moved) -> Result<()> {
        found.compare(expected, || Ok(self.net.strays()? - before))
    }

    /// Expects the attachment to be in `state`, by the kernel's steering datapath.
    pub(crate) fn expect_state(&self, name: &str, state: &str) -> Result<Attachment> {
        let attachment = self.cli().attachment(name)?;
        ensure!(attachment.state == state, "{name} is in state {} instead of {state}", attachment.state);
        ensure!(
            attachment.datapath == "steer",
            "{name} uses datapath {} instead of steer",
            attachment.datapath
        );
        Ok(attachment)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        remove_pins(&self.net.host);
    }
}

/// Removes what the binary pinned for a namespace.
pub(crate) fn remove_pins(netns: &Netns) {
    if let Err(error) = pin_traces(netns.inode()).and_then(|traces| remove_pinned(&traces)) {
        eprintln!("suite: {error:#}");
    }
}

/// Removes directories of pins.
pub(crate) fn remove_pinned<'a>(directories: impl IntoIterator<Item = &'a PathBuf>) -> Result<()> {
    directories.into_iter().try_for_each(|path| {
        std::fs::remove_dir_all(path).with_context(|| format!("failed to remove {}", path.display()))
    })
}

/// See [`Rig::expect`]; works with any namespace the binary runs in.
pub(crate) fn expect_moved<T>(
    cli: &Cli<'_>,
    name: &str,
    expected: Moved,
    body: impl FnOnce() -> Result<T>,
) -> Result<T> {
    expect_moved_on("steer", cli, name, expected, || cli.strays(), body)
}

/// [`expect_moved`] for an attachment with an MPTCP listener.
pub(crate) fn expect_moved_tc<T>(
    cli: &Cli<'_>,
    name: &str,
    expected: Moved,
    body: impl FnOnce() -> Result<T>,
) -> Result<T> {
    expect_moved_on("steer-tc", cli, name, expected, || cli.strays(), body)
}

/// The programs count packets that no connection takes: SYNs, and what comes after its connection has ended.
fn expect_moved_on<T>(
    datapath: &str,
    cli: &Cli<'_>,
    name: &str,
    expected: Moved,
    strays: impl Fn() -> Result<Strays>,
    body: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let strays_before = strays()?;
    let before = cli.attachment(name)?;
    let value = body()?;
    let after = cli.attachment(name)?;
    ensure!(after.datapath == datapath, "{name} uses datapath {} instead of {datapath}", after.datapath);
    let moved = after.counters.since(before.counters).with_context(|| {
        format!("counters of {name} went backwards: {:?} to {:?}", before.counters, after.counters)
    })?;
    moved
        .compare(expected, || Ok(strays()? - strays_before))
        .with_context(|| format!("counters of {name} did not move as they should"))?;
    Ok(value)
}
