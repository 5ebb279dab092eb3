//! What a forward becomes: an attach, on which bridges, and who would not be served by it any more. Pure.
//!
//! Invariants: the service goes on to see a local client, which is what it sees of a forward; an attachment admits
//! nobody that the forward did not; who is connected and would be left out is named.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;

use super::{Forward, Listen};
use crate::model::{escape::quoted, presets, spec::ServiceSpec, target::Target};

/// An interface of this host.
#[derive(Clone, Debug)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The addresses on it, with their subnets.
    pub addresses: Vec<IpNet>,
    /// It is a bridge.
    pub is_bridge: bool,
    /// The engine's network on it, if there is one.
    pub network: Option<String>,
}

/// What there is.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// Every interface but loopback.
    pub interfaces: Vec<Interface>,
    /// Connections that are established: this host's end, and the other.
    pub connections: Vec<(SocketAddr, SocketAddr)>,
}

/// An attach that takes the place of a forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Becomes {
    /// Its command line.
    pub command: String,
    /// Who is connected now: a source, and how often.
    pub connected: BTreeMap<IpAddr, usize>,
    /// Who would be left out: those of them that are, and whoever could have connected before.
    pub left_out: Vec<String>,
    /// What else changes.
    pub notes: Vec<String>,
}

/// The attach that takes the place of `forward`; `only`: the interface that it was for.
///
/// # Errors
/// Why there is none.
pub fn becomes(forward: &Forward, only: Option<&str>, host: &Host) -> Result<Becomes, String> {
    let bridges = bridges(forward, only, host)?;
    let connected = connected(forward, host);
    let admits = |source: &IpAddr| {
        let nets = bridges.iter().flat_map(|bridge| &bridge.addresses);
        let is_own = host.interfaces.iter().flat_map(|one| &one.addresses).any(|net| net.addr() == *source);
        !is_own && !source.is_loopback() && nets.clone().any(|net| net.contains(source))
    };
    let mut left_out: Vec<String> = connected
        .keys()
        .filter(|source| !admits(source))
        .map(|source| format!("{source}, which is connected now"))
        .collect();
    left_out.extend(could(forward, &bridges, host));
    Ok(Becomes { command: command(forward, &bridges), connected, left_out, notes: notes(forward) })
}

/// The bridges whose containers the forward serves.
fn bridges<'a>(forward: &Forward, only: Option<&str>, host: &'a Host) -> Result<Vec<&'a Interface>, String> {
    let listen = &forward.listen;
    let has = |interface: &&Interface| interface.addresses.iter().any(|net| net.addr() == listen.address);
    let named = |interface: &&Interface| only.is_none_or(|name| interface.name == name);
    if listen.address.is_loopback() {
        return Err(format!("it listens on {listen}, which only this host reaches"));
    }
    if !listen.is_everywhere() {
        let interface = host.interfaces.iter().find(has).ok_or_else(|| {
            format!(
                "it listens on {listen}, an address that no interface has: its network is gone, or not up"
            )
        })?;
        if forward.target.tcp().is_some_and(|target| target.is_ipv4() != listen.address.is_ipv4()) {
            return Err(format!(
                "it takes clients at {listen} to {}, of the other address family",
                forward.target
            ));
        }
        if !interface.is_bridge {
            return Err(format!(
                "it listens on {listen}, an address of {}, which is no bridge",
                interface.name
            ));
        }
        return Ok(vec![interface]);
    }
    let serves = |interface: &&Interface| {
        interface.is_bridge && interface.addresses.iter().any(|net| reaches(forward, net))
    };
    let found: Vec<&Interface> = host.interfaces.iter().filter(serves).filter(named).collect();
    match found.is_empty() {
        true => Err("no bridge of this host has an address of its family and in its range".to_owned()),
        false => Ok(found),
    }
}

/// Whether sources in this subnet get to the forward.
fn reaches(forward: &Forward, net: &IpNet) -> bool {
    let family = forward.listen.both_families || net.addr().is_ipv4() == forward.listen.address.is_ipv4();
    // What is attached has the family of its target.
    let family = family && forward.target.tcp().is_none_or(|target| target.is_ipv4() == net.addr().is_ipv4());
    let meets = |allowed: &IpNet| allowed.contains(&net.trunc()) || net.contains(&allowed.trunc());
    family && (forward.allow.is_empty() || forward.allow.iter().any(meets))
}

