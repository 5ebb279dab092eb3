//! What the engine knows of its bridge networks.
//!
//! Invariant: names that a person typed are looked up in the engine's list and never become part of a URL. What IPAM
//! says tells which interface is meant and what names resolve to; the addresses on it are the kernel's to say.

use std::net::IpAddr;

use bollard::models::{Ipam, Network};
use ipnet::IpNet;

use super::{
    about::Kind,
    docker::{Docker, DockerError, meant, short},
    podman,
};
use crate::model::pattern;

/// The network option that names the bridge interface.
const BRIDGE_NAME_OPTION: &str = "com.docker.network.bridge.name";
/// The network whose gateway `host-gateway` stands for on every network.
const DEFAULT_NETWORK: &str = pattern::DEFAULT_NETWORKS[0];
/// Podman's default network.
const PODMAN_NETWORK: &str = pattern::DEFAULT_NETWORKS[1];
/// The network over which containers on overlay networks reach their host; made when the host joins a swarm.
const SWARM_NETWORK: &str = "docker_gwbridge";
const BRIDGE_DRIVER: &str = "bridge";

/// What asks Docker for a bridge without an address of the host, and what it is called then.
const WITHOUT_GATEWAY: [(&str, &str); 3] = [
    ("com.docker.network.bridge.gateway_mode_ipv4", "isolated"),
    ("com.docker.network.bridge.gateway_mode_ipv6", "isolated"),
    ("com.docker.network.bridge.inhibit_ipv4", "true"),
];

/// A network of driver `bridge`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeNetwork {
    /// Full id, 64 hexadecimal digits. A network that is removed and made again has a new one.
    pub id: String,
    /// Name, as in `docker network ls`.
    pub name: String,
    /// The interface name of its bridge on the engine's host.
    pub bridge: String,
    /// Its gateways, as far as the engine tells.
    pub gateways: Vec<IpAddr>,
    /// Its subnets, as far as the engine tells.
    pub subnets: Vec<IpNet>,
    /// Its containers have no route but to their own subnet.
    pub internal: bool,
    /// The option, if any, by which its owner wants no address of the host on the bridge.
    pub without_gateway: Option<String>,
}

/// A network of any driver.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    /// As a bridge network, which it is if the driver says so.
    pub(super) bridge: BridgeNetwork,
    /// Its driver.
    pub(super) driver: String,
}

impl Docker {
    /// The bridge network called `name`, or the one whose id starts with `name`.
    ///
    /// # Errors
    /// [`DockerError::UnknownNetwork`] lists the bridge networks; [`DockerError::AmbiguousNetwork`] if several
    /// fit; [`DockerError::UnsupportedDriver`] says what to do instead; [`DockerError::Unreachable`] and
    /// [`DockerError::Api`] if the engine gives no answer.
    pub async fn network(&self, name: &str) -> Result<BridgeNetwork, DockerError> {
        let all = self.listed().await?;
        // Podman's compatible API has Docker's name for its default network, and people do.
        let name = if name == DEFAULT_NETWORK { self.default_name().await? } else { name };
        pick_network(all, name)
    }

    /// The bridge networks that match a pattern ([`pattern::is_pattern`]) now, by name.
    ///
    /// # Errors
    /// [`DockerError::NoMatch`] lists the bridge networks; [`DockerError::Unreachable`] and [`DockerError::Api`] if the
    /// engine gives no answer.
    pub async fn networks_like(&self, pattern: &str) -> Result<Vec<BridgeNetwork>, DockerError> {
        matching(self.listed().await?, pattern)
    }

    /// The names of all bridge networks, sorted.
    ///
    /// # Errors
    /// [`DockerError::Unreachable`] or [`DockerError::Api`] if the engine gives no answer.
    pub async fn network_names(&self) -> Result<Vec<String>, DockerError> {
        Ok(names(self.listed().await?))
    }

    /// The network whose bridge this interface is.
    ///
    /// # Errors
    /// [`DockerError::Unreachable`] or [`DockerError::Api`] if the engine gives no answer.
    pub async fn network_on_bridge(&self, interface: &str) -> Result<Option<String>, DockerError> {
        let mut all = bridges(self.listed().await?);
        Ok(all.find(|network| network.bridge == interface).map(|network| network.name))
    }

