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
use bridge_common::maps::Stage;

use crate::{handoff, identity, pending, stages, tickets, track};

/// Entry point. The return value only matters with a reply, which is left at 0: the kernel's own timeout stands.
#[sock_ops]
pub(crate) fn sock_ops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_LISTEN_CB => track::listen(&ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => {
            tickets::establish(&ctx);
            established(&ctx);
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
    let Some(steered) = handoff::take(ctx) else { return };
    stages::reached(steered.attachment, Stage::Answered);
    pending::put(ctx, steered);
}

/// The handshake of a connection is done. accept(2) cannot return the socket earlier, because the kernel holds its
/// lock.
#[inline(always)]
fn established(ctx: &SockOpsContext) {
    // The kernel makes a socket without a request of an ACK with a SYN cookie, and of a SYN with Fast Open.
    let Some(steered) = pending::take(ctx).or_else(|| handoff::take(ctx)) else { return };
    if identity::establish(ctx, &steered) {
        stages::reached(steered.attachment, Stage::Accepted);
    }
}
