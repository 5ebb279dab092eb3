//! Tickets: which container a connection is from, where an allow-list names containers.
//!
//! An address proves nothing: containers inherit each other's, and a neighbour with CAP_NET_RAW forges them. So the
//! kernel that runs the container notes the connect(2) itself: `sock_ops` is called before the SYN leaves
//! (`tcp_connect`), with addresses and ports chosen, and writes a ticket for exactly this connection, with the cookie
//! of the socket's network namespace, a number that is never given out twice. `steer` and `steer_tc` ask for the ticket
//! of a source that no prefix of the list admits.
//!
//! A ticket is valid until the service's side of the connection is established, or the client's socket is closed: it
//! admits the SYN, its repetitions, and the ACK to a SYN cookie.

use core::ptr::addr_of;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_SOCK_OPS_STATE_CB_FLAG, BPF_TCP_CLOSE, bpf_sock_ops},
    helpers::{bpf_get_netns_cookie, bpf_sock_ops_cb_flags_set},
    macros::cgroup_sock_addr,
    programs::{SockAddrContext, SockOpsContext},
};
use bridge_common::maps::{ConnectionKey, NamedKey};

use crate::{
    context::{self, socket_cookie},
    maps,
};

/// The connect(2) goes on.
const PROCEED: i32 = 1;

/// A socket connects: if it is one of a container that some list names, it gets a ticket.
#[inline(always)]
pub(crate) fn connect(ctx: &SockOpsContext) {
    let netns = context::netns_cookie(ctx);
    // SAFETY: the value is not used.
    if unsafe { maps::CLIENTS.get(&netns) }.is_none() {
        return;
    }
    // Its end ends the ticket. Other programs' flags stay.
    // SAFETY: the kernel passes a valid context of a full socket.
    unsafe {
        let flags = addr_of!((*ctx.ops).bpf_sock_ops_cb_flags).read_volatile();
        bpf_sock_ops_cb_flags_set(ctx.ops, (flags | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
    }
    let _ = maps::TICKETS.insert(&own(ctx.ops), &netns, 0);
}

/// A socket changes its state.
#[inline(always)]
pub(crate) fn change_state(ctx: &SockOpsContext) {
    // SAFETY: the kernel passes a valid context; the second argument is the new state.
    let state = unsafe { addr_of!((*ctx.ops).__bindgen_anon_1.args[1]).read_volatile() };
    if state == BPF_TCP_CLOSE {
        end(&own(ctx.ops));
    }
}

/// The service's side of a connection is established.
#[inline(always)]
pub(crate) fn establish(ctx: &SockOpsContext) {
    end(&accepted(ctx.ops));
}

/// Ends the ticket of a connection, if there is one.
#[inline(always)]
pub(crate) fn end(connection: &ConnectionKey) {
    // Looking is cheaper than removing, which takes a lock.
    // SAFETY: the value is not used.
    if unsafe { maps::TICKETS.get(connection) }.is_some() {
        let _ = maps::TICKETS.remove(connection);
    }
}

/// Whether the connection is from a container that the allow-list names.
#[inline(always)]
pub(crate) fn admits(allow_set: u32, connection: &ConnectionKey) -> bool {
    // SAFETY: the value is a plain integer, copied at once.
    let Some(netns) = unsafe { maps::TICKETS.get(connection) }.copied() else { return false };
    // SAFETY: the value is not used.
    unsafe { maps::NAMED.get(&NamedKey { netns, set: allow_set, pad: 0 }) }.is_some()
}

/// The connection of the context's socket, which has connected: its own end is the source. An IPv6 socket has IPv4
/// addresses in their mapped form.
#[inline(always)]
fn own(ops: *const bpf_sock_ops) -> ConnectionKey {
    accepted(ops).reversed()
}

/// The connection of the context's socket, which was accepted.
#[inline(always)]
fn accepted(ops: *const bpf_sock_ops) -> ConnectionKey {
    // SAFETY: the kernel passes a valid context; the verifier checks each access.
    context::connection(ops, unsafe { addr_of!((*ops).family).read_volatile() })
}

/// Entry point for connect(2) on IPv4 sockets, below Linux 5.15: `sock_ops` cannot tell a socket's namespace there.
#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    record_netns(&ctx)
}

/// The same for IPv6 sockets.
#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    record_netns(&ctx)
}

#[inline(always)]
fn record_netns(ctx: &SockAddrContext) -> i32 {
    // SAFETY: the helper takes the program's context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: the value is not used.
    if unsafe { maps::CLIENTS.get(&netns) }.is_some() {
        let _ = maps::SOCKET_NETNS.insert(&socket_cookie(ctx), &netns, 0);
    }
    PROCEED
}
