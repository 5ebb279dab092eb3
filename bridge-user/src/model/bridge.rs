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
    /// How it is set up.
    pub setting: Setting,
}

/// How a bridge is set up, as far as that decides who gets in and whether anybody does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Setting {
    /// It was taken down (`ip link set NAME down`); having no port that is up is not this.
    pub is_down: bool,
    /// The VRF it is enslaved to, by name.
    pub vrf: Option<String>,
    /// What leads from it to machines that are no containers of this host.
    pub uplink: Option<Uplink>,
}

/// What leads from a bridge to other machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uplink {
    /// A port of the bridge that is no end of a container or virtual machine.
    Port {
        /// Its name.
        name: String,
        /// The kernel's link kind (`vlan`, `bond`, …), or empty for a network card.
        kind: String,
    },
    /// The host's default route goes over the bridge.
    DefaultRoute,
}

impl Uplink {
    /// Whether a port of this kind is one: a container is behind a veth, a virtual machine behind a tap.
    pub fn is_kind(kind: &str) -> bool {
        !matches!(kind, "veth" | "tun" | "netkit")
    }
}

impl fmt::Display for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port { name, kind } if kind.is_empty() => write!(f, "its port {name} is a network card"),
            Self::Port { name, kind } => write!(f, "its port {name} is of kind {kind}"),
            Self::DefaultRoute => f.write_str("the default route goes over it"),
        }
    }
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
