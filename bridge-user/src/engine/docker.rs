//! What Docker knows: which ports are published, which addresses a container has; and how it is asked.
//!
//! Invariants: read-only, by two list requests of the Engine API (`/networks`, `/containers/json`), and what they
//! name: so a name typed by a person never becomes part of a URL; every request has a deadline, and every
//! answer a limit ([`super::transport`]); each error names the
//! object and the next step. Which address the host really has on a bridge is the kernel's to say
//! ([`crate::net::links`]): IPAM lists no gateway for some networks, and a bridge may have lost its address.

use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::Duration;

use bollard::errors::Error as ApiError;
use bollard::models::{
    ContainerInspectResponse, ContainerSummary, EndpointSettings, Network, PortSummaryTypeEnum,
};
use bollard::query_parameters::{
    InspectContainerOptions, InspectNetworkOptions, ListContainersOptions, ListNetworksOptions,
};

pub use super::docker_error::DockerError;
use super::{about::Kind, transport};

/// How long the engine may take to answer the first request.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// How long the engine may take to answer any other request: lists are slow while it starts containers.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// Where the engine listens unless DOCKER_HOST says otherwise.
const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";
/// A TCP port that a running container publishes on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedPort {
    /// The container's name.
    pub container: String,
    /// The host address it is published on; 0.0.0.0 or `::` for all of that family.
    pub host_ip: IpAddr,
    /// The port on the host.
    pub port: u16,
}

impl PublishedPort {
    /// Whether a connection to this port of `address` on the host would go to the container.
    pub fn covers(&self, address: IpAddr) -> bool {
        self.host_ip == address
            || (self.host_ip.is_unspecified() && self.host_ip.is_ipv4() == address.is_ipv4())
    }
}

/// A client of one Docker engine.
#[derive(Debug)]
pub struct Docker {
    host: String,
    client: bollard::Docker,
    /// The client after it agreed with the engine on an API version, which is also the first contact.
    negotiated: OnceLock<bollard::Docker>,
    /// Whose engine it is, once it has told.
    pub(super) kind: OnceLock<Kind>,
}

impl Docker {
    /// A client of the engine that DOCKER_HOST names (`unix://` or plain `tcp://`), else of the local socket.
    ///
    /// Nothing is sent yet: an engine that does not answer is reported by the first request, within 2 s.
    ///
    /// # Errors
    /// [`DockerError::Unreachable`] if the socket does not exist or DOCKER_HOST is of another kind.
    pub fn connect() -> Result<Docker, DockerError> {
        Docker::connect_to(Self::named_host().as_deref().unwrap_or(DEFAULT_HOST))
    }

