//! One attachment, as it is wanted or as the kernel holds it. Pure data.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;

use crate::{datapath::Reason, naming, spec::Port};

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
    /// The loopback listener's address.
    pub target: SocketAddr,
    /// Gateway addresses the rules match, sorted.
    pub gateways: BTreeSet<IpAddr>,
    /// Allowed sources, sorted.
    pub allow: BTreeSet<IpNet>,
    /// Why steering was chosen.
    pub reason: Reason,
}

impl AttachmentState {
    /// `<network>-<service>-<port>`.
    pub fn name(&self) -> String {
        naming::attachment_name(&self.network, &self.service, self.port)
    }

    /// True when `other` is this attachment, perhaps with other settings.
    pub fn is_same(&self, other: &Self) -> bool {
        self.network == other.network && self.service == other.service && self.port == other.port
    }
}
