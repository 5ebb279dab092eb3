//! What the programs write into the event channel, and when.
//!
//! Invariant: the words of an event are userspace's; here are its kind, its time and its numbers.

use crate::{
    maps::{ConnectionKey, Stats},
    steer::Outcome,
};

/// Bytes of the event channel: room for 1,820 events that nobody has read.
pub const CHANNEL_BYTES: u32 = 128 * 1024;

/// Level of the event channel: nothing.
pub const LEVEL_OFF: u8 = 0;
/// Refusals and what is missing.
pub const LEVEL_WARN: u8 = 1;
/// Every steered connection and tracked listener, too.
pub const LEVEL_DEBUG: u8 = 2;

/// At most one event per attachment and CPU in this time, in nanoseconds, for repeatable events (denied, no
/// listener). Steered connections are not limited.
pub const INTERVAL_NS: u64 = 1_000_000_000;

/// One event.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When it happened: `bpf_ktime_get_boot_ns` (`CLOCK_BOOTTIME`), which goes on while the machine sleeps.
    pub boot_ns: u64,
    /// Of a refused connection: how many events of the attachment the rate limit left out on the same CPU before this
    /// one. Of a refused listener: the error, positive.
    pub detail: u64,
    /// The connection; of a listener, gateway and port are where it listens.
    pub connection: ConnectionKey,
    /// The attachment's id; 0 for a listener.
    pub attachment: u32,
    /// An [`EventKind`], as a number.
    pub kind: u32,
    /// Always zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<Event>() == 64);

/// What happened.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// [`Outcome::Steered`].
    Steered = 1,
    /// [`Outcome::Denied`].
    Denied = 2,
    /// [`Outcome::NoListener`].
    NoListener = 3,
    /// [`Outcome::AssignFailed`].
    AssignFailed = 4,
    /// A listener was put into the map.
    Tracked = 5,
    /// An MPTCP listener was noted.
    MptcpListener = 6,
    /// The map refused a listener.
    ListenerRefused = 7,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Steered,
        Self::Denied,
        Self::NoListener,
        Self::AssignFailed,
        Self::Tracked,
        Self::MptcpListener,
        Self::ListenerRefused,
    ];

    /// The kind with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u32 == number)
    }

    /// That of an outcome.
    #[inline(always)]
    pub const fn of(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Steered => Self::Steered,
            Outcome::Denied => Self::Denied,
            Outcome::NoListener => Self::NoListener,
            Outcome::AssignFailed => Self::AssignFailed,
        }
    }

    /// The lowest level at which it is written.
    #[inline(always)]
    pub const fn level(self) -> u8 {
        match self {
            Self::Steered | Self::Tracked | Self::MptcpListener => LEVEL_DEBUG,
            Self::Denied | Self::NoListener | Self::AssignFailed | Self::ListenerRefused => LEVEL_WARN,
        }
    }
}

/// Whether the event of an outcome is due now, at this level; keeps the per-CPU state in `stats`. Returns the number of
/// events left out since the last one.
#[inline(always)]
pub const fn due(stats: &mut Stats, outcome: Outcome, level: u8, now_ns: u64) -> Option<u64> {
    if EventKind::of(outcome).level() > level {
        return None;
    }
    if matches!(outcome, Outcome::Steered) {
        return Some(0);
    }
    if stats.last_event_ns != 0 && now_ns.wrapping_sub(stats.last_event_ns) < INTERVAL_NS {
        stats.suppressed += 1;
        return None;
    }
    let suppressed = stats.suppressed;
    stats.last_event_ns = now_ns;
    stats.suppressed = 0;
    Some(suppressed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_number() {
        for kind in EventKind::ALL {
            assert_eq!(EventKind::from_number(kind as u32), Some(kind));
        }
        assert_eq!((EventKind::from_number(0), EventKind::from_number(8)), (None, None));
    }

    #[test]
    fn refusals_are_limited_and_counted() {
        let mut stats = Stats::default();
        let mut denied = |now_ns| due(&mut stats, Outcome::Denied, LEVEL_WARN, now_ns);
        assert_eq!([5, 6, 7].map(&mut denied), [Some(0), None, None]);
        assert_eq!([5, 6].map(|after| denied(after + INTERVAL_NS)), [Some(2), None]);
    }

    #[test]
    fn each_is_due_at_its_level_only() {
        let levels = [LEVEL_OFF, LEVEL_WARN, LEVEL_DEBUG];
        let at = |outcome| levels.map(|level| due(&mut Stats::default(), outcome, level, 5).is_some());
        assert_eq!(at(Outcome::Steered), [false, false, true]);
        assert_eq!(at(Outcome::NoListener), [false, true, true]);
    }
}
