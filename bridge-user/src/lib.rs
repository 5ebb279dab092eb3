//! The control plane of bridge-user as a library: parse what the user wants, find out what is there, and make the
//! kernel's eBPF state match.
//!
//! Dependency rules: `engine` and `relay` never import aya and `kernel` never imports bollard; `model` and `plan` do no
//! I/O; only `cli` and `verbs` print. From the bottom up: `model`, `systemd`, `net`, `netfilter`, `scope`, `kernel`,
//! `engine`, `relay`, `probe`, `plan`, `config`, `import`, `observe`, `runner`, `apply`, `daemon`, `verbs`, `cli`.
//!
//! Other crates see [`cli::run`], where its output goes, the [`Scope`] it works in, and what a detach would do
//! ([`planned_detach`]).

#![expect(unreachable_pub, reason = "in a private module, `pub` says that the rest of the crate uses it")]

mod apply;
pub mod cli;
mod config;
mod daemon;
mod engine;
mod import;
mod kernel;
mod model;
mod net;
mod netfilter;
mod observe;
mod plan;
mod probe;
mod relay;
mod runner;
mod scope;
mod systemd;
mod verbs;

pub use apply::planned_detach;
pub use net::namespace::Namespace;
pub use scope::{Roots, Scope};

/// A wrong command line or configuration: exit code 2, where every other failure is 1.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);
