//! Who may connect: an entry of an allow-list. Pure data.
//!
//! Invariant: a container is told by its network namespace, never by its address, which another container may get.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::instance::NamespaceId;

/// A source that may connect.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Whoever has an address of this network.
    Net(IpNet),
    /// One run of a container.
    Container(NamedContainer),
}

/// One run of a container that an allow-list names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedContainer {
    /// Its name.
    pub name: String,
    /// Its address on the network when it was attached: for people to see.
    pub address: IpAddr,
    /// The inode of its network namespace. A later run may have the same.
    pub inode: u64,
    /// The cookie of its network namespace, which no later run has. `None`: only a program on this kernel can tell it
    /// (below Linux 5.14), and none was attached yet.
    pub cookie: Option<u64>,
}

impl NamedContainer {
    /// The network namespace of that run.
    pub fn namespace(&self) -> NamespaceId {
        NamespaceId { inode: self.inode, cookie: self.cookie }
    }
}

impl Source {
    /// The address, or the first one of the network.
    pub fn addr(&self) -> IpAddr {
        match self {
            Self::Net(net) => net.addr(),
            Self::Container(container) => container.address,
        }
    }

    /// The network, if it is one.
    pub fn net(&self) -> Option<&IpNet> {
        match self {
            Self::Net(net) => Some(net),
            Self::Container(_) => None,
        }
    }

    /// Where it may come from, as far as addresses tell.
    pub fn widest(&self) -> IpNet {
        match self {
            Self::Net(net) => *net,
            Self::Container(container) => container.address.into(),
        }
    }

    /// The container, if it is one.
    pub fn container(&self) -> Option<&NamedContainer> {
        match self {
            Self::Net(_) => None,
            Self::Container(container) => Some(container),
        }
    }

    /// As it is typed: the network, or the container's name.
    pub fn as_typed(&self) -> String {
        match self {
            Self::Net(net) => net.to_string(),
            Self::Container(container) => container.name.clone(),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(net) => net.fmt(f),
            Self::Container(container) => write!(f, "{} ({})", container.name, container.address),
        }
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl From<IpNet> for Source {
    fn from(net: IpNet) -> Self {
        Self::Net(net)
    }
}