fn connected(forward: &Forward, host: &Host) -> BTreeMap<IpAddr, usize> {
    let Listen { address, both_families, port } = forward.listen;
    let target = forward.target.tcp();
    let is_its = |local: SocketAddr| {
        let ip = local.ip().to_canonical();
        let family = both_families || ip.is_ipv4() == address.is_ipv4();
        let here = if address.is_unspecified() { family } else { ip == address };
        here && local.port() == port.get() && target != Some(SocketAddr::new(ip, local.port()))
    };
    let mut sources = BTreeMap::new();
    for (_, remote) in host.connections.iter().filter(|(local, _)| is_its(*local)) {
        *sources.entry(remote.ip().to_canonical()).or_default() += 1;
    }
    sources
}

/// Who could connect to the forward, and not to the attachment.
fn could(forward: &Forward, bridges: &[&Interface], host: &Host) -> Vec<String> {
    let mut who = Vec::new();
    let own = host.interfaces.iter().flat_map(|interface| &interface.addresses).map(IpNet::addr);
    let admits =
        |source: IpAddr| forward.allow.is_empty() || forward.allow.iter().any(|net| net.contains(&source));
    if own.clone().any(admits) {
        who.push(format!("programs of this host that use {}", forward.listen));
    }
    if forward.listen.both_families && forward.target.tcp().is_some() {
        who.push("clients of the address family that the target does not have".to_owned());
    }
    let is_other = |interface: &&Interface| !bridges.iter().any(|bridge| bridge.name == interface.name);
    for interface in host.interfaces.iter().filter(is_other) {
        let nets: BTreeSet<String> = interface
            .addresses
            .iter()
            .filter(|net| reaches(forward, net))
            .map(|net| net.trunc().to_string())
            .collect();
        if forward.listen.is_everywhere() && !nets.is_empty() {
            let nets: Vec<String> = nets.into_iter().collect();
            who.push(format!("whoever reaches this host by {} ({})", interface.name, nets.join(", ")));
        }
    }
    who
}

fn command(forward: &Forward, bridges: &[&Interface]) -> String {
    let mut words = vec!["bridge-user attach".to_owned(), quoted(&spec(forward)).into_owned()];
    for bridge in bridges {
        words.push(match &bridge.network {
            Some(network) => format!("--network {}", quoted(network)),
            None => format!("--bridge {}", quoted(&bridge.name)),
        });
    }
    words.push("--identity loopback".to_owned());
    words.extend(forward.allow.iter().map(|net| format!("--allow {}", net.trunc())));
    words.join(" ")
}

/// The SPEC, by the preset's name where the target's port is a preset's.
fn spec(forward: &Forward) -> String {
    let port = forward.listen.port;
    let target = &forward.target;
    let preset = target
        .tcp()
        .and_then(|target| presets::PRESETS.iter().find(|preset| preset.port.get() == target.port()));
    let plain = Target::loopback(port) == *target;
    match preset {
        Some(preset) if plain && preset.port == port => preset.name.to_owned(),
        Some(preset) => {
            ServiceSpec { service: preset.name.to_owned(), port, target: target.clone() }.to_string()
        }
        None if plain => port.to_string(),
        None => format!("{port}:{target}"),
    }
}