    /// The default network, whose gateway `host-gateway` resolves to on every network; `None` where there is none
    /// (`dockerd --bridge none`), and for Podman, where it is each network's own gateway.
    ///
    /// # Errors
    /// [`DockerError::Unreachable`] and [`DockerError::Api`] if the engine gives no answer.
    pub async fn host_gateway_network(&self) -> Result<Option<BridgeNetwork>, DockerError> {
        if self.kind().await? != Kind::Docker {
            return Ok(None);
        }
        let mut all = bridges(self.listed().await?);
        Ok(all.find(|network| network.name == DEFAULT_NETWORK))
    }

    async fn default_name(&self) -> Result<&'static str, DockerError> {
        Ok(match self.kind().await? {
            Kind::Docker => DEFAULT_NETWORK,
            Kind::Podman(_) => PODMAN_NETWORK,
        })
    }

    async fn listed(&self) -> Result<Vec<Listed>, DockerError> {
        match self.kind().await? {
            Kind::Docker => Ok(self.list_networks().await?.into_iter().map(listed).collect()),
            Kind::Podman(_) => podman::networks(self.host()).await,
        }
    }
}

pub(super) fn pick_network(networks: Vec<Listed>, name: &str) -> Result<BridgeNetwork, DockerError> {
    let has_name = |network: &Listed| network.bridge.name == name;
    match meant(&networks, name, |network| Some(&network.bridge.id), has_name).as_slice() {
        [] if name == SWARM_NETWORK => Err(DockerError::NoSwarm),
        [] => Err(DockerError::UnknownNetwork { name: name.to_owned(), known: names(networks) }),
        [Listed { bridge, driver }] if driver == BRIDGE_DRIVER => Ok(bridge.clone()),
        [Listed { bridge, driver }] => {
            Err(DockerError::UnsupportedDriver { name: bridge.name.clone(), driver: driver.clone() })
        }
        several => {
            let matches = several.iter().map(|network| short(&network.bridge.id)).collect();
            Err(DockerError::AmbiguousNetwork { name: name.to_owned(), matches })
        }
    }
}

pub(super) fn matching(networks: Vec<Listed>, pattern: &str) -> Result<Vec<BridgeNetwork>, DockerError> {
    let glob = pattern::pattern(pattern)
        .map_err(|cause| DockerError::NoPattern { pattern: pattern.to_owned(), cause })?;
    let fits = |network: &BridgeNetwork| glob.matches(&network.name);
    let mut found: Vec<_> = bridges(networks.clone()).filter(fits).collect();
    if found.is_empty() {
        return Err(DockerError::NoMatch { pattern: pattern.to_owned(), known: names(networks) });
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// Those of driver `bridge`.
fn bridges(networks: Vec<Listed>) -> impl Iterator<Item = BridgeNetwork> {
    networks.into_iter().filter(|network| network.driver == BRIDGE_DRIVER).map(|network| network.bridge)
}

/// The names of all bridge networks, sorted.
fn names(networks: Vec<Listed>) -> Vec<String> {
    let mut names: Vec<String> = bridges(networks).map(|network| network.name).collect();
    names.sort();
    names
}

pub(super) fn listed(network: Network) -> Listed {
    let (id, name) = (network.id.unwrap_or_default(), network.name.unwrap_or_default());
    let options = network.options.unwrap_or_default();
    let is_set = |(option, value): &&(&str, &str)| options.get(*option).is_some_and(|found| found == value);
    let without_gateway =
        WITHOUT_GATEWAY.iter().find(is_set).map(|(option, value)| format!("{option}={value}"));
    let named = options.get(BRIDGE_NAME_OPTION).filter(|bridge| !bridge.is_empty()).cloned();
    let bridge = named.unwrap_or_else(|| match name.as_str() {
        DEFAULT_NETWORK => "docker0".to_owned(),
        _ => format!("br-{}", short(&id)),
    });
    let (gateways, subnets) = network.ipam.map(addressing).unwrap_or_default();
    let internal = network.internal.unwrap_or_default();
    let bridge = BridgeNetwork { id, name, bridge, gateways, subnets, internal, without_gateway };
    Listed { bridge, driver: network.driver.unwrap_or_default() }
}

/// Gateways and subnets. Some releases give a gateway a prefix length; what is no address says nothing.
fn addressing(ipam: Ipam) -> (Vec<IpAddr>, Vec<IpNet>) {
    let all = ipam.config.unwrap_or_default();
    let gateway = |text: &str| text.split('/').next()?.parse().ok();
    let gateways = all.iter().filter_map(|one| gateway(one.gateway.as_deref()?)).collect();
    let subnets = all.iter().filter_map(|one| one.subnet.as_deref()?.parse().ok()).collect();
    (gateways, subnets)
}
