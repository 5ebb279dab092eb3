//! The eBPF programs: loading them, and attaching them to a namespace, to the root cgroup and to bridges.

pub mod identity;
pub mod object;
pub mod qdisc;
pub mod tc;

/// The pin name of an attached program's link.
pub fn link_name(program: &str) -> String {
    format!("link_{program}")
}