fn notes(forward: &Forward) -> Vec<String> {
    let mut notes = forward.notes.clone();
    if let Some(most) = forward.max_connections {
        notes.push(format!(
            "it takes at most {most} connections; a steered service has a limit of its own, a relay --max-connections"
        ));
    }
    if let Some(idle) = forward.idle_timeout {
        notes.push(format!(
            "it ends connections after {idle} s of silence; a steered service does that itself, a relay has \
             --idle-timeout"
        ));
    }
    if matches!(forward.target, Target::Unix(_)) {
        notes.push("a UNIX socket is relayed, by the daemon or with --foreground".to_owned());
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::socat;

    fn interface(name: &str, address: &str, is_bridge: bool, network: Option<&str>) -> Interface {
        let addresses = vec![address.parse().unwrap()];
        Interface { name: name.to_owned(), addresses, is_bridge, network: network.map(str::to_owned) }
    }

    fn host() -> Host {
        let at = |text: &str| text.parse().unwrap();
        Host {
            interfaces: vec![
                interface("docker0", "172.17.0.1/16", true, Some("bridge")),
                interface("br-x", "172.18.0.1/16", true, None),
                interface("eth0", "192.168.1.5/24", false, None),
            ],
            connections: vec![
                (at("172.17.0.1:11434"), at("172.17.0.2:40000")),
                (at("172.17.0.1:11434"), at("172.17.0.2:40001")),
                (at("[::ffff:172.17.0.1]:11434"), at("[::ffff:172.17.0.1]:40002")),
                (at("127.0.0.1:11434"), at("127.0.0.1:40003")),
            ],
        }
    }

    fn of(line: &str) -> Result<Becomes, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        becomes(&socat::parse(&words).unwrap(), None, &host())
    }

    #[test]
    fn a_gateway_becomes_its_bridge() {
        let found = of("TCP-LISTEN:11434,bind=172.17.0.1,fork TCP:127.0.0.1:11434").unwrap();
        assert_eq!(found.command, "bridge-user attach ollama --network bridge --identity loopback");
        let connected: Vec<_> =
            found.connected.iter().map(|(source, count)| format!("{source} {count}")).collect();
        assert_eq!(connected, ["172.17.0.1 1", "172.17.0.2 2"]);
        assert_eq!(
            found.left_out,
            ["172.17.0.1, which is connected now", "programs of this host that use 172.17.0.1:11434",]
        );
        let other = of("TCP-LISTEN:80,bind=172.18.0.1,fork TCP:127.0.0.1:5432").unwrap();
        assert_eq!(
            other.command,
            "bridge-user attach postgres=80:127.0.0.1:5432 --bridge br-x --identity loopback"
        );
    }

    #[test]
    fn everywhere_becomes_every_bridge_and_says_who_is_left_out() {
        let found = of("TCP-LISTEN:7000,fork TCP:127.0.0.1:7000").unwrap();
        assert_eq!(
            found.command,
            "bridge-user attach 7000 --network bridge --bridge br-x --identity loopback"
        );
        assert_eq!(
            found.left_out,
            [
                "programs of this host that use 0.0.0.0:7000",
                "whoever reaches this host by eth0 (192.168.1.0/24)",
            ]
        );
        let ranged = of("TCP-LISTEN:7000,fork,range=172.18.0.0/24 TCP:127.0.0.1:7000").unwrap();
        let expected = "bridge-user attach 7000 --bridge br-x --identity loopback --allow 172.18.0.0/24";
        assert_eq!(ranged.command, expected);
        assert_eq!(ranged.left_out, ["programs of this host that use 0.0.0.0:7000"]);
    }

    #[test]
    fn what_no_bridge_has_is_left_alone() {
        for (line, why) in [
            ("TCP-LISTEN:1,bind=127.0.0.1,fork TCP:127.0.0.1:2", "only this host reaches"),
            ("TCP-LISTEN:1,bind=192.168.1.5,fork TCP:127.0.0.1:2", "eth0, which is no bridge"),
            ("TCP-LISTEN:1,bind=172.30.0.1,fork TCP:127.0.0.1:2", "no interface has"),
            ("TCP6-LISTEN:1,fork TCP:127.0.0.1:2", "no bridge of this host"),
            ("TCP-LISTEN:1,range=10.0.0.0/8,fork TCP:127.0.0.1:2", "no bridge of this host"),
        ] {
            let found = of(line).unwrap_err();
            assert!(found.contains(why), "{line}: {found}");
        }
    }

    #[test]
    fn limits_are_told_of() {
        let found = of("-T 60 TCP-LISTEN:1,bind=172.17.0.1,fork,max-children=5 UNIX-CONNECT:/run/x").unwrap();
        assert_eq!(found.command, "bridge-user attach 1:unix:/run/x --network bridge --identity loopback");
        assert_eq!(found.notes.len(), 3);
    }
}
