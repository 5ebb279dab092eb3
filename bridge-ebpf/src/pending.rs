//! Pending handshakes: what is to be known of a steered connection from the request that the kernel makes of its SYN to
//! the socket it makes of the request.
//!
//! The socket will have the request's cookie (`inet_csk_clone_lock`, Linux 4.1), and the cookie chooses the slot.

use aya_ebpf::programs::SockOpsContext;
use bridge_common::maps::{PENDING_SLOTS, PendingHandshake, Steered};

use crate::{context::socket_cookie, maps};

/// Remembers a connection until its handshake is done.
#[inline(always)]
pub(crate) fn put(ctx: &SockOpsContext, steered: Steered) {
    let cookie = socket_cookie(ctx);
    let Some(slot) = slot_of(cookie) else { return };
    // SAFETY: a map value stays for the length of the program. A torn value belongs to no socket.
    let before = unsafe { slot.read_volatile() };
    if before.steered().is_loopback() {
        // A handshake that did not end, or not yet.
        let _ = maps::PENDING_LRU.insert(&before.cookie(), &before.steered(), 0);
    }
    // SAFETY: as above.
    unsafe { slot.write_volatile(PendingHandshake::new(cookie, steered)) };
}

/// Removes the connection of the context's socket, and returns what was remembered.
#[inline(always)]
pub(crate) fn take(ctx: &SockOpsContext) -> Option<Steered> {
    let cookie = socket_cookie(ctx);
    let slot = slot_of(cookie)?;
    // SAFETY: as in `put`.
    let pending = unsafe { slot.read_volatile() };
    if pending.cookie() == cookie {
        // SAFETY: as in `put`.
        unsafe { slot.write_volatile(PendingHandshake::NONE) };
        return Some(pending.steered());
    }
    // SAFETY: the value is copied at once. At worst it is that of another connection with the loopback identity.
    let steered = unsafe { maps::PENDING_LRU.get(&cookie) }.copied()?;
    let _ = maps::PENDING_LRU.remove(&cookie);
    Some(steered)
}

#[inline(always)]
fn slot_of(cookie: u64) -> Option<*mut PendingHandshake> {
    maps::PENDING.get_ptr_mut((cookie % u64::from(PENDING_SLOTS)) as u32)
}
