//! Rules as both kinds of firewall have them, and which of them a connection's first packet meets. Pure.
//!
//! Invariants: what is not known of a packet, and what is not understood of a rule, may be as the rule wants it. The
//! walk ends, whatever the rules are: a container's may be made to be slow.

use std::{cell::Cell, collections::HashMap, fmt, net::IpAddr, ops::RangeInclusive};

use ipnet::IpNet;

/// The kernel refuses deeper jumps.
const DEEPEST: usize = 16;
/// Rules that are looked at for one packet.
const MOST_STEPS: usize = 200_000;

/// The first packet of a TCP connection, as far as it is known.
#[derive(Debug, Clone)]
pub struct Packet<'a> {
    /// The interface it arrives on; `None`: this host sends it.
    pub interface: Option<&'a str>,
    /// The local address and port that it is for.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// Where it may come from; empty: not known.
    pub sources: &'a [IpNet],
}

/// A rule that takes a connection elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirection {
    /// Where it stands: `chain DOCKER of table ip nat`.
    pub place: String,
    /// How it is found there: the rule itself, or its handle.
    pub rule: String,
    /// Every condition was understood, and holds.
    pub is_certain: bool,
}

impl fmt::Display for Redirection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule `{}` in {}", self.rule, self.place)
    }
}

/// Whether something holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Truth {
    No,
    Maybe,
    Yes,
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

/// What a rule wants of a packet.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum What {
    /// Its destination is one of these.
    Destination(Vec<RangeInclusive<IpAddr>>),
    /// Its source is.
    Source(Vec<RangeInclusive<IpAddr>>),
    /// Its destination port is.
    Port(Vec<RangeInclusive<u16>>),
    /// It arrived on one of these; a name may end with `*`.
    Interface(Vec<String>),
    /// It is IPv4, or IPv6.
    Ipv4(bool),
    /// The same of every packet that is asked about: whether it is TCP, new, for a local address.
    Constant(Truth),
}

/// One condition of a rule.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Condition {
    pub(super) what: What,
    pub(super) negated: bool,
}

impl Condition {
    pub(super) fn unknown() -> Self {
        Self { what: What::Constant(Truth::Maybe), negated: false }
    }

    fn holds(&self, packet: &Packet<'_>) -> Truth {
        let truth = match &self.what {
            What::Destination(ranges) => ranges.iter().any(|range| range.contains(&packet.address)).into(),
            What::Source(ranges) => from(packet.sources, ranges),
            What::Port(ranges) => ranges.iter().any(|range| range.contains(&packet.port)).into(),
            What::Interface(names) => names.iter().any(|name| is_named(packet.interface, name)).into(),
            What::Ipv4(is_ipv4) => (packet.address.is_ipv4() == *is_ipv4).into(),
            What::Constant(truth) => *truth,
        };
        match (self.negated, truth) {
            (true, Truth::Yes) => Truth::No,
            (true, Truth::No) => Truth::Yes,
            _ => truth,
        }
    }
}

fn is_named(interface: Option<&str>, pattern: &str) -> bool {
    let Some(interface) = interface else { return false };
    match pattern.strip_suffix('*') {
        Some(start) => interface.starts_with(start),
        None => interface == pattern,
    }
}

/// Whether a packet from one of `sources` comes from one of `ranges`.
fn from(sources: &[IpNet], ranges: &[RangeInclusive<IpAddr>]) -> Truth {
    let inside = |net: &IpNet, range: &RangeInclusive<IpAddr>| {
        range.contains(&net.network()) && range.contains(&net.broadcast())
    };
    let apart = |net: &IpNet, range: &RangeInclusive<IpAddr>| {
        net.broadcast() < *range.start() || net.network() > *range.end()
    };
    if sources.is_empty() {
        Truth::Maybe
    } else if sources.iter().all(|net| ranges.iter().any(|range| inside(net, range))) {
        Truth::Yes
    } else if sources.iter().all(|net| ranges.iter().all(|range| apart(net, range))) {
        Truth::No
    } else {
        Truth::Maybe
    }
}

