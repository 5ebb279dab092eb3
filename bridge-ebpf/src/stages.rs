//! The stages of a connection, as an attachment counts them: its SYN arrived at the bridge, was given to a listener,
//! was answered by the kernel, and the connection was established. Which one is the last tells what keeps a client
//! waiting.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use bridge_common::maps::{Stats, Steered};

use crate::maps;

/// The counters of an attachment on this CPU; `None` once it is detached.
#[inline(always)]
pub(crate) fn of(attachment: u32) -> Option<&'static mut Stats> {
    // SAFETY: a per-CPU value, and the programs that write it do not interrupt each other.
    maps::STATS.get_ptr_mut(&attachment).map(|stats| unsafe { &mut *stats })
}

/// A SYN came in at the bridge.
#[inline(always)]
pub(crate) fn arrived(attachment: u32) {
    if let Some(stats) = of(attachment) {
        stats.arrived += 1;
        stats.arrived_ns = now();
    }
}

/// The kernel answers the SYN.
#[inline(always)]
pub(crate) fn answered(steered: &Steered) {
    if let Some(stats) = of(steered.attachment) {
        stats.answered += 1;
        stats.answered_ns = now();
    }
}

/// The connection is established.
#[inline(always)]
pub(crate) fn accepted(steered: &Steered) {
    if let Some(stats) = of(steered.attachment) {
        stats.accepted += 1;
        stats.accepted_ns = now();
    }
}

/// A SYN came for another address of this host.
#[inline(always)]
pub(crate) fn wrong_gateway(attachment: u32) {
    if let Some(stats) = of(attachment) {
        stats.wrong_gateway += 1;
        stats.wrong_gateway_ns = now();
    }
}

/// `CLOCK_MONOTONIC`.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: a helper without preconditions.
    unsafe { bpf_ktime_get_ns() }
}
