//! What should be, decided from what was asked for and what is there, and the changes that lead there.
//!
//! Invariant: no I/O; what is there is passed in.

mod change;
mod diff;
mod intent;
mod limits;
mod partition;
pub mod request;
mod sentence;
pub mod show;
mod snapshot;
mod taken;
mod wanted;

pub use change::{Change, ProgramPin};
pub use diff::{Steered, Wanted, diff};
pub use intent::Intent;
pub use limits::require_room;
pub use partition::{Candidate, Partition, Refusal, partition};
pub use snapshot::{Earlier, HeldListener, Pinned, Snapshot, TcState};
pub use taken::refuse_taken;
pub use wanted::*;
