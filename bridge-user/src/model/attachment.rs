//! One attachment, as it is wanted, or as the kernel or a relay holds it. Pure data.

use std::{collections::BTreeSet, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::{
    datapath::{Datapath, Reason},
    identity::Identity,
    naming,
    source::Source,
    spec::ServiceSpec,
    target::{Port, Target},
};

/// Who keeps an attachment. What somebody typed stays until somebody detaches it; what the configuration asked for
/// follows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keeper {
    /// Whoever typed `attach`.
    #[default]
    Command,
    /// The daemon, by its configuration.
    Config,
}

/// One attachment, wanted or present.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attachment {
    /// Service name.
    pub service: String,
    /// The container in whose network namespace it is; none: in the caller's.
    pub container: Option<String>,
    /// Docker network, or the interface name where a bridge was given.
    pub network: String,
    /// Bridge interface name; in a container the interface that holds its address.
    pub bridge: String,
    /// Bridge interface index.
    pub ifindex: u32,
    /// Port on the gateway.
    pub port: Port,
    /// Where the service listens; a steered attachment's is always TCP.
    pub target: Target,
    /// Addresses containers connect to, sorted: the gateway's, or those of the container itself.
    pub gateways: BTreeSet<IpAddr>,
    /// Allowed sources, sorted.
    pub allow: BTreeSet<Source>,
    /// What carries the connections.
    pub datapath: Datapath,
    /// Why that datapath.
    pub reason: Reason,
    /// Whom the service sees.
    pub identity: Identity,
    /// Who keeps it.
    pub keeper: Keeper,
}

impl Attachment {
    /// `<network>-<service>-<port>`, where a container's network is `<container>.<network>`.
    pub fn name(&self) -> String {
        naming::attachment_name(self.container.as_deref(), &self.network, &self.service, self.port)
    }

    /// Whether a NAME on the command line means it.
    pub fn is_meant_by(&self, query: &str) -> bool {
        naming::matches(query, self.container.as_deref(), &self.network, &self.service, self.port)
    }

    /// Whether it is the SPEC's, on whatever network.
    pub fn is_of(&self, spec: &ServiceSpec) -> bool {
        self.service == spec.service && self.port == spec.port
    }

    /// What makes it this attachment and no other, whatever its settings.
    pub fn key(&self) -> AttachmentKey<'_> {
        (self.container.as_deref(), &self.network, &self.service, self.port)
    }

    /// True when `other` is this attachment, perhaps with other settings.
    pub fn is_same(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

/// Container, network, service and port.
pub type AttachmentKey<'a> = (Option<&'a str>, &'a str, &'a str, Port);
