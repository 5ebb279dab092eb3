//! Ports, and where a service listens: pure data that everything else refers to.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU16,
    path::PathBuf,
};

use serde::{Serialize, Serializer};

/// A TCP port, 1–65535.
pub type Port = NonZeroU16;

/// Where a service listens on the host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// A TCP listener on a loopback address.
    Tcp(SocketAddr),
    /// A Unix stream socket, by absolute path.
    Unix(PathBuf),
}

impl Target {
    /// The TCP target at 127.0.0.1:`port`, which is what a SPEC without an address means.
    pub fn loopback(port: Port) -> Target {
        Target::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port.get())))
    }

    /// The address of a TCP target.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Target::Tcp(address) => Some(*address),
            Target::Unix(_) => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Tcp(address) => write!(f, "{address}"),
            Target::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
