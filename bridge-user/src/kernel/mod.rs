//! Everything that talks to eBPF: loading, pinning, map state, listener registration, events.
//!
//! Only this module imports aya. It knows nothing of Docker.

pub mod events;
pub mod features;
pub mod floor;
pub mod instance;
pub mod programs;
pub mod redirect;
pub mod state;
mod sys;

pub use instance::Instance;
