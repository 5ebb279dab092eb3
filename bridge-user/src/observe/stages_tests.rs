use super::*;
use crate::observe::readiness::tests::{listener, state};

const NOTHING: [&str; 0] = [];

fn codes_of(facts: &Snapshot, stats: &Stats) -> Vec<String> {
    findings(&state(), facts, stats).into_iter().map(|finding| finding.code.into_owned()).collect()
}

/// The times of the stages, as far as the last connection came.
fn came_to(stage: usize) -> Stats {
    let at = |own: usize| if own <= stage { 20 } else { 10 };
    Stats {
        arrived_ns: at(0),
        decided_ns: at(1),
        steered_ns: at(1),
        answered_ns: at(2),
        accepted_ns: at(3),
        ..Stats::default()
    }
}

#[test]
fn the_last_stage_tells_what_stopped_a_connection() {
    let facts = Snapshot { listeners: vec![listener("127.0.0.1:6379", 5, false)], ..Snapshot::default() };
    assert_eq!(codes_of(&facts, &Stats::default()), NOTHING);
    assert_eq!(codes_of(&facts, &came_to(0)), ["blocked-by-firewall"]);
    assert_eq!(codes_of(&facts, &came_to(1)), NOTHING, "the kernel dropped it, and nothing tells why");
    assert_eq!(codes_of(&facts, &came_to(2)), ["answers-lost"]);
    assert_eq!(codes_of(&facts, &came_to(3)), NOTHING);
    let again = Stats { arrived_ns: 30, ..came_to(2) };
    assert_eq!(codes_of(&facts, &again), ["answers-lost"], "the client sends its SYN again");
    let later = Stats { arrived_ns: 70_000_000_000, ..came_to(2) };
    assert_eq!(codes_of(&facts, &later), ["blocked-by-firewall"]);
    let refused = Stats { arrived_ns: 20, decided_ns: 21, ..came_to(3) };
    assert_eq!(codes_of(&facts, &refused), NOTHING);
}

#[test]
fn a_full_queue_is_told_before_the_rest() {
    let mut full = listener("127.0.0.1:6379", 5, false);
    full.is_full = true;
    let facts = Snapshot { listeners: vec![full], ..Snapshot::default() };
    for stage in [1, 2] {
        assert_eq!(codes_of(&facts, &came_to(stage)), ["queue-full"]);
    }
    assert_eq!(codes_of(&facts, &came_to(3)), NOTHING, "the last connection came through");
}

#[test]
fn a_syn_given_to_an_mptcp_listener_may_be_dropped_after_that() {
    let mut facts = Snapshot { listeners: vec![listener("127.0.0.1:6379", 5, true)], ..Snapshot::default() };
    facts.tc_bridges.insert(state().ifindex);
    assert_eq!(codes_of(&facts, &came_to(1)), ["blocked-by-firewall"]);
    assert_eq!(codes_of(&facts, &came_to(2)), ["answers-lost"]);
}

#[test]
fn other_addresses_are_told_of_unless_somebody_serves_them() {
    let stats = Stats { wrong_gateway: 2, wrong_gateway_ns: 30, ..came_to(3) };
    let own = listener("127.0.0.1:6379", 5, false);
    let facts = Snapshot { listeners: vec![own.clone()], ..Snapshot::default() };
    assert_eq!(codes_of(&facts, &stats), ["wrong-gateway"]);
    let before = Stats { wrong_gateway_ns: 15, ..stats };
    assert_eq!(codes_of(&facts, &before), NOTHING, "one came to the gateway since");
    let facts =
        Snapshot { listeners: vec![own, listener("172.30.1.1:6379", 6, false)], ..Snapshot::default() };
    assert_eq!(codes_of(&facts, &stats), NOTHING);
}
