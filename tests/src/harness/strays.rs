//! Packets that belong to no connection, for all the programs know, and so may be in a counter beside the connections.
//!
//! Invariant: each is seen by a counter of the kernel. What no such counter explains fails the trial.

use std::ops::Sub;

use anyhow::Result;

use super::netns::Netns;

/// What the kernel counted, or how far that moved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strays {
    /// TCP segments that were sent again. Each may come late, or be answered by one that does: an emulated host that is busy
    /// answers late.
    repeated: u64,
    /// Resets that the host sent. With one it answers an ACK that another one overtook, the last of its connection. This is
    /// as rare as a processor that loses its turn right there, which those of a guest do.
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

    /// How many packets more than `accepted` and `refused` connections may have been counted. Where none was to be accepted,
    /// a reset is a refusal, and nothing else.
    pub(crate) fn allow(self, accepted: u64, refused: u64) -> u64 {
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
