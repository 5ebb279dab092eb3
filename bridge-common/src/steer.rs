//! What the steering program decides, as pure functions.

use crate::{
    addr::Ip,
    maps::{Stats, TargetKey},
};

/// How long the kernel takes a SYN cookie, in nanoseconds (`TCP_SYNCOOKIE_VALID`, two minutes), and some more for its
/// way.
pub const SYN_COOKIE_NS: u64 = 130_000_000_000;

/// What happened to one connection that matched a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Assigned to a listener.
    Steered,
    /// The source is not allowed.
    Denied,
    /// Nothing listens on the target.
    NoListener,
    /// Listeners exist but the kernel accepted none of them for this packet.
    AssignFailed,
}

impl Outcome {
    /// Whether the kernel goes on with its own listener lookup (`SK_PASS`), or the connection is refused at once
    /// (`SK_DROP`, which the kernel answers with RST).
    ///
    /// Only `Denied` drops: the rule owns this (bridge, gateway, port), and a wildcard listener must not answer a
    /// source that was shut out. In the other cases the kernel's answer is the one it would give without us.
    #[inline(always)]
    pub const fn passes(self) -> bool {
        !matches!(self, Self::Denied)
    }

    /// Counts this outcome.
    #[inline(always)]
    pub const fn count(self, stats: &mut Stats) {
        match self {
            Self::Steered => stats.steered += 1,
            Self::Denied => stats.denied += 1,
            Self::NoListener => stats.no_listener += 1,
            Self::AssignFailed => stats.assign_failed += 1,
        }
    }
}

/// What the allow-list says of a source address: the value of its longest matching entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceClass {
    /// It may connect.
    Allowed,
    /// One of the gateway addresses themselves: the host talking to itself. Not for us: the kernel gives such a
    /// connection the bridge's index as its ingress interface (`ip_route_output_key_hash_rcu` keeps the device of the
    /// local route as `rt_iif`), so only the source tells it from one that came over the bridge.
    Host,
    /// No entry, or one this version does not know.
    Unlisted,
}

impl SourceClass {
    /// The map value of an allowed prefix.
    pub const ALLOWED: u32 = 1;
    /// The map value of a gateway address.
    pub const HOST: u32 = 2;

    /// From the matching entry's value.
    #[inline(always)]
    pub const fn from_entry(entry: Option<u32>) -> Self {
        match entry {
            Some(Self::ALLOWED) => Self::Allowed,
            Some(Self::HOST) => Self::Host,
            _ => Self::Unlisted,
        }
    }
}

/// The addresses a listener may be bound to in order to serve `target`, most specific first, as the kernel's own lookup
/// would score them: the exact address, then 0.0.0.0, then `::`. For an IPv6 target the kernel refuses the second
/// (`EAFNOSUPPORT`), as it refuses an IPv6-only `::` for IPv4.
///
/// The zeros of `::` are hidden from the optimiser, which would call `memset` for them: below Linux 6.2, the verifier
/// walks through many times as many states of a program that calls a function of its own.
#[inline(always)]
pub fn candidates(target: Ip, port: u16) -> [TargetKey; 3] {
    let any_v6 = Ip { words: [core::hint::black_box(0); 4] };
    [TargetKey::new(target, port), TargetKey::new(Ip::ANY_V4, port), TargetKey::new(any_v6, port)]
}

/// The client a service on `target` sees under the loopback identity: 127.0.0.1, also for the rest of 127.0.0.0/8,
/// whose routes all have it as their source address; or ::1.
#[inline(always)]
pub const fn local_client(target: Ip) -> Ip {
    if target.is_v4() { Ip::LOCALHOST_V4 } else { Ip::LOCALHOST_V6 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    #[test]
    fn only_denied_drops() {
        assert!(!Outcome::Denied.passes());
        for outcome in [Outcome::Steered, Outcome::NoListener, Outcome::AssignFailed] {
            assert!(outcome.passes(), "{outcome:?}");
        }
    }

    #[test]
    fn every_outcome_has_its_counter() {
        let mut stats = Stats::default();
        for outcome in [Outcome::Steered, Outcome::Denied, Outcome::NoListener, Outcome::AssignFailed] {
            outcome.count(&mut stats);
        }
        let expected = Stats { steered: 1, denied: 1, no_listener: 1, assign_failed: 1, ..Stats::default() };
        assert_eq!(stats, expected);
    }

    #[test]
    fn exact_address_comes_before_wildcards() {
        let target = Ip::from(Ipv4Addr::LOCALHOST);
        let keys = candidates(target, 6379);
        assert_eq!(keys.map(|k| k.addr), [target, Ip::ANY_V4, Ip::ANY_V6]);
    }

    #[test]
    fn a_local_client_has_the_services_family() {
        let client = |target: &str| IpAddr::from(local_client(target.parse::<IpAddr>().unwrap().into()));
        assert_eq!(client("127.0.0.1"), Ipv4Addr::LOCALHOST);
        assert_eq!(client("127.0.0.2"), Ipv4Addr::LOCALHOST);
        assert_eq!(client("::1"), Ipv6Addr::LOCALHOST);
    }

    #[test]
    fn only_a_known_entry_is_allowed() {
        assert_eq!(SourceClass::from_entry(Some(SourceClass::ALLOWED)), SourceClass::Allowed);
        assert_eq!(SourceClass::from_entry(Some(SourceClass::HOST)), SourceClass::Host);
        for entry in [None, Some(0), Some(3)] {
            assert_eq!(SourceClass::from_entry(entry), SourceClass::Unlisted);
        }
    }
}
