//! The stages of a connection, as an attachment counts them: its SYN arrived at the bridge, was given to a listener,
//! was answered by the kernel, and the connection was established. Which one is the last tells what keeps a client
//! waiting.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use bridge_common::maps::{Stage, Stats};

use crate::maps;

/// The counters of an attachment on this CPU; `None` once it is detached.
#[inline(always)]
pub(crate) fn of(attachment: u32) -> Option<&'static mut Stats> {
    // SAFETY: a per-CPU value, and the programs that write it do not interrupt each other.
    maps::STATS.get_ptr_mut(&attachment).map(|stats| unsafe { &mut *stats })
}

/// A connection of the attachment came to this stage.
#[inline(always)]
pub(crate) fn reached(attachment: u32, stage: Stage) {
    if let Some(stats) = of(attachment) {
        stats.reach(stage, now());
    }
}

/// `CLOCK_MONOTONIC`.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: a helper without preconditions.
    unsafe { bpf_ktime_get_ns() }
}
