//! The loopback identity: what accept(2), getpeername(2) and getsockname(2) tell a service about a steered connection.
//!
//! A connection is noted under its addresses when it is given to a listener ([`announce`], from the steering programs,
//! which know the bridge it came over); on its socket when its handshake is done ([`note`], from `sock_ops`); and read
//! from there when the service asks. So no other socket can be meant: not that of another listener on the same address, nor one of
//! a local client, nor the container's own end. And what a socket was told once stays so, whatever is attached later.
//! Bytes pass none of this.

use core::ptr::{addr_of, addr_of_mut};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock_addr, bpf_sock_ops},
    cty::c_void,
    helpers::{bpf_get_netns_cookie, bpf_sk_storage_get, bpf_skc_to_mptcp_sock},
    macros::cgroup_sock_addr,
    programs::{SockAddrContext, SockOpsContext},
};
use bridge_common::{
    Ip,
    maps::{ConnectionKey, IDENTITY_LOOPBACK, TargetKey},
    steer::{Outcome, local_client},
};

use crate::{
    context::words,
    maps,
    steer::{Packet, Service},
    switches,
    track::in_attached_netns,
};

/// The answer stands; these hooks can say nothing else.
const PROCEED: i32 = 1;

/// Notes that a connection was given to a listener, or that it was not.
#[inline(always)]
pub(crate) fn announce(service: &Service, packet: &Packet, outcome: Outcome) {
    if service.identity != IDENTITY_LOOPBACK {
        return;
    }
    let key = packet.connection();
    // A connection that could not be noted, or was forgotten, shows the container's address.
    let _ = match outcome {
        Outcome::Accepted => maps::ARRIVING.insert(&key, &TargetKey::new(service.target, service.port), 0),
        // Whoever takes it now, it is not the service.
        _ => maps::ARRIVING.remove(&key),
    };
}

/// Moves the note to the socket of a connection whose handshake is done. accept(2) cannot return the socket before: it is
/// locked meanwhile.
#[inline(always)]
pub(crate) fn note(ctx: &SockOpsContext) {
    let ops = ctx.ops;
    // SAFETY: the kernel passes a valid context.
    let key = connection_key(ops, unsafe { addr_of!((*ops).family).read_volatile() });
    // SAFETY: the value is copied at once; at worst it is another noted connection's.
    let Some(own) = (unsafe { maps::ARRIVING.get(&key) }).copied() else { return };
    // Another namespace may have a connection with the same addresses. Below Linux 5.15 it takes the note, which is of no
    // use to it: `own_address` tells the namespaces apart, too.
    if switches::HAVE_NETNS_COOKIE.load() != 0 && !in_attached_netns(ctx) {
        return;
    }
    let _ = maps::ARRIVING.remove(&key);
    // SAFETY: the verifier checks that the socket pointers are not null before a helper sees them.
    unsafe {
        let sk: *mut c_void = addr_of!((*ops).__bindgen_anon_2.sk).read_volatile().cast();
        if sk.is_null() {
            return;
        }
        store(sk, own);
        if switches::HAVE_MPTCP_HELPER.load() != 0 {
            // The service holds the MPTCP socket, not its subflows.
            let connection: *mut c_void = bpf_skc_to_mptcp_sock(sk).cast();
            if !connection.is_null() {
                store(connection, own);
            }
        }
    }
}

/// # Safety
/// `sk` is a socket.
#[inline(always)]
unsafe fn store(sk: *mut c_void, mut own: TargetKey) {
    let map = addr_of!(maps::LOCAL).cast_mut().cast();
    // A socket that has a story keeps it: a second subflow of an MPTCP connection changes nothing.
    // SAFETY: the caller's promise; LOCAL is a socket storage map with this value type.
    unsafe {
        bpf_sk_storage_get(
            map,
            sk,
            core::ptr::from_mut(&mut own).cast(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        )
    };
}

/// The connection, with the addresses of that family.
#[inline(always)]
pub(crate) fn connection_key(ops: *const bpf_sock_ops, family: u32) -> ConnectionKey {
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

/// What the service believes its own address, if it is to see a local client.
#[inline(always)]
fn own_address(ctx: &SockAddrContext) -> Option<TargetKey> {
    // SAFETY: the kernel passes a valid context with a socket; the value lives as long as the socket.
    let own = unsafe { *maps::LOCAL.get_ptr_mut(ctx).as_ref()? };
    // SAFETY: allowed in this hook since Linux 5.7.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    (netns == maps::META.get(0)?.netns_cookie).then_some(own)
}

/// Entry point for peers of IPv4 sockets.
#[cgroup_sock_addr(getpeername4)]
pub(crate) fn tell_peer4(ctx: SockAddrContext) -> i32 {
    if let Some(own) = own_address(&ctx) {
        tell4(ctx.sock_addr, local_client(own.addr));
    }
    PROCEED
}

/// Entry point for peers of IPv6 sockets, dual-stack ones too.
#[cgroup_sock_addr(getpeername6)]
pub(crate) fn tell_peer6(ctx: SockAddrContext) -> i32 {
    if let Some(own) = own_address(&ctx) {
        tell6(ctx.sock_addr, local_client(own.addr));
    }
    PROCEED
}

/// Entry point for own addresses of IPv4 sockets.
#[cgroup_sock_addr(getsockname4)]
pub(crate) fn tell_own4(ctx: SockAddrContext) -> i32 {
    if let Some(own) = own_address(&ctx) {
        tell4(ctx.sock_addr, own.addr);
        tell_port(ctx.sock_addr, own.port);
    }
    PROCEED
}

/// Entry point for own addresses of IPv6 sockets, dual-stack ones too.
#[cgroup_sock_addr(getsockname6)]
pub(crate) fn tell_own6(ctx: SockAddrContext) -> i32 {
    if let Some(own) = own_address(&ctx) {
        tell6(ctx.sock_addr, own.addr);
        tell_port(ctx.sock_addr, own.port);
    }
    PROCEED
}

#[inline(always)]
fn tell4(answer: *mut bpf_sock_addr, addr: Ip) {
    // SAFETY: the kernel passes a valid context, and lets these hooks write it a word at a time.
    unsafe { addr_of_mut!((*answer).user_ip4).write_volatile(addr.words[3]) };
}

/// An IPv4 address is told as `::ffff:a.b.c.d`, the form it has here.
#[inline(always)]
fn tell6(answer: *mut bpf_sock_addr, addr: Ip) {
    // SAFETY: as above.
    unsafe {
        addr_of_mut!((*answer).user_ip6[0]).write_volatile(addr.words[0]);
        addr_of_mut!((*answer).user_ip6[1]).write_volatile(addr.words[1]);
        addr_of_mut!((*answer).user_ip6[2]).write_volatile(addr.words[2]);
        addr_of_mut!((*answer).user_ip6[3]).write_volatile(addr.words[3]);
    }
}

#[inline(always)]
fn tell_port(answer: *mut bpf_sock_addr, port: u16) {
    // SAFETY: as above.
    unsafe { addr_of_mut!((*answer).user_port).write_volatile(u32::from(port.to_be())) };
}
