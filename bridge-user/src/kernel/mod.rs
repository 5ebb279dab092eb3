//! Everything that talks to eBPF: loading, pinning, map state, listener registration, events.
//!
//! Only this module imports aya. It knows nothing of Docker.

pub mod events;
pub mod features;
pub mod floor;
pub mod host;
pub mod identity;
pub mod instance;
pub mod maps;
pub mod object;
pub mod owned;
pub mod pins;
pub mod redirect;
pub mod register;
pub mod state;
mod sys;
pub mod tc;

pub use instance::Instance;