    /// What DOCKER_HOST says, if it says something.
    pub fn named_host() -> Option<String> {
        std::env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty())
    }

    /// As [`Docker::connect`], for a given host in the form of DOCKER_HOST.
    ///
    /// # Errors
    /// As [`Docker::connect`].
    pub fn connect_to(host: &str) -> Result<Docker, DockerError> {
        let client = transport::client(host, REQUEST_DEADLINE.as_secs())
            .map_err(|error| DockerError::unreachable(host, &error))?;
        Ok(Docker { host: host.to_owned(), client, negotiated: OnceLock::new(), kind: OnceLock::new() })
    }

    /// Where the engine listens, in the form of DOCKER_HOST.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The names of all running containers, sorted.
    ///
    /// # Errors
    /// [`DockerError::Unreachable`] or [`DockerError::Api`] if the engine gives no answer.
    pub async fn container_names(&self) -> Result<Vec<String>, DockerError> {
        let mut names: Vec<String> = self.list_containers(false).await?.iter().map(display_name).collect();
        names.sort();
        Ok(names)
    }

    /// The networks that a container is on, by name.
    ///
    /// # Errors
    /// [`DockerError::UnknownContainer`] if there is none of this name; [`DockerError::Unreachable`] and
    /// [`DockerError::Api`] if the engine gives no answer.
    pub async fn networks_of(&self, container: &str) -> Result<Vec<String>, DockerError> {
        let all = self.list_containers(true).await?;
        Ok(names_of_networks(pick_container(&all, container)?))
    }

    /// Who publishes TCP `port` on the host: running containers, one entry per host address.
    ///
    /// # Errors
    /// [`DockerError::Unreachable`] or [`DockerError::Api`] if the engine gives no answer.
    pub async fn published(&self, port: u16) -> Result<Vec<PublishedPort>, DockerError> {
        Ok(published_in(&self.list_containers(false).await?, port))
    }

    /// The addresses of a container (by name or id prefix) on the network with this id and name, IPv4 first.
    ///
    /// # Errors
    /// [`DockerError::UnknownContainer`] lists the running containers; [`DockerError::NotOnNetwork`] names the
    /// networks it is on; [`DockerError::NoAddress`] if it is not running; [`DockerError::Unreachable`] and
    /// [`DockerError::Api`] if the engine gives no answer.
    pub async fn container_addresses(
        &self,
        container: &str,
        (network_id, network): (&str, &str),
    ) -> Result<Vec<IpAddr>, DockerError> {
        let all = self.list_containers(true).await?;
        match addresses_in(&all, container, (network_id, network)) {
            Err(DockerError::NotOnNetwork { networks, .. }) if !networks.is_empty() => {}
            found => return found,
        }
        // A swarm's containers are on docker_gwbridge, and only the network lists them so.
        let id = pick_container(&all, container)?.id.as_deref().unwrap_or_default();
        let attached = self.attached(network_id, id).await?;
        if attached.is_empty() { addresses_in(&all, container, (network_id, network)) } else { Ok(attached) }
    }

    /// The addresses of the container with this full id on the network with this one, as the network lists them.
    async fn attached(&self, network: &str, container: &str) -> Result<Vec<IpAddr>, DockerError> {
        let api = self.api().await?;
        let network =
            answer("inspect a network", api.inspect_network(network, None::<InspectNetworkOptions>)).await?;
        let endpoint = network.containers.and_then(|mut all| all.remove(container)).unwrap_or_default();
        let address = |text: Option<String>| text?.split('/').next()?.parse().ok();
        Ok([endpoint.ipv4_address, endpoint.ipv6_address].into_iter().filter_map(address).collect())
    }

    /// Everything about the container with this full id.
    pub(super) async fn inspect(&self, id: &str) -> Result<ContainerInspectResponse, DockerError> {
        let api = self.api().await?;
        answer("inspect a container", api.inspect_container(id, None::<InspectContainerOptions>)).await
    }

    pub(super) async fn list_networks(&self) -> Result<Vec<Network>, DockerError> {
        let api = self.api().await?;
        answer("list networks", api.list_networks(None::<ListNetworksOptions>)).await
    }

    pub(super) async fn list_containers(&self, all: bool) -> Result<Vec<ContainerSummary>, DockerError> {
        let api = self.api().await?;
        let options = ListContainersOptions { all, ..ListContainersOptions::default() };
        answer("list containers", api.list_containers(Some(options))).await
    }

    /// Whether the engine answers now.
    pub(super) async fn answers(&self) -> bool {
        let Ok(api) = self.api().await else { return false };
        tokio::time::timeout(CONNECT_DEADLINE, api.ping()).await.is_ok_and(|pong| pong.is_ok())
    }

    /// The client, once the engine has answered and an API version both sides speak is known.
    pub(super) async fn api(&self) -> Result<&bollard::Docker, DockerError> {
        if let Some(api) = self.negotiated.get() {
            return Ok(api);
        }
        let negotiate = self.client.clone().negotiate_version();
        let api = tokio::time::timeout(CONNECT_DEADLINE, negotiate)
            .await
            .unwrap_or(Err(ApiError::RequestTimeoutError))
            .map_err(|error| DockerError::unreachable(&self.host, &error))?;
        Ok(self.negotiated.get_or_init(|| api))
    }
}

async fn answer<T>(
    action: &'static str,
    request: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, DockerError> {
    tokio::time::timeout(REQUEST_DEADLINE, request)
        .await
        .unwrap_or(Err(ApiError::RequestTimeoutError))
        .map_err(|error| DockerError::api(action, &error))
}

/// What `wanted` stands for in `all`. The same order of preference as Docker: the exact id, the exact name, then an id
/// prefix, of which nothing is none.
pub(super) fn meant<'a, T>(
    all: &'a [T],
    wanted: &str,
    id: impl Fn(&T) -> Option<&str>,
    has_name: impl Fn(&T) -> bool,
) -> Vec<&'a T> {
    let ways: [&dyn Fn(&T) -> bool; 3] =
        [&|one| id(one) == Some(wanted), &has_name, &|one| id(one).is_some_and(|id| id.starts_with(wanted))];
    let mut found = ways.into_iter().map(|fits| all.iter().filter(|one| fits(one)).collect::<Vec<_>>());
    found.find(|found| !found.is_empty() && !wanted.is_empty()).unwrap_or_default()
}

