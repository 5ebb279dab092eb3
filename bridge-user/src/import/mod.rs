//! Forwards that people made by hand, so that bridge-user can take them over: socat, systemd-socket-proxyd and DNAT, in
//! units and as running processes.
//!
//! Invariants: read-only; what is not understood whole is left alone, with the reason; a forward never becomes an
//! attachment that admits more, or leads elsewhere, than it did.

pub mod become_attach;
pub mod dnat;
pub mod found;
pub mod socat;
pub mod socket_proxyd;
pub mod units;
pub mod words;

use std::{fmt, net::IpAddr};

use ipnet::IpNet;

use crate::model::target::{Port, Target};

/// A forward: who listens where, for whom, and what it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Where it listens.
    pub listen: Listen,
    /// What it leads to.
    pub target: Target,
    /// Sources that it admits; empty: all.
    pub allow: Vec<IpNet>,
    /// What it does besides, that an attachment does not, or does otherwise.
    pub notes: Vec<String>,
    /// At most so many connections.
    pub max_connections: Option<usize>,
    /// Connections end after so many seconds without a byte.
    pub idle_timeout: Option<u64>,
}

/// Where a forward listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address; unspecified: all of its family.
    pub address: IpAddr,
    /// The other family, too: `::` without IPV6_V6ONLY.
    pub both_families: bool,
    /// The port.
    pub port: Port,
}

impl Listen {
    /// It listens on every address.
    pub fn is_everywhere(&self) -> bool {
        self.address.is_unspecified()
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::net::SocketAddr::from((self.address, self.port.get())).fmt(f)
    }
}
