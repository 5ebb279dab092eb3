//! The loopback identity: what accept(2), getpeername(2) and getsockname(2) tell a service about a steered connection.
//!
//! The identity of a connection is decided when its SYN is assigned to a listener, and kept by socket cookie:
//! 1. `pending` keeps it, under the cookie of the request that the kernel makes of the SYN. The socket will have the
//!    same cookie.
//! 2. [`establish`] moves it to `IDENTITIES` when the handshake is done.
//! 3. The hooks look it up when the service asks.
//!
//! So the answer concerns this socket alone: no other listener on the same address, no local client, and not the
//! container's own end of the connection. It never changes, whatever is attached later. No program runs for its bytes.

use core::ptr::{addr_of, addr_of_mut, null_mut};

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
    maps::{Steered, TargetKey},
    steer::local_client,
};

use crate::{context::socket_cookie, maps, switches};

/// The system call goes on. The kernel accepts no other return value from these hooks.
const PROCEED: i32 = 1;

/// Records the identity of a connection that is established. Returns whether it is a new one: another subflow of an
/// MPTCP connection is none.
#[inline(always)]
pub(crate) fn establish(ctx: &SockOpsContext, steered: &Steered) -> bool {
    // SAFETY: the verifier checks that the socket pointers are not null before a helper sees them.
    unsafe {
        let sk: *mut c_void = addr_of!((*ctx.ops).__bindgen_anon_2.sk).read_volatile().cast();
        if sk.is_null() {
            return true;
        }
        if switches::HAVE_MPTCP_HELPER.load() != 0 {
            // The service holds the MPTCP socket, not its subflows.
            let connection: *mut c_void = bpf_skc_to_mptcp_sock(sk).cast();
            if !connection.is_null() {
                return store(connection, steered.target);
            }
        }
        if steered.is_loopback() && maps::IDENTITIES.insert(&socket_cookie(ctx), &steered.target, 0).is_err()
        {
            store(sk, steered.target);
        }
    }
    true
}

/// Records the identity with the socket, which keeps the one it has: another subflow of an MPTCP connection changes
/// nothing. Returns whether it had none.
///
/// # Safety
/// `sk` is a socket.
#[inline(always)]
unsafe fn store(sk: *mut c_void, mut target: TargetKey) -> bool {
    let map = addr_of!(maps::SK_IDENTITY).cast_mut().cast();
    // SAFETY: the caller's promise; SK_IDENTITY is a socket storage map with this value type.
    unsafe {
        if !bpf_sk_storage_get(map, sk, null_mut(), 0).is_null() {
            return false;
        }
        let value = core::ptr::from_mut(&mut target).cast();
        bpf_sk_storage_get(map, sk, value, u64::from(BPF_SK_STORAGE_GET_F_CREATE));
    }
    true
}

/// Entry point for sockets that their owner closes: nobody can ask any more.
#[cgroup_sock(sock_release)]
pub(crate) fn sock_release(ctx: SockContext) -> i32 {
    let _ = maps::IDENTITIES.remove(&socket_cookie(&ctx));
    PROCEED
}

/// The target of a socket with the loopback identity.
#[inline(always)]
fn loopback_target(ctx: &SockAddrContext) -> Option<TargetKey> {
    // SAFETY: the entry is not removed during a system call on its socket.
    let target = match unsafe { maps::IDENTITIES.get(&socket_cookie(ctx)) } {
        Some(target) => *target,
        // SAFETY: the kernel passes a valid context with a socket; the value lives as long as the socket.
        None => unsafe { *maps::SK_IDENTITY.get_ptr_mut(ctx).as_ref()? },
    };
    if target.port == 0 {
        return None;
    }
    if switches::HAVE_NETNS_COOKIE.load() != 0 {
        return Some(target);
    }
    // SAFETY: allowed in this hook since Linux 5.7.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    (netns == maps::META.get(0)?.netns_cookie).then_some(target)
}

/// Entry point for peer addresses of IPv4 sockets.
#[cgroup_sock_addr(getpeername4)]
pub(crate) fn getpeername4(ctx: SockAddrContext) -> i32 {
    if let Some(target) = loopback_target(&ctx) {
        write_ipv4(ctx.sock_addr, local_client(target.addr));
    }
    PROCEED
}

/// Entry point for peer addresses of IPv6 sockets, including dual-stack ones.
#[cgroup_sock_addr(getpeername6)]
pub(crate) fn getpeername6(ctx: SockAddrContext) -> i32 {
    if let Some(target) = loopback_target(&ctx) {
        write_ipv6(ctx.sock_addr, local_client(target.addr));
    }
    PROCEED
}

/// Entry point for own addresses of IPv4 sockets.
#[cgroup_sock_addr(getsockname4)]
pub(crate) fn getsockname4(ctx: SockAddrContext) -> i32 {
    if let Some(target) = loopback_target(&ctx) {
        write_ipv4(ctx.sock_addr, target.addr);
        write_port(ctx.sock_addr, target.port);
    }
    PROCEED
}

/// Entry point for own addresses of IPv6 sockets, including dual-stack ones.
#[cgroup_sock_addr(getsockname6)]
pub(crate) fn getsockname6(ctx: SockAddrContext) -> i32 {
    if let Some(target) = loopback_target(&ctx) {
        write_ipv6(ctx.sock_addr, target.addr);
        write_port(ctx.sock_addr, target.port);
    }
    PROCEED
}

#[inline(always)]
fn write_ipv4(answer: *mut bpf_sock_addr, addr: Ip) {
    // SAFETY: the kernel passes a valid context, and lets these hooks write it a word at a time.
    unsafe { addr_of_mut!((*answer).user_ip4).write_volatile(addr.words[3]) };
}

/// An IPv4 address becomes `::ffff:a.b.c.d`, the form it already has in [`Ip`].
#[inline(always)]
fn write_ipv6(answer: *mut bpf_sock_addr, addr: Ip) {
    // SAFETY: as above.
    unsafe {
        addr_of_mut!((*answer).user_ip6[0]).write_volatile(addr.words[0]);
        addr_of_mut!((*answer).user_ip6[1]).write_volatile(addr.words[1]);
        addr_of_mut!((*answer).user_ip6[2]).write_volatile(addr.words[2]);
        addr_of_mut!((*answer).user_ip6[3]).write_volatile(addr.words[3]);
    }
}

#[inline(always)]
fn write_port(answer: *mut bpf_sock_addr, port: u16) {
    // SAFETY: as above.
    unsafe { addr_of_mut!((*answer).user_port).write_volatile(u32::from(port.to_be())) };
}
