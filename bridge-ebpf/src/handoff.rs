//! The per-CPU hand-off from the steering programs to `sock_ops`: which packet was assigned to a listener last.
//!
//! The kernel makes a request of a SYN, and calls `sock_ops` with `BPF_SOCK_OPS_TIMEOUT_INIT` for it
//! (`tcp_conn_request`, Linux 4.13). Of an ACK with a SYN cookie and of a SYN with TCP Fast Open it makes a socket at
//! once, and calls `sock_ops` with `BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB`. Both happen in the same softirq, before this
//! CPU sees another packet.
//!
//! A note that nobody took, because the kernel dropped the SYN, must not be taken by a later connection with the same
//! addresses and ports, whose handshake may end on this CPU. So a note about the loopback identity counts only while
//! `ASSIGNED` has the connection, too: every later packet of that connection that needs a listener takes it out there,
//! on whichever CPU it arrives, and so does its request.
//!
//! Invariant: every packet that reaches a listener of the namespace passes a steering program, which clears the
//! assignment of the packet before. (A packet that another tc program assigned to a socket does not pass one. It is
//! mistaken for the assigned one only if it has the same addresses and ports, and is the next on this CPU.)

use aya_ebpf::programs::SockOpsContext;
use bridge_common::maps::{
    ASSIGNED_SLOTS, Assignment, ConnectionKey, Handoff, IDENTITY_LOOPBACK, Steered, TargetKey,
};

use crate::{
    context::{self, AF_INET, AF_INET6, in_attached_netns},
    lookup::{AttachmentFields, Packet},
    maps, switches, syn_cookies,
};

/// This CPU's hand-off. `None` does not happen.
#[inline(always)]
pub(crate) fn this_cpu() -> Option<&'static mut Handoff> {
    // SAFETY: a per-CPU value; the programs that write it do not interrupt each other.
    maps::HANDOFF.get_ptr_mut(0).map(|value| unsafe { &mut *value })
}

/// Clears the assignment: the packet that arrives now is not assigned yet.
#[inline(always)]
pub(crate) fn clear(handoff: &mut Handoff, packet: &Packet) {
    give_up(handoff);
    handoff.left_alone.port = 0;
    let _ = forget(&packet.connection());
}

/// Records why the packet is left to the kernel and to `steer`.
#[inline(always)]
pub(crate) fn leave(packet: &Packet, why: u32) {
    if let Some(handoff) = this_cpu() {
        handoff.left_alone = packet.connection();
        handoff.left_why = why;
    }
}

/// Why `steer_tc` left this packet alone; 0 if it did not.
#[inline(always)]
pub(crate) fn left(handoff: &Handoff, packet: &Packet) -> u32 {
    if handoff.left_alone.is(&packet.connection()) { handoff.left_why } else { 0 }
}

/// Records that the packet is assigned to a listener. `counted`: it is a SYN, and enters the SYN count.
#[inline(always)]
pub(crate) fn record(handoff: &mut Handoff, packet: &Packet, attachment: &AttachmentFields, counted: bool) {
    give_up(handoff);
    if counted {
        syn_cookies::syn_assigned();
    }
    let connection = packet.connection();
    let mut steered = Steered { target: Steered::NO_TARGET, attachment: attachment.id };
    if attachment.identity == IDENTITY_LOOPBACK {
        steered.target = TargetKey::new(attachment.target, attachment.port);
        note(&connection);
    } else {
        let _ = forget(&connection);
    }
    handoff.assigned = Assignment { connection, steered, counted: u32::from(counted) };
}

/// Nobody took the assignment of the packet before: the kernel made nothing of it.
#[inline(always)]
fn give_up(handoff: &mut Handoff) {
    if handoff.assigned.connection.port != 0 && handoff.assigned.counted != 0 {
        syn_cookies::no_request();
    }
    handoff.assigned.connection.port = 0;
}

/// What a note says of this connection counts.
#[inline(always)]
fn note(connection: &ConnectionKey) {
    let fold = connection.fold();
    // SAFETY: a map value stays for the length of the program; an aligned integer is written as a whole.
    if let Some(slot) = slot_of(fold) {
        unsafe { slot.write_volatile(fold) };
    }
}

/// What a note says of this connection, on whichever CPU, is of the past. Returns whether it counted until now.
#[inline(always)]
fn forget(connection: &ConnectionKey) -> bool {
    let fold = connection.fold();
    let Some(slot) = slot_of(fold) else { return false };
    // SAFETY: as in `note`.
    unsafe {
        let counts = slot.read_volatile() == fold;
        if counts {
            slot.write_volatile(0);
        }
        counts
    }
}

#[inline(always)]
fn slot_of(fold: u64) -> Option<*mut u64> {
    maps::ASSIGNED.get_ptr_mut((fold >> 32) as u32 % ASSIGNED_SLOTS)
}

/// Takes the assignment, if the context's request or socket is the one that the kernel made of it.
#[inline(always)]
pub(crate) fn take(ctx: &SockOpsContext) -> Option<Steered> {
    let assigned = &mut this_cpu()?.assigned;
    // If the listener is an IPv6 one, the context's family is IPv6 for IPv4 SYNs too, although the addresses are IPv4.
    let family = if assigned.connection.source.is_v4() { AF_INET } else { AF_INET6 };
    if assigned.connection.port == 0 || !assigned.connection.is(&context::connection(ctx.ops, family)) {
        return None;
    }
    // Another namespace may have a connection with the same addresses. Below Linux 5.15 it may take the assignment of a
    // SYN that the kernel dropped. That has no effect: the hooks in `identity` compare the namespace, too.
    if switches::HAVE_NETNS_COOKIE.load() != 0 && !in_attached_netns(ctx) {
        return None;
    }
    let mut taken = *assigned;
    assigned.connection.port = 0;
    if taken.counted != 0 {
        syn_cookies::request_made();
    }
    if taken.steered.is_loopback() && !forget(&taken.connection) {
        taken.steered.target = Steered::NO_TARGET;
    }
    Some(taken.steered)
}
