//! What Podman tells by its own API alone: a network's interface, which its Docker-compatible one leaves out.
//!
//! Invariant: what it calls a network is its own name, also of the default network, which the compatible API renames.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use super::{
    docker::DockerError,
    networks::{BridgeNetwork, Listed},
    transport,
};

/// Podman 4 and later answer to this version.
const NETWORKS: &str = "/v4.0.0/libpod/networks/json";

/// A network, as far as it matters here.
#[derive(Deserialize)]
struct Network {
    name: String,
    id: String,
    driver: String,
    #[serde(default)]
    network_interface: String,
    #[serde(default)]
    subnets: Option<Vec<Subnet>>,
    #[serde(default)]
    internal: bool,
}

#[derive(Deserialize)]
struct Subnet {
    subnet: Option<IpNet>,
    gateway: Option<IpAddr>,
}

/// Every network of the Podman at `host`.
///
/// # Errors
/// [`DockerError::Api`] if it gives no answer.
pub(super) async fn networks(host: &str) -> Result<Vec<Listed>, DockerError> {
    const ACTION: &str = "list networks";
    let answer = transport::get(host, NETWORKS).await.map_err(|error| DockerError::api(ACTION, &error))?;
    parse(&answer).map_err(|error| DockerError::Api { action: ACTION, cause: error.to_string() })
}

fn parse(answer: &[u8]) -> Result<Vec<Listed>, serde_json::Error> {
    Ok(serde_json::from_slice::<Vec<Network>>(answer)?.into_iter().map(listed).collect())
}

fn listed(network: Network) -> Listed {
    let subnets = network.subnets.unwrap_or_default();
    let bridge = BridgeNetwork {
        id: network.id,
        name: network.name,
        bridge: network.network_interface,
        gateways: subnets.iter().filter_map(|one| one.gateway).collect(),
        subnets: subnets.iter().filter_map(|one| one.subnet).collect(),
        internal: network.internal,
        without_gateway: None,
    };
    Listed { bridge, driver: network.driver }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_the_interface_that_podman_made() {
        let answer = br#"[{"name":"podman","id":"2f25","driver":"bridge","network_interface":"podman0",
            "created":"2026-01-01T00:00:00Z","subnets":[{"subnet":"10.88.0.0/16","gateway":"10.88.0.1"}],
            "ipv6_enabled":false,"internal":false,"dns_enabled":false},
            {"name":"lan","id":"3a","driver":"macvlan","subnets":null}]"#;
        let all = parse(answer).unwrap();
        let podman = &all[0].bridge;
        assert_eq!((podman.name.as_str(), podman.bridge.as_str()), ("podman", "podman0"));
        assert_eq!(podman.gateways, ["10.88.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!((all[1].driver.as_str(), all[1].bridge.subnets.len()), ("macvlan", 0));
    }
}
