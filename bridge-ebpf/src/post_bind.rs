//! `cgroup/post_bind4|6`: below Linux 5.15, sock_ops cannot tell a socket's network namespace, but these hooks can.
//! They record it under the socket's cookie, for `sock_ops` to read on listen(2).

use aya_ebpf::{EbpfContext as _, helpers::bpf_get_netns_cookie, macros::cgroup_sock, programs::SockContext};

use crate::{context::socket_cookie, maps};

/// The bind(2) goes on.
const ALLOW: i32 = 1;

/// Entry point for IPv4.
#[cgroup_sock(post_bind4)]
pub(crate) fn post_bind4(ctx: SockContext) -> i32 {
    record_netns(&ctx)
}

/// Entry point for IPv6.
#[cgroup_sock(post_bind6)]
pub(crate) fn post_bind6(ctx: SockContext) -> i32 {
    record_netns(&ctx)
}

#[inline(always)]
fn record_netns(ctx: &SockContext) -> i32 {
    // SAFETY: the helper takes the program's context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // A full map evicts its oldest entry; that socket stays untracked until the next attach registers it.
    let _ = maps::SOCKET_NETNS.insert(&socket_cookie(ctx), &netns, 0);
    ALLOW
}
