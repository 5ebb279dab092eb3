//! SYN cookies: whether the ACK that ends a handshake may have to be given to the listener.
//!
//! The kernel finds such an ACK's request by itself, unless it answered the SYN with a cookie and kept nothing. Asking for
//! each packet whether the kernel knows its connection would tell (and cost a twentieth of the rate of short connections);
//! instead each SYN is counted until the kernel has made a request of it, which it does not for a cookie (`given`).
//!
//! Invariant: the count is never lower than the number of cookies sent. A SYN that was dropped on the way or for want of
//! room counts as one too, and nothing is ever taken off for a cookie: from then on every packet is asked for.

use core::arch::asm;

use crate::maps;

/// Whether an ACK may be the end of a handshake with a cookie.
#[inline(always)]
pub(crate) fn may_be_in_use() -> bool {
    // SAFETY: an aligned integer that is only ever changed atomically.
    maps::UNANSWERED.get_ptr(0).is_none_or(|count| unsafe { count.read_volatile() } != 0)
}

/// A SYN was given to a listener.
#[inline(always)]
pub(crate) fn unanswered() {
    add(1);
}

/// The kernel has made a request of it.
#[inline(always)]
pub(crate) fn answered() {
    add(u64::MAX);
}

#[inline(always)]
fn add(count: u64) {
    let Some(unanswered) = maps::UNANSWERED.get_ptr_mut(0) else { return };
    // `AtomicU64` only loads and stores on this target, which had no compare-and-exchange before Linux 5.12.
    // SAFETY: a map value is aligned to 8 bytes, and stays for the length of the program.
    unsafe { asm!("lock *(u64 *)({} + 0) += {}", in(reg) unanswered, in(reg) count) };
}
