//! The control plane of bridge-user as a library: parse what the user wants, find out what is there, and make the
//! kernel's eBPF state match.
//!
//! Dependency rule: [`control`] and [`relay`] never import aya and [`kernel`] never imports bollard; [`spec`], [`presets`],
//! [`naming`], [`datapath`] and [`plan`] do no I/O.

pub mod attach;
pub mod attachment;
pub mod check;
pub mod cli;
pub mod control;
pub mod datapath;
pub mod detach;
pub mod events;
pub mod kernel;
pub mod naming;
pub mod net;
pub mod plan;
pub mod preflight;
pub mod presets;
pub mod relay;
pub mod report;
pub mod runner;
pub mod spec;
pub mod status;

/// A wrong command line or configuration: exit code 2, where every other failure is 1.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);
