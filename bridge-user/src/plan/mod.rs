//! What should be, decided from what was asked for and what is there.
//!
//! Invariant: no I/O; what is there is passed in.

mod intent;
pub mod request;
pub mod show;
mod wanted;

pub use intent::Intent;
pub use wanted::*;
