//! What the stages of connections tell: where those that did not come through were stopped. No probe, and no packet of
//! ours.
//!
//! Invariant: between two stages of one connection lie microseconds, all on this host but for the client's ACK. So a
//! stage whose last time is later than that of the stage after it, and which is past by [`SETTLED`], was the last one
//! of a connection.

use std::{collections::HashMap, thread, time::Duration};

use bridge_common::maps::Stats;
use nix::time::{ClockId, clock_gettime};

use super::{checks::stages as found, readiness::Snapshot};
use crate::{
    kernel::state::State,
    model::{attachment::Attachment, datapath::Datapath, finding::Finding},
};

/// How long after its last stage a connection is looked at. Processors of virtual machines pause for milliseconds.
const SETTLED: Duration = Duration::from_millis(100);

/// How long the kernel keeps a connection that it answered and that is not established: its answer and five more
/// (`net.ipv4.tcp_synack_retries`), each after twice the time.
const REQUEST: Duration = Duration::from_secs(63);

/// The counters of attachments. Where a connection is on its way at this moment, they are read again when it is
/// through, or was stopped.
///
/// # Errors
/// When the map cannot be read.
pub fn read(state: &State, attachments: &[(u32, Attachment)]) -> anyhow::Result<HashMap<u32, Stats>> {
    let read = || attachments.iter().map(|(id, _)| Ok((*id, state.stats(*id)?))).collect();
    let counted: HashMap<u32, Stats> = read()?;
    let now = monotonic_ns()?;
    let is_on_its_way = |stats: &Stats| {
        let last = [stats.arrived_ns, stats.steered_ns, stats.answered_ns].into_iter().max().unwrap_or(0);
        is_stopped(stats) && now.saturating_sub(last) < SETTLED.as_nanos() as u64
    };
    if !counted.values().any(is_on_its_way) {
        return Ok(counted);
    }
    thread::sleep(SETTLED);
    read()
}

/// By the clock of `bpf_ktime_get_ns`.
fn monotonic_ns() -> anyhow::Result<u64> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?).as_nanos() as u64)
}

/// Whether the last connection stopped before it was established, or is on its way.
fn is_stopped(stats: &Stats) -> bool {
    is_blocked(stats) || is_unanswered(stats) || is_unfinished(stats)
}

/// Neither steered nor refused: something between the bridge and the listener lookup dropped it. A client whose answer
/// was lost sends its SYN again, which the kernel answers itself.
fn is_blocked(stats: &Stats) -> bool {
    let is_again = is_unfinished(stats)
        && stats.arrived_ns.saturating_sub(stats.answered_ns) < REQUEST.as_nanos() as u64;
    stats.arrived_ns > stats.decided_ns && !is_again
}

/// Steered, and the kernel made nothing of it.
fn is_unanswered(stats: &Stats) -> bool {
    stats.steered_ns > stats.answered_ns.max(stats.accepted_ns)
}

/// Answered, and the client did not come back.
fn is_unfinished(stats: &Stats) -> bool {
    stats.answered_ns > stats.accepted_ns
}

/// What keeps connections from being established, by the last one of each stage.
pub fn findings(state: &Attachment, facts: &Snapshot, stats: &Stats) -> Vec<Finding> {
    let target = state.target.tcp();
    let full = facts
        .listeners
        .iter()
        .find(|listener| listener.is_full && target.is_some_and(|target| listener.can_serve(target)));
    // To MPTCP listeners a SYN is given before the firewall sees it.
    let is_early = facts.carrier(state) == Datapath::SteerTc;
    let stopped = match full {
        Some(listener) if is_unanswered(stats) || is_unfinished(stats) => {
            Some(found::queue_full(state, listener))
        }
        _ if is_blocked(stats) || is_early && is_unanswered(stats) => {
            Some(found::blocked_by_firewall(state, stats))
        }
        _ if is_unfinished(stats) => Some(found::answers_lost(state, stats)),
        _ => None,
    };
    // A listener of its own at another address is served without us.
    let serves_others = facts.listeners.iter().any(|listener| {
        listener.addr.port() == state.port.get() && !listener.addr.ip().to_canonical().is_loopback()
    });
    let others = stats.wrong_gateway_ns > stats.decided_ns && !serves_others;
    stopped.into_iter().chain(others.then(|| found::wrong_gateway(state, stats))).collect()
}

#[cfg(test)]
#[path = "stages_tests.rs"]
mod tests;
