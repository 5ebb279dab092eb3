//! What a steering program gave to a listener, and what the kernel makes of it: it comes next on this CPU.
//!
//! A SYN becomes a request, for which `sock_ops` is called with `BPF_SOCK_OPS_TIMEOUT_INIT` (`tcp_conn_request`, Linux 4.13).
//! An ACK with a SYN cookie, and a SYN of TCP Fast Open, become a connection at once: `BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB`.
//! All of it happens in the same softirq, before this CPU sees another packet.
//!
//! Invariant: every packet that reaches a listener of the namespace passes a steering program, and so removes what was
//! left of the one before. (One that somebody else assigned to a socket does not; to be mistaken for what was left it would
//! have to have the same addresses and ports, and to be the next on this CPU.)

use core::ptr::addr_of;

use aya_ebpf::{bindings::bpf_sock_ops, programs::SockOpsContext};
use bridge_common::{
    Ip,
    maps::{ConnectionKey, Given, IDENTITY_LOOPBACK, TargetKey, UnderWay},
};

use crate::{
    context::words,
    cookies, identity, maps,
    steer::{Packet, Service},
    switches,
    track::in_attached_netns,
};

/// `AF_INET` and `AF_INET6`.
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// What this CPU has under way. `None` does not happen.
#[inline(always)]
pub(crate) fn under_way() -> Option<&'static mut UnderWay> {
    // SAFETY: a per-CPU value; the programs that write it do not interrupt each other.
    maps::UNDER_WAY.get_ptr_mut(0).map(|value| unsafe { &mut *value })
}

/// The packet that comes next is nothing of ours yet.
#[inline(always)]
pub(crate) fn forget(under_way: &mut UnderWay) {
    under_way.given.connection.port = 0;
}

/// The packet was given to the service's listener. `counted`: as a SYN in `cookies`, until there is a request.
#[inline(always)]
pub(crate) fn note(under_way: &mut UnderWay, packet: &Packet, service: &Service, counted: bool) {
    if counted {
        cookies::unanswered();
    }
    under_way.given = Given {
        connection: packet.connection(),
        target: TargetKey::new(service.target, service.port),
        looks_local: u16::from(service.identity == IDENTITY_LOOPBACK),
        counted: u16::from(counted),
    };
}

/// The kernel has made a request of a SYN, or sends one of its own.
#[inline(always)]
pub(crate) fn request_made(ctx: &SockOpsContext) {
    let Some(given) = take(ctx) else { return };
    if given.counted != 0 {
        cookies::answered();
    }
    if given.looks_local != 0 {
        identity::expect(ctx, given.target);
    }
}

/// What was given, if this is what the kernel has made of it.
#[inline(always)]
pub(crate) fn take(ctx: &SockOpsContext) -> Option<Given> {
    let given = &mut under_way()?.given;
    if given.connection.port == 0 || !given.connection.is(&key(ctx.ops, given)) {
        return None;
    }
    // Another namespace may have a connection with the same addresses. Below Linux 5.15 it takes what is left of a SYN that
    // the kernel dropped, which is of no use to it: the hooks of `identity` tell the namespaces apart, too.
    if switches::HAVE_NETNS_COOKIE.load() != 0 && !in_attached_netns(ctx) {
        return None;
    }
    let taken = *given;
    given.connection.port = 0;
    Some(taken)
}

/// The connection of a request or socket. One for an IPv4 SYN says that it is an IPv6 one where the listener is, but has the
/// IPv4 addresses.
#[inline(always)]
fn key(ops: *const bpf_sock_ops, given: &Given) -> ConnectionKey {
    let family = if given.connection.source.is_v4() { AF_INET } else { AF_INET6 };
    // SAFETY: the kernel passes a valid context; the verifier checks each access.
    unsafe {
        let (remote4, remote6) =
            (addr_of!((*ops).remote_ip4).read_volatile(), words(addr_of!((*ops).remote_ip6)));
        let (local4, local6) =
            (addr_of!((*ops).local_ip4).read_volatile(), words(addr_of!((*ops).local_ip6)));
        ConnectionKey {
            source: Ip::from_context(family, remote4, remote6),
            gateway: Ip::from_context(family, local4, local6),
            // 32 bits in network byte order, unlike the local port.
            source_port: u32::from_be(addr_of!((*ops).remote_port).read_volatile()) as u16,
            port: addr_of!((*ops).local_port).read_volatile() as u16,
        }
    }
}
