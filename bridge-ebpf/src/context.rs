//! Reading a program's context: addresses, and whose socket it is.
//!
//! The verifier accepts only loads at a constant offset, 32 bits at a time. Both families' words are therefore read
//! unconditionally and chosen between afterwards (`Ip::from_context`): behind a branch, the compiler merges the loads
//! of the two arms into one with a variable offset.

use core::ptr::addr_of;

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock_ops,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    programs::SockOpsContext,
};

use bridge_common::{Ip, maps::ConnectionKey};

use crate::{maps, switches};

/// The cookie of the context's socket.
#[inline(always)]
pub(crate) fn socket_cookie<C: EbpfContext>(ctx: &C) -> u64 {
    // SAFETY: allowed for sock_ops since Linux 4.12, and for cgroup/sock and cgroup/sock_addr since 5.7.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// A socket whose namespace is unknown is foreign.
#[inline(always)]
pub(crate) fn in_attached_netns(ctx: &SockOpsContext) -> bool {
    let Some(meta) = maps::META.get(0) else { return false };
    let cookie = netns_cookie(ctx);
    cookie != 0 && cookie == meta.netns_cookie
}

/// The cookie of the network namespace of the context's socket; 0 if it is not known.
#[inline(always)]
pub(crate) fn netns_cookie(ctx: &SockOpsContext) -> u64 {
    if switches::HAVE_NETNS_COOKIE.load() != 0 {
        // SAFETY: allowed for sock_ops where the switch is on.
        unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
    } else {
        // SAFETY: the value is a plain integer.
        unsafe { maps::SOCKET_NETNS.get(&socket_cookie(ctx)) }.copied().unwrap_or(0)
    }
}

/// `AF_INET` and `AF_INET6`.
pub(crate) const AF_INET: u32 = 2;
pub(crate) const AF_INET6: u32 = 10;

/// The connection of the context's request or socket, as this end sees it: the gateway is its own address. `family` is
/// that of the addresses, which the context's own need not be.
#[inline(always)]
pub(crate) fn connection(ops: *const bpf_sock_ops, family: u32) -> ConnectionKey {
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

/// Reads four context words.
///
/// # Safety
/// `words` points to four readable context words.
#[inline(always)]
pub(crate) unsafe fn words(words: *const [u32; 4]) -> [u32; 4] {
    let word = words.cast::<u32>();
    // SAFETY: the caller's promise.
    unsafe { [0, 1, 2, 3].map(|i| word.add(i).read_volatile()) }
}
