//! One attachment, as it is wanted, or as the kernel or a relay holds it. Pure data.

use std::{collections::BTreeSet, net::IpAddr};

use clap::ValueEnum;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    datapath::{Datapath, Reason},
    naming,
    spec::{Port, Target},
};

/// One attachment, wanted or present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachmentState {
    /// Service name.
    pub service: String,
    /// Docker network, or the interface name where a bridge was given.
    pub network: String,
    /// Bridge interface name.
    pub bridge: String,
    /// Bridge interface index.
    pub ifindex: u32,
    /// Port on the gateway.
    pub port: Port,
    /// Where the service listens; a steered attachment's is always TCP.
    pub target: Target,
    /// Gateway addresses containers connect to, sorted.
    pub gateways: BTreeSet<IpAddr>,
    /// Allowed sources, sorted.
    pub allow: BTreeSet<IpNet>,
    /// What carries the connections.
    pub datapath: Datapath,
    /// Why that datapath.
    pub reason: Reason,
    /// Whom the service sees.
    pub identity: Identity,
}

impl AttachmentState {
    /// `<network>-<service>-<port>`.
    pub fn name(&self) -> String {
        naming::attachment_name(&self.network, &self.service, self.port)
    }

    /// Whether a NAME on the command line means it.
    pub fn is_meant_by(&self, query: &str) -> bool {
        naming::matches(query, &self.network, &self.service, self.port)
    }

    /// True when `other` is this attachment, perhaps with other settings.
    pub fn is_same(&self, other: &Self) -> bool {
        self.network == other.network && self.service == other.service && self.port == other.port
    }
}

/// Whom the service sees as its peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Identity {
    /// The container's real address.
    #[default]
    Container,
    /// 127.0.0.1, as with any local client.
    Loopback,
}
