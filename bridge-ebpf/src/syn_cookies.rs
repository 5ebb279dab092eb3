//! The SYN count: whether an ACK may end a handshake that the kernel answered with a SYN cookie.
//!
//! The kernel finds the request of an ordinary handshake by itself. A SYN cookie leaves no request, so `steer_tc` must
//! assign the ACK to the listener, too. Looking up each packet's connection would tell the two apart, at the cost of a
//! twentieth of the rate of short connections. Instead each assigned SYN is pending until the kernel makes a request of
//! it (`handoff`), or until the next packet for a listener on this CPU, which means that it made none: a cookie, or the
//! SYN was dropped. Then ACKs are looked up for as long as a cookie is valid, and no longer.
//!
//! Invariant: from a SYN cookie until it is invalid, ACKs are looked up.

use core::{arch::asm, ptr::addr_of_mut};

use aya_ebpf::helpers::bpf_ktime_get_ns;
use bridge_common::{maps::SynCount, steer::SYN_COOKIE_NS};

use crate::maps;

/// Whether an ACK may end a handshake with a SYN cookie.
#[inline(always)]
pub(crate) fn may_be_in_use() -> bool {
    let Some(count) = maps::SYN_COUNT.get_ptr(0) else { return false };
    // SAFETY: aligned integers, each written as a whole.
    let count = unsafe { count.read_volatile() };
    // The clock is read only where it matters.
    // SAFETY: a helper without preconditions.
    (count.pending != 0 || count.until_ns != 0) && count.may_be_in_use(unsafe { bpf_ktime_get_ns() })
}

/// Counts a SYN that is assigned to a listener.
#[inline(always)]
pub(crate) fn syn_assigned() {
    let Some(count) = maps::SYN_COUNT.get_ptr_mut(0) else { return };
    // SAFETY: a map value stays for the length of the program; an aligned integer is written as a whole.
    unsafe { addr_of_mut!((*count).assigned_ns).write_volatile(bpf_ktime_get_ns()) };
    add(count, 1);
}

/// Takes off a SYN that the kernel has made a request or a socket of.
#[inline(always)]
pub(crate) fn request_made() {
    let Some(count) = maps::SYN_COUNT.get_ptr_mut(0) else { return };
    add(count, u64::MAX);
}

/// Takes off a SYN that the kernel has made nothing of, perhaps because it sent a cookie.
#[inline(always)]
pub(crate) fn no_request() {
    let Some(count) = maps::SYN_COUNT.get_ptr_mut(0) else { return };
    // SAFETY: as above. It is written first, so that there is no moment without either.
    unsafe { addr_of_mut!((*count).until_ns).write_volatile(bpf_ktime_get_ns() + SYN_COOKIE_NS) };
    add(count, u64::MAX);
}

/// Adds to the pending SYNs, which come first in the value.
#[inline(always)]
fn add(count: *mut SynCount, difference: u64) {
    // `AtomicU64` only loads and stores on this target, which had no compare-and-exchange before Linux 5.12.
    // SAFETY: a map value is aligned to 8 bytes, and stays for the length of the program.
    unsafe { asm!("lock *(u64 *)({} + 0) += {}", in(reg) count, in(reg) difference) };
}
