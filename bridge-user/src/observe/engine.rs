//! Whether an engine's bridges are those of this network namespace.
//!
//! Invariant: a name such as docker0 proves nothing, every engine has one. An engine is refused for what is seen, and
//! not for what cannot be seen: its process may be behind a proxy, or in another PID namespace.

use std::{fs, net::IpAddr};

use anyhow::bail;

use super::networks::BlockingDocker;
use crate::{
    engine::networks::BridgeNetwork,
    model::bridge::Bridge,
    net::{links::link_by_name, namespace::Namespace, own::OwnAddresses},
    plan,
};

/// The process that listens on an engine's socket.
pub(super) struct EngineProcess {
    pid: i32,
    namespace: Namespace,
}

impl EngineProcess {
    /// As far as it is to be seen.
    pub(super) fn of(docker: &BlockingDocker) -> Option<Self> {
        let pid = docker.runtime.block_on(docker.docker.process())?;
        Some(Self { pid, namespace: Namespace::of_process(pid).ok()? })
    }
}

/// Refuses a network of an engine that is on another machine, or has the network's bridge in another namespace.
///
/// # Errors
/// Says where the engine is, and how to attach there.
pub(super) fn require_here(
    docker: &BlockingDocker,
    process: Option<&EngineProcess>,
    network: &BridgeNetwork,
    namespace: &Namespace,
) -> anyhow::Result<()> {
    let host = docker.docker.host();
    if let Some(address) = machine(host)
        && OwnAddresses::of(namespace).is_ok_and(|own| own.contain(address).is_ok_and(|is_own| !is_own))
    {
        bail!(
            "failed to attach to network {}: its engine is at {host}, and {address} is no address of this network \
             namespace: run bridge-user on that machine, or set DOCKER_HOST to the engine of this one",
            network.name
        );
    }
    let Some(EngineProcess { pid, namespace: theirs }) = process else { return Ok(()) };
    if theirs == namespace || !link_by_name(theirs, &network.bridge).is_ok_and(|link| link.is_some()) {
        return Ok(());
    }
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    bail!(
        "failed to attach to network {}: its engine at {host} is {} (pid {pid}) in another network namespace \
         (net:[{}]), and so is its bridge {}: run bridge-user there (nsenter --net=/proc/{pid}/ns/net bridge-user …), \
         or set DOCKER_HOST to the engine of this one",
        network.name,
        name.trim(),
        theirs.inode(),
        network.bridge
    )
}

/// Refuses a bridge that has the name of the engine's and none of its addresses.
///
/// # Errors
/// Names both sides' addresses.
pub(super) fn require_same(network: &BridgeNetwork, bridge: &Bridge) -> anyhow::Result<()> {
    let is_in = |address: IpAddr| network.subnets.iter().any(|subnet| subnet.contains(&address));
    if network.subnets.is_empty()
        || network.without_gateway.is_some()
        || bridge.addrs.iter().any(|net| is_in(net.addr()))
    {
        return Ok(());
    }
    bail!(
        "failed to attach to network {}: the engine says its subnet is {}, and {} here has {}, so it is another \
         engine's: set DOCKER_HOST to the engine of this network namespace, or use --bridge {} to mean the bridge that \
         is here",
        network.name,
        plan::list(&network.subnets),
        bridge.name,
        plan::list(&bridge.addrs),
        bridge.name
    )
}

/// The machine of an engine that is reached over TCP, where an address says it.
fn machine(host: &str) -> Option<IpAddr> {
    let (scheme, address) = host.split_once("://")?;
    if scheme == "unix" {
        return None;
    }
    let (machine, _port) = address.trim_end_matches('/').rsplit_once(':')?;
    machine.trim_matches(['[', ']']).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::bridge::Setting;

    #[test]
    fn an_engines_machine_is_told_by_its_address() {
        let of = |host| machine(host).map(|address| address.to_string());
        assert_eq!(of("tcp://192.0.2.7:2375").as_deref(), Some("192.0.2.7"));
        assert_eq!(of("tcp://[2001:db8::7]:2375/").as_deref(), Some("2001:db8::7"));
        assert_eq!(of("tcp://engine:2375"), None);
        assert_eq!(of("unix:///run/docker.sock"), None);
    }

    #[test]
    fn a_bridge_of_another_subnet_is_another_engines() {
        let judged = |subnet: &str, without_gateway: Option<&str>| {
            let network = BridgeNetwork {
                id: "1".into(),
                name: "bridge".into(),
                bridge: "docker0".into(),
                gateways: Vec::new(),
                subnets: subnet.parse().into_iter().collect(),
                internal: false,
                without_gateway: without_gateway.map(str::to_owned),
            };
            let addrs = vec!["172.17.0.1/16".parse().unwrap()];
            let bridge = Bridge { index: 3, name: "docker0".into(), addrs, setting: Setting::default() };
            require_same(&network, &bridge)
        };
        assert!(judged("172.17.0.0/16", None).is_ok());
        assert!(judged("", None).is_ok(), "the engine does not tell");
        assert!(judged("172.30.0.0/16", Some("inhibit")).is_ok(), "its owner gives it addresses");
        let error = judged("172.30.0.0/16", None).unwrap_err().to_string();
        assert!(
            error.contains("172.30.0.0/16") && error.contains("docker0 here has 172.17.0.1/16"),
            "{error}"
        );
    }
}
