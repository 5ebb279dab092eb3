//! What an attachment counts: connections, and packets that belong to none, for all the programs know.
//!
//! Invariant: each of those packets is seen by a counter of the kernel. What no such counter explains fails the trial.

use std::ops::Sub;

use anyhow::{Result, ensure};

use super::netns::Netns;

/// How far each counter of an attachment moved: in all, or during a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

    /// What came on top of `before`; `None` if one counter was higher then.
    pub(crate) fn since(self, before: Self) -> Option<Self> {
        Some(Self {
            accepted: self.accepted.checked_sub(before.accepted)?,
            denied: self.denied.checked_sub(before.denied)?,
            no_listener: self.no_listener.checked_sub(before.no_listener)?,
        })
    }

    /// Refuses counts other than `expected`, but for the strays, which are asked for only then.
    pub(crate) fn compare(self, expected: Self, strays: impl FnOnce() -> Result<Strays>) -> Result<()> {
        if self == expected {
            return Ok(());
        }
        let strays = strays()?;
        let allowed = strays.allow(expected.accepted, expected.denied + expected.no_listener);
        let more = self.since(expected).map(|more| more.accepted + more.denied + more.no_listener);
        ensure!(
            more.is_some_and(|more| more <= allowed),
            "{self:?} instead of {expected:?}, with {strays:?}"
        );
        Ok(())
    }
}

/// Packets that belong to no connection, as the kernel counted them, or how far that moved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strays {
    /// TCP segments that were sent again. Each may come late, or be answered by one that does: an emulated host that
    /// is busy answers late.
    repeated: u64,
    /// Resets that the host sent. With one it answers an ACK that another one overtook, the last of its connection.
    /// This is as rare as a processor that loses its turn right there, which those of a guest do.
    resets: u64,
}

impl Strays {
    /// As far as the host's own namespace knows.
    pub(crate) fn of_host(host: &Netns) -> Result<Self> {
        Ok(Self { repeated: host.repeated_segments()?, resets: host.tcp_resets()? })
    }

    /// With the segments that another namespace repeated.
    pub(crate) fn and_of(self, other: &Netns) -> Result<Self> {
        Ok(Self { repeated: self.repeated + other.repeated_segments()?, ..self })
    }

    /// How many packets more than `accepted` and `refused` connections may have been counted. Where none was to be
    /// accepted, a reset is a refusal, and nothing else.
    fn allow(self, accepted: u64, refused: u64) -> u64 {
        let late = if accepted == 0 { 0 } else { self.resets.saturating_sub(refused) };
        self.repeated + late
    }
}

impl Sub for Strays {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { repeated: self.repeated - before.repeated, resets: self.resets - before.resets }
    }
}
