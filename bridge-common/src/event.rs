//! What the programs write into the event channel, and when.
//!
//! Invariants: the words of an event are userspace's; here are its kind, its time and its numbers. The channel is
//! aya-log's; each record has the one text that [`Event::parse`] reads.

use core::net::{IpAddr, SocketAddrV6};

use crate::{
    Ip,
    maps::{ConnectionKey, Stats},
    steer::Outcome,
};

/// Level of the event channel, a number of aya-log's: nothing.
pub const LEVEL_OFF: u8 = 0;
/// Refusals and what is missing.
pub const LEVEL_WARN: u8 = 2;
/// Every steered connection and tracked listener, too.
pub const LEVEL_DEBUG: u8 = 4;

/// At most one event per attachment and CPU in this time, in nanoseconds, for repeatable events (denied, no
/// listener). Steered connections are not limited.
pub const INTERVAL_NS: u64 = 1_000_000_000;

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// When it happened: `bpf_ktime_get_boot_ns` (`CLOCK_BOOTTIME`), which goes on while the machine sleeps.
    pub boot_ns: u64,
    /// Of a refused connection: how many events of the attachment the rate limit left out on the same CPU before this
    /// one. Of a refused listener: the error, positive.
    pub detail: u64,
    /// The connection; of a listener, gateway and port are where it listens.
    pub connection: ConnectionKey,
    /// The attachment's id; 0 for a listener.
    pub attachment: u32,
}

impl Event {
    /// Reads `KIND BOOT_NS [SOURCE]:PORT [GATEWAY]:PORT ATTACHMENT DETAIL`, numbers and IPv6 addresses (IPv4 ones are
    /// mapped), as `bridge-ebpf/src/events.rs` logs it; `None` if it is anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let kind = EventKind::from_number(words.next()?.parse().ok()?)?;
        let boot_ns = words.next()?.parse().ok()?;
        let source: SocketAddrV6 = words.next()?.parse().ok()?;
        let gateway: SocketAddrV6 = words.next()?.parse().ok()?;
        let attachment = words.next()?.parse().ok()?;
        let detail = words.next()?.parse().ok()?;
        let connection = ConnectionKey {
            source: Ip::from(IpAddr::V6(*source.ip())),
            gateway: Ip::from(IpAddr::V6(*gateway.ip())),
            source_port: source.port(),
            port: gateway.port(),
        };
        words.next().is_none().then_some(Self { kind, boot_ns, detail, connection, attachment })
    }
}

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

/// Whether the event of an outcome is due now, at a level that has it; keeps the per-CPU state in `stats`. Returns the
/// number of events left out since the last one.
#[inline(always)]
pub const fn due(stats: &mut Stats, outcome: Outcome, now_ns: u64) -> Option<u64> {
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
        let mut denied = |now_ns| due(&mut stats, Outcome::Denied, now_ns);
        assert_eq!([5, 6, 7].map(&mut denied), [Some(0), None, None]);
        assert_eq!([5, 6].map(|after| denied(after + INTERVAL_NS)), [Some(2), None]);
    }

    #[test]
    fn steered_connections_are_not_limited() {
        let mut stats = Stats::default();
        assert_eq!([5, 6].map(|now_ns| due(&mut stats, Outcome::Steered, now_ns)), [Some(0), Some(0)]);
        assert_eq!(stats, Stats::default());
    }

    #[test]
    fn each_has_its_level() {
        let level = |outcome| EventKind::of(outcome).level();
        assert_eq!(level(Outcome::Steered), LEVEL_DEBUG);
        let refusals = [Outcome::Denied, Outcome::NoListener, Outcome::AssignFailed];
        assert_eq!(refusals.map(level), [LEVEL_WARN; 3]);
    }

    #[test]
    fn a_record_is_read_whole_or_not_at_all() {
        let ip = |text: &str| Ip::from(text.parse::<IpAddr>().unwrap());
        let v4 = "2 7000000001 [::ffff:172.17.0.3]:40112 [::ffff:172.17.0.1]:6379 5 3";
        let denied = Event {
            kind: EventKind::Denied,
            boot_ns: 7_000_000_001,
            detail: 3,
            connection: ConnectionKey {
                source: ip("172.17.0.3"),
                gateway: ip("172.17.0.1"),
                source_port: 40112,
                port: 6379,
            },
            attachment: 5,
        };
        assert_eq!(Event::parse(v4), Some(denied));
        let v6 = Event::parse("5 1 [::]:0 [fd00::1]:6379 0 0").unwrap();
        assert_eq!((v6.kind, v6.connection.gateway), (EventKind::Tracked, ip("fd00::1")));
        for end in 0..v4.len() {
            assert_eq!(Event::parse(&v4[..end]), None, "{}", &v4[..end]);
        }
        for other in [format!("{v4} 1"), v4.replacen('2', "8", 1), v4.replacen(' ', "  ", 1)] {
            assert_eq!(Event::parse(&other), None, "{other}");
        }
    }
}
