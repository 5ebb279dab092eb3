//! What is recorded of an outcome: its counter, and an event when one is due, which is a record of aya-log.
//!
//! Invariants: there is one log statement, whose text `bridge_common::event::Event::parse` reads. Each program gets to
//! it at one place, with a context of its own type: then there is one copy in each, inlined. A shared one would be a
//! function call, with which older verifiers walk through far more states.

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_log_common::Level;
use aya_log_ebpf::log;
use bridge_common::{
    Ip,
    event::{self, EventKind, LEVEL_DEBUG},
    maps::{ConnectionKey, Stats, TargetKey},
    steer::Outcome,
};

use crate::{lookup::Packet, stages};

/// Counts what became of a packet for the attachment, and writes an event when one is due.
#[inline(always)]
pub(crate) fn record<C>(ctx: &C, stats: &mut Stats, attachment: u32, outcome: Outcome, packet: &Packet) {
    outcome.count(stats);
    let now = stages::now();
    stats.decided_ns = now;
    if outcome == Outcome::Steered {
        stats.steered_ns = now;
    }
    if let Some(suppressed) = event::due(stats, outcome, now) {
        write(ctx, EventKind::of(outcome), attachment, &packet.connection(), suppressed);
    }
}

/// Writes an event about a listener.
#[inline(always)]
pub(crate) fn listener<C>(ctx: &C, kind: EventKind, at: &TargetKey, error: u64) {
    let connection = ConnectionKey { source: Ip::ANY_V6, gateway: at.addr, source_port: 0, port: at.port };
    write(ctx, kind, 0, &connection, error);
}

/// Nothing is written below the level of the kind. An event that finds no room is lost: what it tells of is counted.
///
/// The short target keeps a record within 256 bytes; aya-log rounds up to a power of two.
#[inline(always)]
fn write<C>(ctx: &C, kind: EventKind, attachment: u32, connection: &ConnectionKey, detail: u64) {
    let level = match kind.level() {
        LEVEL_DEBUG => Level::Debug,
        _ => Level::Warn,
    };
    log!(
        ctx,
        target: "event",
        level,
        "{} {} [{:i}]:{} [{:i}]:{} {} {}",
        kind as u32,
        boot_ns(),
        connection.source.octets(),
        connection.source_port,
        connection.gateway.octets(),
        connection.port,
        attachment,
        detail
    );
}

#[inline(always)]
fn boot_ns() -> u64 {
    // SAFETY: a helper without preconditions (Linux 5.8).
    unsafe { bpf_ktime_get_boot_ns() }
}