/// What a rule does with a packet for which its conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes elsewhere.
    Redirect,
    /// No further rule of the base chain sees it.
    End,
    /// The rules after the jump do.
    Return,
    Jump(String),
    Goto(String),
}

/// One rule that decides something.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rule {
    /// How people find it in its chain.
    pub(super) name: String,
    pub(super) conditions: Vec<Condition>,
    pub(super) verdict: Verdict,
}

/// A table with its chains.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// As its tool calls it: `table ip nat`, `table nat of iptables`.
    pub(super) name: String,
    /// Whether it sees IPv4, or IPv6, alone.
    pub(super) is_ipv4: Option<bool>,
    /// Its base chains at prerouting, in order, and at output.
    pub(super) prerouting: Vec<String>,
    pub(super) output: Vec<String>,
    pub(super) chains: HashMap<String, Vec<Rule>>,
}

impl Table {
    /// The rule that takes the packet's connection, or may.
    pub(super) fn redirection(&self, packet: &Packet<'_>) -> Option<Redirection> {
        if self.is_ipv4.is_some_and(|is_ipv4| is_ipv4 != packet.address.is_ipv4()) {
            return None;
        }
        let bases = if packet.interface.is_some() { &self.prerouting } else { &self.output };
        let walk = Walk { table: self, packet, steps: Cell::new(0) };
        bases.iter().find_map(|base| {
            let mut found = None;
            walk.chain(base, Truth::Yes, 0, &mut found);
            found
        })
    }

    fn found(&self, chain: &str, rule: &str, truth: Truth) -> Redirection {
        Redirection {
            place: format!("chain {chain} of {}", self.name),
            rule: rule.to_owned(),
            is_certain: truth == Truth::Yes,
        }
    }
}

/// Whether a packet comes back from a chain.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It may.
    Returned,
    /// It certainly does not.
    Stopped,
}

struct Walk<'a> {
    table: &'a Table,
    packet: &'a Packet<'a>,
    steps: Cell<usize>,
}

impl Walk<'_> {
    /// Follows a packet that gets to a chain, if `reached`. The first rule that may take it stays found until one
    /// certainly does.
    fn chain(&self, name: &str, reached: Truth, depth: usize, found: &mut Option<Redirection>) -> Outcome {
        for rule in self.table.chains.get(name).into_iter().flatten() {
            self.steps.set(self.steps.get() + 1);
            if self.steps.get() > MOST_STEPS || depth > DEEPEST {
                found.get_or_insert_with(|| self.table.found(name, "too many jumps to follow", Truth::Maybe));
                return Outcome::Stopped;
            }
            let truth = rule.conditions.iter().map(|one| one.holds(self.packet)).min().unwrap_or(Truth::Yes);
            if truth == Truth::No {
                continue;
            }
            let (is_met, here) = (truth == Truth::Yes, truth.min(reached));
            let outcome = match &rule.verdict {
                Verdict::Redirect => {
                    if found.as_ref().is_none_or(|found| !found.is_certain && here == Truth::Yes) {
                        *found = Some(self.table.found(name, &rule.name, here));
                    }
                    Outcome::Stopped
                }
                Verdict::End => Outcome::Stopped,
                Verdict::Return if is_met => return Outcome::Returned,
                Verdict::Return => continue,
                Verdict::Goto(to) if is_met => return self.chain(to, here, depth + 1, found),
                Verdict::Jump(to) | Verdict::Goto(to) => self.chain(to, here, depth + 1, found),
            };
            if is_met && outcome == Outcome::Stopped {
                return Outcome::Stopped;
            }
        }
        Outcome::Returned
    }
}

/// An address, a subnet or a range (`10.0.0.1-10.0.0.9`), as iptables and people write it.
pub(super) fn addresses(text: &str) -> Option<RangeInclusive<IpAddr>> {
    if let Some((first, last)) = text.split_once('-') {
        return Some(first.parse().ok()?..=last.parse().ok()?);
    }
    if let Ok(net) = text.parse::<IpNet>() {
        return Some(net.network()..=net.broadcast());
    }
    let address: IpAddr = text.parse().ok()?;
    Some(address..=address)
}

