//! The relay's program, an object of its own: it is loaded by a relay that runs, is never pinned, and is gone with the
//! process. The steering object knows nothing of it.
//!
//! A thin shim: it finds the flow, asks `bridge_common::relay`, and counts.

#![no_std]
#![no_main]

mod maps;

use core::ptr::addr_of;

use aya_ebpf::{
    EbpfContext as _,
    bindings::sk_action::{SK_DROP, SK_PASS},
    helpers::bpf_get_socket_cookie,
    macros::stream_verdict,
    programs::SkBuffContext,
};
use bridge_common::relay::{self, BUDGET, Credit, Progress, Verdict};

/// Helpers that touch sockets need a GPL-compatible licence string.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The verifier rejects an endless loop, so a panic that could be reached fails at load time.
#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Entry point. Runs for every segment that arrives on a socket in `SOURCES`, under the lock of that socket, before
/// the bytes can be read.
#[stream_verdict]
pub(crate) fn redirect(ctx: SkBuffContext) -> u32 {
    // Whatever is not known to be a flow is none of our business: its bytes are read as from any socket.
    try_redirect(&ctx).unwrap_or(SK_PASS)
}

#[inline(always)]
fn try_redirect(ctx: &SkBuffContext) -> Option<u32> {
    // SAFETY: allowed for sk_skb since Linux 4.14; the segment's socket is the source.
    let source = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let progress = maps::PROGRESS.get_ptr_mut(source)?;
    // SAFETY: the program is the value's only writer, and runs once at a time for each socket.
    let progress: &mut Progress = unsafe { &mut *progress };
    let credit = read_credit(source);
    let len = ctx.len();
    match relay::decide(len, &credit, progress, BUDGET) {
        Verdict::Drop => return Some(SK_DROP),
        Verdict::Pass => progress.pass(len),
        Verdict::Redirect if hand_over(ctx, source) => {
            progress.redirect(len);
            count(credit.direction, len);
        }
        // The sink is gone from the map: userspace finds out when it writes.
        Verdict::Redirect => progress.pass(len),
    }
    Some(SK_PASS)
}

/// Copies what is allowed. The kernel may give an element that is replaced at this very moment to another flow, whose
/// cookie, the first field, is then there before anything else of it: nothing is allowed.
#[inline(always)]
fn read_credit(source: u64) -> Credit {
    let Some(credit) = maps::CREDIT.get_ptr(source) else { return Credit::default() };
    // SAFETY: a map value stays readable for the length of the program.
    let copy = unsafe {
        Credit {
            open: addr_of!((*credit).open).read_volatile(),
            direction: addr_of!((*credit).direction).read_volatile(),
            drained: addr_of!((*credit).drained).read_volatile(),
            credited: addr_of!((*credit).credited).read_volatile(),
            cookie: addr_of!((*credit).cookie).read_volatile(),
        }
    };
    if copy.cookie == source { copy } else { Credit::default() }
}

/// Marks the segment as one for the sink. The helper answers SK_DROP without having touched the segment when the map
/// has no such socket (`bpf_sk_redirect_hash`, the same from 5.10 to 7.2), so it can still be passed.
#[inline(always)]
fn hand_over(ctx: &SkBuffContext, mut source: u64) -> bool {
    maps::SINKS.redirect_skb(ctx, &mut source, 0) == i64::from(SK_PASS)
}

#[inline(always)]
fn count(direction: u32, len: u32) {
    if let Some(totals) = maps::TOTALS.get_ptr_mut(direction) {
        // SAFETY: a per-CPU value; softirqs do not interrupt each other on one CPU, and a verdict that runs in a
        // process's context does so with them off (`tcp_data_ready` under the socket's lock) or may lose this count
        // only.
        unsafe { (*totals).bytes = (*totals).bytes.wrapping_add(u64::from(len)) };
    }
}
