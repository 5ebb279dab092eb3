//! A bridge and its addresses, as the kernel tells of them. Pure data; `net::links` finds them.

use std::fmt;

use ipnet::IpNet;
use serde::Serialize;

/// A Linux bridge: the host side of a container network. Inside a container: the interface that takes its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Interface index, as BPF programs see it in `ingress_ifindex`. A recreated bridge gets a new one.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// The host's own addresses on it with their prefix length; IPv6 link-local ones are left out.
    pub addrs: Vec<IpNet>,
}

/// An interface that a program is attached to, or was. Inside a container it takes the place of the bridge.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Interface {
    /// Interface index.
    pub index: u32,
    /// Its name; `None` once it is gone.
    pub name: Option<String>,
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => f.write_str(name),
            None => write!(f, "interface {}, which is gone", self.index),
        }
    }
}
