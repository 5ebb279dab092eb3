//! The eBPF programs of bridge-user: one file per program family, maps in [`maps`].
//!
//! Programs are thin shims: they read the context, look things up, and leave every decision to
//! `bridge_common`, where it is tested on the host.

#![no_std]
#![no_main]
// One atomic addition, in `syn_cookies`.
#![feature(asm_experimental_arch)]

mod context;
mod events;
mod handoff;
mod identity;
mod lookup;
mod maps;
mod pending;
mod post_bind;
mod sock_ops;
mod stages;
mod steer;
mod steer_tc;
mod switches;
mod syn_cookies;
mod tickets;
mod track;

/// Helpers that touch sockets need a GPL-compatible licence string.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The verifier rejects an endless loop, so a panic that could be reached fails at load time.
#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
