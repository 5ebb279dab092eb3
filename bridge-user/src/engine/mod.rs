//! The control plane's view of the world outside the kernel.
//!
//! Invariants: nothing here loads or touches BPF objects (no aya); these are the only modules that talk to a
//! container engine, and they only ask.

mod about;
pub mod container;
pub mod docker;
mod docker_error;
pub mod labels;
pub mod networks;
mod podman;
mod transport;
pub mod watch;
