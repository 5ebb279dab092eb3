//! `sock_ops` on the root cgroup: passes what happens to a socket to the module that handles it.
//!
//! The kernel calls the program for the sockets of **every** network namespace; each of those modules compares the
//! namespace before it acts.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB,
        BPF_SOCK_OPS_TCP_LISTEN_CB, BPF_SOCK_OPS_TIMEOUT_INIT,
    },
    macros::sock_ops,
    programs::SockOpsContext,
};

use crate::{handoff, identity, tickets, track};

/// Entry point. The return value only matters with a reply, which is left at 0: the kernel's own timeout stands.
#[sock_ops]
pub(crate) fn sock_ops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_LISTEN_CB => track::listen(&ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => {
            tickets::establish(&ctx);
            identity::establish(&ctx);
        }
        BPF_SOCK_OPS_TCP_CONNECT_CB => tickets::connect(&ctx),
        BPF_SOCK_OPS_STATE_CB => tickets::change_state(&ctx),
        BPF_SOCK_OPS_TIMEOUT_INIT => request_made(&ctx),
        _ => {}
    }
    1
}

/// The kernel has made a request of a SYN, or sends a SYN of its own.
#[inline(always)]
fn request_made(ctx: &SockOpsContext) {
    let Some(assigned) = handoff::take(ctx) else { return };
    if assigned.loopback != 0 {
        identity::expect(ctx, assigned.target);
    }
}
