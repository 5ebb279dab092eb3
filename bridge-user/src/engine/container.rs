//! What Docker knows of one running container: its process, its networks, and whether its network namespace is its own.
//!
//! Invariants: as [`super::docker`]; the only part of a URL is an id that the engine itself gave. A value of
//! [`ContainerInfo`] stands for one run: a container that was started again differs in its process or its start.

use std::net::IpAddr;

use bollard::models::{ContainerInspectResponse, EndpointSettings, PortMap};

use super::docker::{Docker, DockerError, display_name, meant, pick_container, short};
use crate::model::pattern;

/// A running container with a network namespace of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerInfo {
    /// Full id.
    pub id: String,
    /// Name, without Docker's leading slash.
    pub name: String,
    /// Its first process, as the engine's PID namespace counts.
    pub pid: i32,
    /// When this run began, in the engine's words.
    pub started_at: String,
    /// The networks it has an address on, by name.
    pub endpoints: Vec<Endpoint>,
    /// Its own TCP ports that are published on the host, sorted.
    pub published: Vec<u16>,
}

/// A container's place on a network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Network name.
    pub network: String,
    /// Full id of the network.
    pub network_id: String,
    /// The container's addresses there, IPv4 first.
    pub addrs: Vec<IpAddr>,
}

impl Docker {
    /// The container with this name or id, as it runs now.
    ///
    /// # Errors
    /// [`DockerError::UnknownContainer`] lists the running containers; [`DockerError::NotToEnter`] says why this one
    /// has no namespace to attach in, and what to do; [`DockerError::Unreachable`] and [`DockerError::Api`] if the
    /// engine gives no answer.
    pub async fn running(&self, container: &str) -> Result<ContainerInfo, DockerError> {
        let all = self.list_containers(true).await?;
        let found = pick_container(&all, container)?;
        let name = display_name(found);
        let id = found.id.clone().unwrap_or_default();
        running(name, self.inspect(&id).await?)
    }
}

impl ContainerInfo {
    /// Its endpoints on what `wanted` stands for: one network, or those of its own that match a pattern now.
    ///
    /// # Errors
    /// As [`Self::endpoint_on`], also where none matches; [`DockerError::NoPattern`] for a pattern that is none.
    pub fn endpoints_on(&self, wanted: &str) -> Result<Vec<&Endpoint>, DockerError> {
        if !pattern::is_pattern(wanted) {
            return Ok(vec![self.endpoint_on(wanted)?]);
        }
        let glob = pattern::pattern(wanted)
            .map_err(|cause| DockerError::NoPattern { pattern: wanted.to_owned(), cause })?;
        let found: Vec<_> =
            self.endpoints.iter().filter(|endpoint| glob.matches(&endpoint.network)).collect();
        if found.is_empty() { Err(self.not_on(wanted)) } else { Ok(found) }
    }

    /// Its endpoint on the network `wanted`, a name or a prefix of the id.
    ///
    /// # Errors
    /// [`DockerError::NotOnNetwork`] names the networks it is on; [`DockerError::AmbiguousNetwork`] if a prefix fits
    /// several.
    pub fn endpoint_on(&self, wanted: &str) -> Result<&Endpoint, DockerError> {
        let has_name = |endpoint: &Endpoint| endpoint.network == wanted;
        match meant(&self.endpoints, wanted, |endpoint| Some(&endpoint.network_id), has_name).as_slice() {
            [endpoint] => Ok(endpoint),
            [] => Err(self.not_on(wanted)),
            several => Err(DockerError::AmbiguousNetwork {
                name: wanted.to_owned(),
                matches: several.iter().map(|endpoint| short(&endpoint.network_id)).collect(),
            }),
        }
    }

    fn not_on(&self, network: &str) -> DockerError {
        DockerError::NotOnNetwork {
            container: self.name.clone(),
            network: network.to_owned(),
            networks: self.endpoints.iter().map(|endpoint| endpoint.network.clone()).collect(),
            mode: None,
        }
    }
}

fn running(name: String, inspected: ContainerInspectResponse) -> Result<ContainerInfo, DockerError> {
    let refuse = |reason: String| DockerError::NotToEnter { container: name.clone(), reason };
    let mode = inspected.host_config.and_then(|config| config.network_mode).unwrap_or_default();
    if mode == "host" {
        return Err(refuse(
            "it shares the host's network, so its 127.0.0.1 is the host's: leave --container out".to_owned(),
        ));
    }
    if let Some(other) = mode.strip_prefix("container:") {
        let other: String = other.chars().take(12).collect();
        return Err(refuse(format!(
            "it shares the network of container {other}: use that one (--container {other})"
        )));
    }
    let state = inspected.state.unwrap_or_default();
    let pid = state.pid.and_then(|pid| i32::try_from(pid).ok()).filter(|&pid| pid > 0);
    let Some(pid) = pid.filter(|_| state.running == Some(true)) else {
        let status = state.status.map_or_else(|| "unknown".to_owned(), |status| status.to_string());
        return Err(refuse(format!(
            "it is not running (its state is {status}): start it (docker start {name})"
        )));
    };
    let settings = inspected.network_settings.unwrap_or_default();
    let published = published(settings.ports.unwrap_or_default());
    let networks = settings.networks.unwrap_or_default();
    let mut endpoints: Vec<Endpoint> =
        networks.into_iter().filter_map(|(network, settings)| endpoint(network, &settings)).collect();
    endpoints.sort();
    if endpoints.is_empty() {
        return Err(refuse(format!(
            "it has an address on no network (its network mode is {mode}), so there are no peers: connect it (docker \
             network connect NETWORK {name})"
        )));
    }
    let id = inspected.id.unwrap_or_default();
    Ok(ContainerInfo {
        id,
        name,
        pid,
        started_at: state.started_at.unwrap_or_default(),
        endpoints,
        published,
    })
}

