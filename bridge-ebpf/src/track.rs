//! Listener tracking: puts every new listener that an attachment wants into the listener map, so that a service that
//! restarts is served again with no userspace running.
//!
//! The program sees listen(2) in **every** network namespace. A listener counts only if it belongs to the attached
//! one; otherwise a container that listens on its own 127.0.0.1 would take the service's place.

use core::ptr::addr_of;

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST, bpf_sock_ops},
    cty::c_void,
    helpers::{bpf_skc_to_mptcp_sock, bpf_sock_hash_update},
    programs::SockOpsContext,
};
use bridge_common::{
    Ip,
    event::EventKind,
    maps::{LISTENER_SLOTS, MIN_LISTENER_SLOTS, TargetKey, TrackStats, overflow_slot},
};

use crate::{
    context::{in_attached_netns, socket_cookie, words},
    events, maps, switches,
};

/// `-EEXIST`: another listener holds the slot.
const EEXIST: i64 = -17;

/// The two shares of slots that there are.
const ALL_SLOTS: u32 = LISTENER_SLOTS as u32;
const FEW_SLOTS: u16 = MIN_LISTENER_SLOTS as u16;

/// A socket begins to listen.
#[inline(always)]
pub(crate) fn listen(ctx: &SockOpsContext) {
    let key = target_key(ctx.ops);
    // SAFETY: the value is a plain integer.
    let Some(&slots) = (unsafe { maps::TARGETS.get(&key) }) else { return };
    let Some(stats) = maps::TRACK_STATS.get_ptr_mut(0) else { return };
    // SAFETY: a per-CPU value.
    let stats: &mut TrackStats = unsafe { &mut *stats };
    if !in_attached_netns(ctx) {
        stats.foreign += 1;
        return;
    }
    let (kind, error) = if is_mptcp(ctx.ops) {
        stats.mptcp += 1;
        // It cannot be full: it is as large as TARGETS, and holds only keys of TARGETS.
        let _ = maps::MPTCP_TARGETS.insert(&key, &socket_cookie(ctx), 0);
        (EventKind::MptcpListener, 0)
    } else {
        // There is no entry unless the service listened with MPTCP before.
        let _ = maps::MPTCP_TARGETS.remove(&key);
        insert(ctx, &key, slots, stats)
    };
    events::listener(ctx, kind, &key, error);
}

#[inline(always)]
fn target_key(ops: *const bpf_sock_ops) -> TargetKey {
    // SAFETY: the kernel passes a valid context; the verifier checks each access.
    unsafe {
        let family = addr_of!((*ops).family).read_volatile();
        let (v4, v6) = (addr_of!((*ops).local_ip4).read_volatile(), words(addr_of!((*ops).local_ip6)));
        TargetKey::new(Ip::from_context(family, v4, v6), addr_of!((*ops).local_port).read_volatile() as u16)
    }
}

/// An MPTCP subflow listener must not enter a SOCKMAP: kernels before 6.1.159 and 6.12.60 would let it in and
/// could crash.
#[inline(always)]
fn is_mptcp(ops: *mut bpf_sock_ops) -> bool {
    if switches::HAVE_MPTCP_HELPER.load() == 0 {
        return false;
    }
    // SAFETY: the verifier checks that the socket pointer is not null before the helper sees it.
    unsafe {
        let sk: *mut c_void = addr_of!((*ops).__bindgen_anon_2.sk).read_volatile().cast();
        !sk.is_null() && !bpf_skc_to_mptcp_sock(sk).is_null()
    }
}

/// Written so that what follows the slots is there once: with a way out to it from each slot, and as many more for the
/// slots that an address does not have, the verifier did not come to an end on 6.1. Returns the event.
#[inline(always)]
fn insert(ctx: &SockOpsContext, key: &TargetKey, slots: u32, stats: &mut TrackStats) -> (EventKind, u64) {
    let ret = match slots {
        ALL_SLOTS.. => take_first_free::<LISTENER_SLOTS>(ctx, key),
        _ => take_first_free::<FEW_SLOTS>(ctx, key),
    };
    if ret != EEXIST {
        return record(ret, &mut stats.tracked, &mut stats.refused);
    }
    let slot = overflow_slot(socket_cookie(ctx), slots);
    let ret = update(ctx, key, slot, BPF_ANY);
    record(ret, &mut stats.replaced, &mut stats.refused)
}

/// `EEXIST` if other listeners hold all of the first `SLOTS` slots.
#[inline(always)]
fn take_first_free<const SLOTS: u16>(ctx: &SockOpsContext, key: &TargetKey) -> i64 {
    for slot in 0..SLOTS {
        let ret = update(ctx, key, slot, BPF_NOEXIST);
        if ret != EEXIST {
            return ret;
        }
    }
    EEXIST
}

#[inline(always)]
fn update(ctx: &SockOpsContext, key: &TargetKey, slot: u16, flags: u32) -> i64 {
    let mut entry = key.slot(slot);
    // SAFETY: LISTENERS is a SOCKHASH with this key type.
    unsafe {
        bpf_sock_hash_update(
            ctx.ops,
            maps::LISTENERS.as_ptr(),
            core::ptr::from_mut(&mut entry).cast(),
            u64::from(flags),
        )
    }
}

#[inline(always)]
fn record(ret: i64, done: &mut u64, refused: &mut u64) -> (EventKind, u64) {
    if ret == 0 {
        *done += 1;
        (EventKind::Tracked, 0)
    } else {
        *refused += 1;
        (EventKind::ListenerRefused, ret.unsigned_abs())
    }
}
