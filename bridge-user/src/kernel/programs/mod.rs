//! The eBPF programs: loading them, and attaching them to a namespace, to the root cgroup and to bridges.

pub mod identity;
pub mod object;
pub mod qdisc;
pub mod tc;

pub use crate::model::programs::link_name;
