//! What is recorded of an outcome: its counter, and an event when one is due.

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use bridge_common::{
    Ip,
    event::{self, Event, EventKind},
    maps::{ConnectionKey, Stats, TargetKey},
    steer::Outcome,
};

use crate::{lookup::Packet, maps, stages, switches};

/// Counts what became of a packet for the attachment, and writes an event when one is due.
#[inline(always)]
pub(crate) fn record(stats: &mut Stats, attachment: u32, outcome: Outcome, packet: &Packet) {
    outcome.count(stats);
    let now = stages::now();
    stats.decided_ns = now;
    if outcome == Outcome::Steered {
        stats.steered_ns = now;
    }
    if let Some(suppressed) = event::due(stats, outcome, switches::EVENT_LEVEL.load(), now) {
        write(EventKind::of(outcome), attachment, packet.connection(), suppressed);
    }
}

/// Writes an event about a listener, if the level is high enough.
#[inline(always)]
pub(crate) fn listener(kind: EventKind, at: &TargetKey, error: u64) {
    if kind.level() > switches::EVENT_LEVEL.load() {
        return;
    }
    let connection = ConnectionKey { source: Ip::ANY_V6, gateway: at.addr, source_port: 0, port: at.port };
    write(kind, 0, connection, error);
}

/// An event that finds no room is lost: what it tells of is counted.
#[inline(always)]
fn write(kind: EventKind, attachment: u32, connection: ConnectionKey, detail: u64) {
    // SAFETY: a helper without preconditions (Linux 5.8).
    let boot_ns = unsafe { bpf_ktime_get_boot_ns() };
    let event = Event { boot_ns, detail, connection, attachment, kind: kind as u32, pad: 0 };
    let _ = maps::EVENTS.output::<Event>(&event, 0);
}
