//! What is recorded of an outcome: its counter, and an event when one is due, which is one line of aya-log.

use aya_log_ebpf::{debug, warn};
use bridge_common::{
    Ip,
    maps::Stats,
    steer::{Outcome, admit_event},
};

use crate::{lookup::Packet, stages};

/// Counts the outcome, and writes an event when one is due.
#[inline(always)]
pub(crate) fn record<C>(ctx: &C, stats: &mut Stats, outcome: Outcome, packet: &Packet) {
    outcome.count(stats);
    let now = stages::now();
    stats.decided_ns = now;
    if outcome == Outcome::Steered {
        stats.steered_ns = now;
        write(ctx, outcome, packet, 0);
        return;
    }
    if let Some(suppressed) = admit_event(stats, now) {
        write(ctx, outcome, packet, suppressed);
    }
}

/// The attachment's service has no place in a log record (aya-log copies constant strings only), so events name
/// the addresses; `bridge-user events` adds the attachment.
#[inline(always)]
fn write<C>(ctx: &C, outcome: Outcome, packet: &Packet, suppressed: u64) {
    if packet.source.is_v4() {
        let (source, gateway) = (host_order(&packet.source), host_order(&packet.gateway));
        match outcome {
            Outcome::Steered => {
                debug!(ctx, "steered {:i}:{} -> {:i}:{}", source, packet.source_port, gateway, packet.port)
            }
            Outcome::Denied => warn!(
                ctx,
                "denied {:i}:{} -> {:i}:{}: source not in the allow-list ({} more not shown)",
                source,
                packet.source_port,
                gateway,
                packet.port,
                suppressed
            ),
            Outcome::NoListener => warn!(
                ctx,
                "no-listener {:i}:{} -> {:i}:{}: nothing listens on the target ({} more not shown)",
                source,
                packet.source_port,
                gateway,
                packet.port,
                suppressed
            ),
            Outcome::AssignFailed => warn!(
                ctx,
                "assign-failed {:i}:{} -> {:i}:{}: the kernel refused the listener ({} more not shown)",
                source,
                packet.source_port,
                gateway,
                packet.port,
                suppressed
            ),
        }
    } else {
        write_v6(ctx, outcome, packet, suppressed);
    }
}

#[inline(always)]
fn write_v6<C>(ctx: &C, outcome: Outcome, packet: &Packet, suppressed: u64) {
    let (source, gateway) = (bytes(&packet.source), bytes(&packet.gateway));
    match outcome {
        Outcome::Steered => {
            debug!(ctx, "steered [{:i}]:{} -> [{:i}]:{}", source, packet.source_port, gateway, packet.port)
        }
        Outcome::Denied => warn!(
            ctx,
            "denied [{:i}]:{} -> [{:i}]:{}: source not in the allow-list ({} more not shown)",
            source,
            packet.source_port,
            gateway,
            packet.port,
            suppressed
        ),
        Outcome::NoListener => warn!(
            ctx,
            "no-listener [{:i}]:{} -> [{:i}]:{}: nothing listens on the target ({} more not shown)",
            source,
            packet.source_port,
            gateway,
            packet.port,
            suppressed
        ),
        Outcome::AssignFailed => warn!(
            ctx,
            "assign-failed [{:i}]:{} -> [{:i}]:{}: the kernel refused the listener ({} more not shown)",
            source,
            packet.source_port,
            gateway,
            packet.port,
            suppressed
        ),
    }
}

/// aya-log prints a `u32` IPv4 address from its numeric value.
#[inline(always)]
fn host_order(ip: &Ip) -> u32 {
    u32::from_be(ip.words[3])
}

#[inline(always)]
fn bytes(ip: &Ip) -> [u8; 16] {
    // SAFETY: both types are 16 bytes without padding, and every bit pattern is valid for `[u8; 16]`.
    unsafe { core::mem::transmute(ip.words) }
}
