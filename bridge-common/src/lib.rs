//! The ABI between the eBPF programs (`bridge-ebpf`) and the control plane (`bridge-user`), and the decisions
//! both sides must agree on.
//!
//! Invariants: every type here is `#[repr(C)]` without implicit padding and has a size assertion; every decision
//! is a pure function with host tests; but for what only tests use, the crate is `no_std` and does no I/O. A change to
//! the size or meaning of any type, or to [`names`], needs a new [`ABI_VERSION`].

#![cfg_attr(not(any(test, feature = "document")), no_std)]

pub mod addr;
#[cfg(any(test, feature = "document"))]
pub mod document;
pub mod event;
pub mod kernels;
pub mod maps;
pub mod names;
pub mod registry;
pub mod relay;
pub mod steer;

pub use addr::Ip;

/// Version of the map layout. Pinned objects with another value are never written to; see
/// `bridge-user`'s instance module for what happens instead.
pub const ABI_VERSION: u32 = 9;
