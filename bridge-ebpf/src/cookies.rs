//! SYN cookies: whether the ACK that ends a handshake may have to be given to the listener.
//!
//! The kernel finds such an ACK's request by itself, unless it answered the SYN with a cookie and kept nothing. Asking for
//! each packet whether the kernel knows its connection would tell (and cost a twentieth of the rate of short connections);
//! instead each SYN is counted until the kernel has made a request of it. That happens at once, on the same CPU,
//! and calls `sock_ops` with `BPF_SOCK_OPS_TIMEOUT_INIT` (`tcp_conn_request`, Linux 4.13): not for a cookie.
//!
//! Invariant: the count is never lower than the number of cookies sent. A SYN that was dropped on the way or for want of
//! room counts as one too, and nothing is ever taken off for a cookie: from then on every packet is asked for.

use core::arch::asm;

use aya_ebpf::{bindings::bpf_sock_ops, programs::SockOpsContext};
use bridge_common::maps::ConnectionKey;

use crate::{identity::connection_key, maps, steer::Packet};

/// `AF_INET` and `AF_INET6`.
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// Whether an ACK may be the end of a handshake with a cookie.
#[inline(always)]
pub(crate) fn may_be_in_use() -> bool {
    // SAFETY: an aligned integer that is only ever changed atomically.
    maps::UNANSWERED.get_ptr(0).is_none_or(|count| unsafe { count.read_volatile() } != 0)
}

/// A SYN was given to a listener: what the kernel makes of it comes next on this CPU.
#[inline(always)]
pub(crate) fn expect_request(packet: &Packet) {
    let Some(given) = maps::GIVEN.get_ptr_mut(0) else { return };
    add(1);
    // SAFETY: a per-CPU value, and nothing else runs this program on this CPU meanwhile.
    unsafe { *given = packet.connection() };
}

/// The kernel has made a request of a SYN, or sends one of its own.
#[inline(always)]
pub(crate) fn request_made(ctx: &SockOpsContext) {
    let Some(given) = maps::GIVEN.get_ptr_mut(0) else { return };
    // SAFETY: a per-CPU value, and nothing else writes it on this CPU meanwhile.
    let given = unsafe { &mut *given };
    if given.port == ConnectionKey::NONE.port || !given.is(&request_key(ctx.ops, given)) {
        return;
    }
    *given = ConnectionKey::NONE;
    add(u64::MAX);
}

/// A request for an IPv4 SYN says that it is an IPv6 one where the listener is, but has the IPv4 addresses.
#[inline(always)]
fn request_key(ops: *const bpf_sock_ops, given: &ConnectionKey) -> ConnectionKey {
    let family = if given.source.is_v4() { AF_INET } else { AF_INET6 };
    connection_key(ops, family)
}

#[inline(always)]
fn add(count: u64) {
    let Some(unanswered) = maps::UNANSWERED.get_ptr_mut(0) else { return };
    // `AtomicU64` only loads and stores on this target, which had no compare-and-exchange before Linux 5.12.
    // SAFETY: a map value is aligned to 8 bytes, and stays for the length of the program.
    unsafe { asm!("lock *(u64 *)({} + 0) += {}", in(reg) unanswered, in(reg) count) };
}
