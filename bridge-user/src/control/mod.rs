//! The control plane's view of the world outside the kernel.
//!
//! Invariants: nothing here loads or touches BPF objects (no aya); [`docker`] is the only module that talks
//! to a container engine, and it only asks.

pub mod docker;
mod docker_error;
