//! One module for each verb of the command line: what can be asked of it, and running it.
//!
//! Invariant: besides `cli`, only these print.

pub mod attach;
mod attach_report;
mod candidates;
pub mod check;
pub(crate) mod compose;
pub mod detach;
pub mod events;
pub mod follow;
pub mod import;
pub mod run;
mod saving;
pub mod status;
pub mod systemd;