/// The ports of `7001/tcp: [{HostPort: 8080}]`; those that are only exposed have no binding.
fn published(ports: PortMap) -> Vec<u16> {
    let bound =
        ports.into_iter().filter(|(_, bindings)| bindings.as_ref().is_some_and(|all| !all.is_empty()));
    let mut ports: Vec<u16> = bound.filter_map(|(port, _)| port.strip_suffix("/tcp")?.parse().ok()).collect();
    ports.sort_unstable();
    ports
}

fn endpoint(network: String, settings: &EndpointSettings) -> Option<Endpoint> {
    let candidates = [settings.ip_address.as_deref(), settings.global_ipv6_address.as_deref()];
    let addrs: Vec<IpAddr> = candidates.into_iter().flatten().filter_map(|ip| ip.parse().ok()).collect();
    let network_id = settings.network_id.clone().unwrap_or_default();
    (!addrs.is_empty()).then_some(Endpoint { network, network_id, addrs })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspected(mode: &str, state: &str, networks: &str) -> Result<ContainerInfo, DockerError> {
        let json = format!(
            r#"{{"Id":"c0ffee01","State":{state},"HostConfig":{{"NetworkMode":"{mode}"}},
                 "NetworkSettings":{{"Networks":{networks},"Ports":{{"80/tcp":[{{"HostIp":"","HostPort":"8080"}}],
                 "443/tcp":null,"53/udp":[{{"HostIp":"","HostPort":"53"}}]}}}}}}"#
        );
        running("web".to_owned(), serde_json::from_str(&json).unwrap())
    }

    const UP: &str = r#"{"Status":"running","Running":true,"Pid":812,"StartedAt":"2026-01-01T00:00:00Z"}"#;
    const NETWORKS: &str = r#"{"b":{"NetworkID":"22aa","IPAddress":"172.18.0.7","GlobalIPv6Address":"fd00::7"},
        "a":{"NetworkID":"11bb","IPAddress":"172.19.0.2","GlobalIPv6Address":""}}"#;

    #[test]
    fn a_running_container_has_its_endpoints_by_name() {
        let web = inspected("b", UP, NETWORKS).unwrap();
        assert_eq!((web.pid, web.started_at.as_str()), (812, "2026-01-01T00:00:00Z"));
        let names: Vec<_> = web.endpoints.iter().map(|endpoint| endpoint.network.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(web.endpoint_on("b").unwrap().network, "b");
        assert_eq!(web.endpoint_on("11").unwrap().network, "a");
        assert_eq!(web.endpoints[1].addrs.len(), 2);
        assert_eq!(web.published, [80]);
        let error = web.endpoint_on("c").unwrap_err().to_string();
        assert!(error.contains("container web on network c") && error.contains("it is on a, b"), "{error}");
    }

    #[test]
    fn a_network_of_a_container_must_be_one_and_named() {
        let networks = r#"{"a":{"NetworkID":"11bb","IPAddress":"172.18.0.7"},
            "b":{"NetworkID":"11cc","IPAddress":"172.19.0.2"}}"#;
        let web = inspected("a", UP, networks).unwrap();
        let refusal = |name: &str| web.endpoint_on(name).unwrap_err().to_string();
        assert!(refusal("11").contains("fits 2 networks: name one by id (11bb, 11cc)"));
        assert!(refusal("").contains("it is on a, b"));
        let names = |pattern: &str| -> Vec<String> {
            web.endpoints_on(pattern).unwrap().iter().map(|endpoint| endpoint.network.clone()).collect()
        };
        assert_eq!(
            [names("all"), names("*"), names("[ac]")].map(|names| names.join(" ")),
            ["a b", "a b", "a"]
        );
        assert_eq!(names("11c"), ["b"]);
        let refusal = |name: &str| web.endpoints_on(name).unwrap_err().to_string();
        assert!(refusal("db-*").contains("network db-*") && refusal("db-*").contains("it is on a, b"));
        assert!(refusal("[a").contains("[a"));
        assert_eq!(web.endpoint_on("11c").unwrap().network, "b");
    }

    #[test]
    fn containers_without_a_namespace_of_their_own_are_refused() {
        let refusal = |mode, state, networks| inspected(mode, state, networks).unwrap_err().to_string();
        assert!(refusal("host", UP, NETWORKS).contains("leave --container out"));
        assert!(refusal("container:5bba9967d5a102f8", UP, "{}").contains("--container 5bba9967d5a1"));
        let stopped = refusal("b", r#"{"Status":"exited","Running":false,"Pid":0}"#, NETWORKS);
        assert!(stopped.contains("its state is exited") && stopped.contains("docker start web"), "{stopped}");
        let none = r#"{"none":{"NetworkID":"33","IPAddress":"","GlobalIPv6Address":""}}"#;
        assert!(refusal("none", UP, none).contains("docker network connect NETWORK web"));
    }
}
