//! A topology plus the binary under test, and the proof that traffic took the kernel path.
//!
//! Invariant: dropping a rig removes whatever the binary pinned for its namespace, so a failed
//! trial cannot disturb the next one.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::cli::{Attachment, Cli, Counters};
use super::netns::{Netns, pin_traces};
use super::topology::Topology;

/// How far each counter is expected to move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) accepted: u64,
    pub(crate) denied: u64,
    pub(crate) no_listener: u64,
}

impl Moved {
    /// No connection reached a decision of this attachment.
    pub(crate) const NOTHING: Self = Self { accepted: 0, denied: 0, no_listener: 0 };

    /// This many connections were steered to a listener.
    pub(crate) fn accepted(count: usize) -> Self {
        Self { accepted: count as u64, ..Self::NOTHING }
    }

    /// This many were turned away by the allow-list.
    pub(crate) fn denied(count: usize) -> Self {
        Self { denied: count as u64, ..Self::NOTHING }
    }

    /// This many found no listener.
    pub(crate) fn no_listener(count: usize) -> Self {
        Self { no_listener: count as u64, ..Self::NOTHING }
    }

    /// How many more than expected; `None` if one counter moved too little.
    fn surplus(self, expected: Self) -> Option<u64> {
        let accepted = self.accepted.checked_sub(expected.accepted)?;
        let denied = self.denied.checked_sub(expected.denied)?;
        Some(accepted + denied + self.no_listener.checked_sub(expected.no_listener)?)
    }

    fn between(before: Counters, after: Counters) -> Option<Self> {
        Some(Self {
            accepted: after.accepted.checked_sub(before.accepted)?,
            denied: after.denied.checked_sub(before.denied)?,
            no_listener: after.no_listener.checked_sub(before.no_listener)?,
        })
    }
}

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
        let before = self.net.repeated_syns()?;
        let repeated = || Ok(self.net.repeated_syns()? - before);
        expect_moved_on(datapath, &self.cli(), name, expected, repeated, body)
    }

    /// Each count is as expected, or all together are more by the SYNs that were sent again since there were `syns` of them.
    /// That is what [`Rig::expect`] allows, for counts that are read without it.
    pub(crate) fn expect_counts<const N: usize>(
        &self,
        syns: u64,
        found: [u64; N],
        expected: [u64; N],
    ) -> Result<()> {
        let repeated = self.net.repeated_syns()? - syns;
        let surplus = found.iter().zip(expected).map(|(found, expected)| found.checked_sub(expected));
        ensure!(
            surplus.sum::<Option<u64>>().is_some_and(|surplus| surplus <= repeated),
            "the counts are {found:?} instead of {expected:?}, and {repeated} SYNs were sent again"
        );
        Ok(())
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
    expect_moved_on("steer", cli, name, expected, || Ok(0), body)
}

/// [`expect_moved`] for an attachment with an MPTCP listener.
pub(crate) fn expect_moved_tc<T>(
    cli: &Cli<'_>,
    name: &str,
    expected: Moved,
    body: impl FnOnce() -> Result<T>,
) -> Result<T> {
    expect_moved_on("steer-tc", cli, name, expected, || Ok(0), body)
}

/// The programs count SYNs, so each one that a client had to repeat may be in a counter, too: an emulated host that is
/// busy answers late.
fn expect_moved_on<T>(
    datapath: &str,
    cli: &Cli<'_>,
    name: &str,
    expected: Moved,
    repeated: impl FnOnce() -> Result<u64>,
    body: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let before = cli.attachment(name)?;
    let value = body()?;
    let after = cli.attachment(name)?;
    ensure!(after.datapath == datapath, "{name} uses datapath {} instead of {datapath}", after.datapath);
    let moved = Moved::between(before.counters, after.counters).with_context(|| {
        format!("counters of {name} went backwards: {:?} to {:?}", before.counters, after.counters)
    })?;
    let surplus = moved.surplus(expected);
    ensure!(
        surplus == Some(0)
            || surplus.is_some_and(|surplus| repeated().is_ok_and(|repeated| surplus <= repeated)),
        "counters of {name} moved by {moved:?} instead of {expected:?}"
    );
    Ok(value)
}
