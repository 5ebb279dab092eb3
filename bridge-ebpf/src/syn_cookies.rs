//! The SYN count: whether an ACK may end a handshake that the kernel answered with a SYN cookie.
//!
//! The kernel finds the request of an ordinary handshake by itself. A SYN cookie leaves no request, so `steer_tc` must
//! assign the ACK to the listener, too. Looking up each packet's connection would tell the two apart, at the cost of a
//! twentieth of the rate of short connections. Instead each assigned SYN is counted until the kernel makes a request of
//! it (`handoff`); for a cookie it makes none.
//!
//! Invariant: the count is never lower than the number of cookies sent. A SYN that is dropped, on its way or by a full
//! accept queue, stays counted as well, and nothing lowers the count for a cookie: from then on every packet is looked
//! up.

use core::arch::asm;

use crate::maps;

/// Whether an ACK may end a handshake with a SYN cookie.
#[inline(always)]
pub(crate) fn may_be_in_use() -> bool {
    // SAFETY: an aligned integer that is only ever changed atomically.
    maps::SYN_COUNT.get_ptr(0).is_none_or(|count| unsafe { count.read_volatile() } != 0)
}

/// Counts a SYN that is assigned to a listener.
#[inline(always)]
pub(crate) fn syn_assigned() {
    add(1);
}

/// Takes off a SYN that the kernel has made a request of.
#[inline(always)]
pub(crate) fn request_made() {
    add(u64::MAX);
}

#[inline(always)]
fn add(difference: u64) {
    let Some(count) = maps::SYN_COUNT.get_ptr_mut(0) else { return };
    // `AtomicU64` only loads and stores on this target, which had no compare-and-exchange before Linux 5.12.
    // SAFETY: a map value is aligned to 8 bytes, and stays for the length of the program.
    unsafe { asm!("lock *(u64 *)({} + 0) += {}", in(reg) count, in(reg) difference) };
}