/// The part of an id that people see.
pub(super) fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

fn published_in(containers: &[ContainerSummary], port: u16) -> Vec<PublishedPort> {
    let mut published = Vec::new();
    for container in containers {
        for mapping in container.ports.iter().flatten() {
            let is_tcp = mapping.typ == Some(PortSummaryTypeEnum::TCP);
            if !is_tcp || mapping.public_port != Some(port) {
                continue;
            }
            // An engine that names no address publishes on all of them.
            let host_ip = mapping.ip.as_deref().and_then(|ip| ip.parse().ok());
            let host_ip = host_ip.unwrap_or(IpAddr::from([0, 0, 0, 0]));
            published.push(PublishedPort { container: display_name(container), host_ip, port });
        }
    }
    published
}

/// The name without Docker's leading slash (names with a second one are link aliases), else the short id.
pub(super) fn display_name(container: &ContainerSummary) -> String {
    let mut names = container.names.iter().flatten().map(|name| name.trim_start_matches('/'));
    let own = names.find(|name| !name.is_empty() && !name.contains('/'));
    own.map_or_else(|| short(container.id.as_deref().unwrap_or_default()), str::to_owned)
}

fn addresses_in(
    containers: &[ContainerSummary],
    wanted: &str,
    (network_id, network): (&str, &str),
) -> Result<Vec<IpAddr>, DockerError> {
    let container = pick_container(containers, wanted)?;
    let name = display_name(container);
    let empty = HashMap::new();
    let networks = container.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
    let networks = networks.unwrap_or(&empty);
    // A stopped container's endpoints have no network id, only the name they will have.
    let on_network = |(key, endpoint): &(&String, &EndpointSettings)| match endpoint.network_id.as_deref() {
        // Podman has a network's name there, too.
        Some(id) if !id.is_empty() => id == network_id || (id == network && **key == network),
        _ => **key == network,
    };
    let Some((_, endpoint)) = networks.iter().find(on_network) else {
        let networks = names_of_networks(container);
        let mode = container.host_config.as_ref().and_then(|config| config.network_mode.clone());
        return Err(DockerError::NotOnNetwork {
            container: name,
            network: network.to_owned(),
            networks,
            mode,
        });
    };
    let candidates = [endpoint.ip_address.as_deref(), endpoint.global_ipv6_address.as_deref()];
    let addresses: Vec<IpAddr> = candidates.into_iter().flatten().filter_map(|ip| ip.parse().ok()).collect();
    if addresses.is_empty() {
        return Err(DockerError::NoAddress { container: name, network: network.to_owned() });
    }
    Ok(addresses)
}

/// Sorted.
pub(super) fn names_of_networks(container: &ContainerSummary) -> Vec<String> {
    let networks = container.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
    let mut names: Vec<String> = networks.into_iter().flatten().map(|(name, _)| name.clone()).collect();
    names.sort();
    names
}

/// By exact id or name, else by an id prefix that fits one container only.
pub(super) fn pick_container<'a>(
    containers: &'a [ContainerSummary],
    wanted: &str,
) -> Result<&'a ContainerSummary, DockerError> {
    let wanted = wanted.trim_start_matches('/');
    let found = meant(containers, wanted, |one| one.id.as_deref(), |one| display_name(one) == wanted);
    match found.as_slice() {
        [container] => Ok(container),
        _ => {
            let mut known: Vec<String> =
                containers.iter().filter(|one| is_running(one)).map(display_name).collect();
            known.sort();
            Err(DockerError::UnknownContainer { name: wanted.to_owned(), known, matches: found.len() })
        }
    }
}

fn is_running(container: &ContainerSummary) -> bool {
    container.state.is_some_and(|state| state.to_string() == "running")
}

#[cfg(test)]
#[path = "docker_tests.rs"]
mod tests;
