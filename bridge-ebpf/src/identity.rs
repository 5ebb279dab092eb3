//! The loopback identity: what accept(2), getpeername(2) and getsockname(2) tell a service about a steered connection.
//!
//! What a steering program gave to a listener of an attachment with this identity is noted under the cookie of the request
//! that the kernel makes of it ([`expect`]), which is the socket's own later; then under that of the socket, when the
//! handshake is done ([`establish`]); and read from there when the service asks. So no other socket can be meant: not
//! that of another listener on the same address, nor one of a local client, nor the container's own end. And what a socket
//! was told once stays so, whatever is attached later. Bytes pass none of this.

use core::ptr::{addr_of, addr_of_mut};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock_addr},
    cty::c_void,
    helpers::{bpf_get_netns_cookie, bpf_sk_storage_get, bpf_skc_to_mptcp_sock},
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext, SockOpsContext},
};
use bridge_common::{
    Ip,
    maps::{ARRIVING_SLOTS, Arriving, TargetKey},
    steer::local_client,
};

use crate::{context::socket_cookie, given, maps, switches};

/// The answer stands; these hooks can say nothing else.
const PROCEED: i32 = 1;

/// The service of a request's connection is to see a local client. The socket made of the request will have its cookie
/// (`inet_csk_clone_lock`, Linux 4.1).
#[inline(always)]
pub(crate) fn expect(ctx: &SockOpsContext, own: TargetKey) {
    let cookie = socket_cookie(ctx);
    let Some(place) = place_of(cookie) else { return };
    // SAFETY: a map value stays for the length of the program. A mixture of two values is nobody's.
    let before = unsafe { place.read_volatile() };
    if before.cookie() != Arriving::NONE.cookie() {
        // A handshake that did not end, or not yet.
        let _ = maps::OVERTAKEN.insert(&before.cookie(), &before.own(), 0);
    }
    // SAFETY: as above.
    unsafe { place.write_volatile(Arriving::new(cookie, own)) };
}

/// The handshake of a connection is done: puts down what its service is to see. accept(2) cannot return the socket before:
/// it is locked meanwhile.
#[inline(always)]
pub(crate) fn establish(ctx: &SockOpsContext) {
    let cookie = socket_cookie(ctx);
    let Some(own) = arrived(cookie).or_else(|| given_at_once(ctx)) else { return };
    // SAFETY: the verifier checks that the socket pointers are not null before a helper sees them.
    unsafe {
        let sk: *mut c_void = addr_of!((*ctx.ops).__bindgen_anon_2.sk).read_volatile().cast();
        if sk.is_null() {
            return;
        }
        if switches::HAVE_MPTCP_HELPER.load() != 0 {
            // The service holds the MPTCP socket, not its subflows.
            let connection: *mut c_void = bpf_skc_to_mptcp_sock(sk).cast();
            if !connection.is_null() {
                return store(connection, own);
            }
        }
        if maps::STORIES.insert(&cookie, &own, 0).is_err() {
            store(sk, own);
        }
    }
}

/// What was given without a request in between.
#[inline(always)]
fn given_at_once(ctx: &SockOpsContext) -> Option<TargetKey> {
    let given = given::take(ctx)?;
    (given.looks_local != 0).then_some(given.target)
}

/// What was noted at the SYN, which is forgotten now.
#[inline(always)]
fn arrived(cookie: u64) -> Option<TargetKey> {
    let place = place_of(cookie)?;
    // SAFETY: as in `expect`.
    let arriving = unsafe { place.read_volatile() };
    if arriving.cookie() == cookie {
        // SAFETY: as in `expect`.
        unsafe { place.write_volatile(Arriving::NONE) };
        return Some(arriving.own());
    }
    // SAFETY: the value is copied at once; at worst it is another connection's that is shown a local client.
    let own = unsafe { maps::OVERTAKEN.get(&cookie) }.copied()?;
    let _ = maps::OVERTAKEN.remove(&cookie);
    Some(own)
}

#[inline(always)]
fn place_of(cookie: u64) -> Option<*mut Arriving> {
    maps::ARRIVING.get_ptr_mut((cookie % u64::from(ARRIVING_SLOTS)) as u32)
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

/// Entry point for sockets that their owner closes: nobody can ask any more.
#[cgroup_sock(sock_release)]
pub(crate) fn forget(ctx: SockContext) -> i32 {
    let _ = maps::STORIES.remove(&socket_cookie(&ctx));
    PROCEED
}

/// What the service believes its own address, if it is to see a local client.
#[inline(always)]
fn own_address(ctx: &SockAddrContext) -> Option<TargetKey> {
    // SAFETY: a socket's story is not removed while it is asked for.
    let own = match unsafe { maps::STORIES.get(&socket_cookie(ctx)) } {
        Some(own) => *own,
        // SAFETY: the kernel passes a valid context with a socket; the value lives as long as the socket.
        None => unsafe { *maps::LOCAL.get_ptr_mut(ctx).as_ref()? },
    };
    if switches::HAVE_NETNS_COOKIE.load() != 0 {
        return Some(own);
    }
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