/// A port or a range of them (`1000:2000`).
pub(super) fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    let first = if first.is_empty() { 0 } else { first.parse().ok()? };
    let last = if last.is_empty() { u16::MAX } else { last.parse().ok()? };
    Some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str, truth: Truth, verdict: Verdict) -> Rule {
        let conditions = vec![Condition { what: What::Constant(truth), negated: false }];
        Rule { name: name.to_owned(), conditions, verdict }
    }

    fn found(chains: &[(&str, Vec<Rule>)]) -> Option<(String, bool)> {
        let chains = chains.iter().map(|(name, rules)| ((*name).to_owned(), rules.clone())).collect();
        let table = Table { prerouting: vec!["base".into()], chains, ..Table::default() };
        let address = [10, 0, 0, 1].into();
        let packet = Packet { interface: Some("br-a"), address, port: 80, sources: &[] };
        table.redirection(&packet).map(|found| (found.rule, found.is_certain))
    }

    #[test]
    fn what_comes_before_decides() {
        use Truth::{Maybe, No, Yes};
        let jump = |truth| rule("jump", truth, Verdict::Jump("other".into()));
        let take = |truth| rule("take", truth, Verdict::Redirect);
        let certain = Some(("take".to_owned(), true));
        let perhaps = Some(("take".to_owned(), false));
        assert_eq!(found(&[("base", vec![take(Yes)])]), certain);
        assert_eq!(found(&[("base", vec![take(No)])]), None);
        for ends in [Verdict::End, Verdict::Return] {
            assert_eq!(found(&[("base", vec![rule("", Yes, ends.clone()), take(Yes)])]), None);
            let perhaps_before = vec![rule("", Maybe, ends), take(Yes)];
            assert_eq!(found(&[("base", perhaps_before)]), certain);
        }
        assert_eq!(found(&[("base", vec![jump(Yes)]), ("other", vec![take(Yes)])]), certain);
        assert_eq!(found(&[("base", vec![jump(Maybe)]), ("other", vec![take(Yes)])]), perhaps);
        let returns = vec![rule("", Yes, Verdict::Return), take(Yes)];
        assert_eq!(found(&[("base", vec![jump(Yes)]), ("other", returns.clone())]), None);
        assert_eq!(found(&[("base", vec![jump(Yes), take(Maybe)]), ("other", returns)]), perhaps);
        let ends = vec![rule("", Yes, Verdict::End)];
        assert_eq!(found(&[("base", vec![jump(Yes), take(Yes)]), ("other", ends.clone())]), None);
        assert_eq!(found(&[("base", vec![jump(Maybe), take(Yes)]), ("other", ends)]), certain);
        let goto = rule("", Yes, Verdict::Goto("other".into()));
        assert_eq!(found(&[("base", vec![goto, take(Yes)]), ("other", vec![])]), None);
    }

    #[test]
    fn a_walk_that_does_not_end_may_take_everything() {
        let jump = rule("", Truth::Maybe, Verdict::Jump("base".into()));
        let (rule, is_certain) = found(&[("base", vec![jump.clone(), jump])]).unwrap();
        assert!(rule.contains("too many") && !is_certain, "{rule}");
    }

    #[test]
    fn sources_are_within_or_apart_or_in_between() {
        let nets = |text: &str| vec![text.parse::<IpNet>().unwrap()];
        let range = |text: &str| vec![addresses(text).unwrap()];
        assert_eq!(from(&nets("10.1.0.0/16"), &range("10.0.0.0/8")), Truth::Yes);
        assert_eq!(from(&nets("10.1.0.0/16"), &range("10.1.2.3")), Truth::Maybe);
        assert_eq!(from(&nets("10.1.0.0/16"), &range("10.2.0.0/16")), Truth::No);
        assert_eq!(from(&nets("10.1.0.0/16"), &range("fd00::/8")), Truth::No);
        assert_eq!(from(&[], &range("10.1.2.3")), Truth::Maybe);
    }
}
