//! What the engine knows of its bridge networks.
//!
//! Invariant: names that a person typed are looked up in the engine's list and never become part of a URL. What IPAM
//! says tells which interface is meant and what names resolve to; the addresses on it are the kernel's to say.

use std::net::IpAddr;

use bollard::models::{Ipam, Network};
use ipnet::IpNet;

use super::docker::{Docker, DockerError, meant, short};

/// The network option that names the bridge interface.
const BRIDGE_NAME_OPTION: &str = "com.docker.network.bridge.name";
/// The network whose gateway `host-gateway` stands for on every network.
const DEFAULT_NETWORK: &str = "bridge";

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
}

impl Docker {
    /// The bridge network called `name`, or the one whose id starts with `name`.
    ///
    /// # Errors
    /// [`DockerError::UnknownNetwork`] lists the bridge networks; [`DockerError::AmbiguousNetwork`] if several
    /// fit; [`DockerError::UnsupportedDriver`] says what to do instead; [`DockerError::Unreachable`] and
    /// [`DockerError::Api`] if the engine gives no answer.
    pub async fn network(&self, name: &str) -> Result<BridgeNetwork, DockerError> {
        pick_network(self.list_networks().await?, name)
    }

    /// The names of all bridge networks, sorted.
    ///
    /// # Errors
    /// [`DockerError::Unreachable`] or [`DockerError::Api`] if the engine gives no answer.
    pub async fn network_names(&self) -> Result<Vec<String>, DockerError> {
        Ok(names(self.list_networks().await?))
    }

    /// The network whose bridge this interface is.
    ///
    /// # Errors
    /// [`DockerError::Unreachable`] or [`DockerError::Api`] if the engine gives no answer.
    pub async fn network_on_bridge(&self, interface: &str) -> Result<Option<String>, DockerError> {
        let mut all =
            self.list_networks().await?.into_iter().filter_map(|network| bridge_network(network).ok());
        Ok(all.find(|network| network.bridge == interface).map(|network| network.name))
    }

    /// The default network, whose gateway `host-gateway` resolves to on every network; `None` where there is none
    /// (`dockerd --bridge none`).
    ///
    /// # Errors
    /// [`DockerError::Unreachable`] and [`DockerError::Api`] if the engine gives no answer.
    pub async fn default_network(&self) -> Result<Option<BridgeNetwork>, DockerError> {
        let mut all = self.list_networks().await?.into_iter();
        let default =
            all.find(|network| is_bridge(network) && network.name.as_deref() == Some(DEFAULT_NETWORK));
        default.map(bridge_network).transpose()
    }
}

pub(super) fn pick_network(networks: Vec<Network>, name: &str) -> Result<BridgeNetwork, DockerError> {
    let has_name = |network: &Network| network.name.as_deref() == Some(name);
    match meant(&networks, name, |network| network.id.as_deref(), has_name).as_slice() {
        [] => Err(DockerError::UnknownNetwork { name: name.to_owned(), known: names(networks) }),
        [network] => bridge_network((*network).clone()),
        several => {
            let matches =
                several.iter().map(|network| short(network.id.as_deref().unwrap_or_default())).collect();
            Err(DockerError::AmbiguousNetwork { name: name.to_owned(), matches })
        }
    }
}

/// The names of all bridge networks, sorted.
fn names(networks: Vec<Network>) -> Vec<String> {
    let mut names: Vec<String> =
        networks.into_iter().filter(is_bridge).filter_map(|network| network.name).collect();
    names.sort();
    names
}

fn is_bridge(network: &Network) -> bool {
    network.driver.as_deref() == Some("bridge")
}

fn bridge_network(network: Network) -> Result<BridgeNetwork, DockerError> {
    let name = network.name.unwrap_or_default();
    let driver = network.driver.unwrap_or_default();
    if driver != "bridge" {
        return Err(DockerError::UnsupportedDriver { name, driver });
    }
    let id = network.id.unwrap_or_default();
    let named = network.options.and_then(|mut options| options.remove(BRIDGE_NAME_OPTION));
    let bridge = named.filter(|bridge| !bridge.is_empty()).unwrap_or_else(|| match name.as_str() {
        DEFAULT_NETWORK => "docker0".to_owned(),
        _ => format!("br-{}", short(&id)),
    });
    let (gateways, subnets) = network.ipam.map(addressing).unwrap_or_default();
    let internal = network.internal.unwrap_or_default();
    Ok(BridgeNetwork { id, name, bridge, gateways, subnets, internal })
}

/// Gateways and subnets. Some releases give a gateway a prefix length; what is no address says nothing.
fn addressing(ipam: Ipam) -> (Vec<IpAddr>, Vec<IpNet>) {
    let all = ipam.config.unwrap_or_default();
    let gateway = |text: &str| text.split('/').next()?.parse().ok();
    let gateways = all.iter().filter_map(|one| gateway(one.gateway.as_deref()?)).collect();
    let subnets = all.iter().filter_map(|one| one.subnet.as_deref()?.parse().ok()).collect();
    (gateways, subnets)
}
