//! From what was asked for and what is there to what should be: pure, no I/O.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::{
    attachment::{Attachment, Keeper},
    bridge::Bridge,
    datapath::{self, Capabilities, Circumstances, Datapath, Reason},
    identity::Identity,
    listener::Listener,
    source::Source,
    spec::ServiceSpec,
    target::{Port, Target},
};

/// One network to attach to.
#[derive(Clone, Debug)]
pub struct Network {
    /// The container in whose namespace it is, if that is not the caller's.
    pub container: Option<String>,
    /// Docker network name, or the interface's where a bridge was given.
    pub name: String,
    /// Its bridge on this host; in a container the interface that holds the container's address.
    pub bridge: Bridge,
    /// Sources that may connect; empty: every address of the bridge's own subnets.
    pub allow: Vec<Source>,
    /// Addresses of the host that `host-gateway` resolves to in its containers.
    pub host_gateways: Vec<IpAddr>,
    /// Further addresses of the host that are to be served.
    pub gateways: Vec<IpAddr>,
}

/// `failed to attach redis (6379) on br-1a2b`, the start of every refusal.
pub fn failed_to_attach(service: &str, port: Port, bridge: &str) -> String {
    format!("failed to attach {service} ({port}) on {bridge}")
}

/// What is known of the namespace.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// Its listeners.
    pub listeners: &'a [Listener],
    /// The targets that no listener of the namespace serves, and something else holds or answers.
    pub elsewhere: &'a BTreeMap<SocketAddr, Elsewhere>,
    /// The kernel tells steering the interface.
    pub match_ifindex: bool,
}

/// Why steering cannot serve a target: no listener of the namespace takes its connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    /// A relay can serve it.
    Relayed(String),
    /// Nothing can.
    Unreachable(String),
}

/// What would be attached of a service on a network.
///
/// # Errors
/// When it cannot be served as asked; the text says why and what to do.
pub fn wanted(
    spec: &ServiceSpec,
    network: &Network,
    facts: &Capabilities,
    around: Surroundings<'_>,
) -> Result<Attachment, String> {
    let mptcp = is_mptcp(around.listeners, &spec.target);
    let only_relayed = match spec.target.tcp().and_then(|target| around.elsewhere.get(&target)) {
        Some(Elsewhere::Unreachable(why)) => return Err(why.clone()),
        Some(Elsewhere::Relayed(why)) => Some(why.clone()),
        None => in_vrf(&network.bridge).or_else(|| without_family(&network.bridge, &spec.target)),
    };
    let circumstances = Circumstances { mptcp, only_relayed: only_relayed.as_deref() };
    let choice = datapath::choose(facts, &spec.target, circumstances)?;
    attachment(spec, network, choice, facts.identity, around.match_ifindex)
}

/// The kernel reports what arrives on such a bridge as arriving on the VRF, and a rule for that would let in its other
/// interfaces.
pub fn in_vrf(bridge: &Bridge) -> Option<String> {
    let vrf = bridge.setting.vrf.as_ref()?;
    Some(format!("bridge {} is in VRF {vrf}, as which the kernel reports what arrives on it", bridge.name))
}

/// A steered connection keeps its addresses, and so their family.
fn without_family(bridge: &Bridge, target: &Target) -> Option<String> {
    let target = target.tcp()?;
    let is_missing = bridge.addrs.iter().all(|net| net.addr().is_ipv4() != target.is_ipv4());
    let family = if target.is_ipv4() { "IPv4" } else { "IPv6" };
    is_missing.then(|| format!("bridge {} has no {family} address to steer to {target} from", bridge.name))
}

fn attachment(
    spec: &ServiceSpec,
    network: &Network,
    (datapath, reason): (Datapath, Reason),
    identity: Identity,
    match_ifindex: bool,
) -> Result<Attachment, String> {
    let bridge = &network.bridge;
    // A relay joins any family to any target.
    let (own, allow) = match spec.target.tcp().filter(|_| !datapath.is_relay()) {
        Some(target) => steered(network, target, match_ifindex)?,
        None => (bridge.addrs.clone(), allowed_to_relay(network)?),
    };
    let mut gateways: BTreeSet<IpAddr> = own.iter().map(IpNet::addr).collect();
    match spec.target.tcp().filter(|_| !datapath.is_relay()) {
        Some(target) => gateways.extend(further(network, target, match_ifindex)?),
        None => gateways.extend(network.host_gateways.iter().chain(&network.gateways)),
    }
    let is_gateway =
        |net: &&IpNet| net.prefix_len() == net.max_prefix_len() && gateways.contains(&net.addr());
    if let Some(host) = allow.iter().filter_map(Source::net).find(is_gateway) {
        return Err(format!(
            "--allow {} is the gateway itself, which no container connects from: allow the containers' addresses",
            host.addr()
        ));
    }
    refuse_subnet_without_prefix(&network.allow, bridge)?;
    Ok(Attachment {
        service: spec.service.clone(),
        container: network.container.clone(),
        network: network.name.clone(),
        bridge: bridge.name.clone(),
        ifindex: bridge.index,
        port: spec.port,
        target: spec.target.clone(),
        gateways,
        allow,
        datapath,
        reason,
        // A relay is itself the service's peer.
        identity: if datapath.is_relay() { Identity::Loopback } else { identity },
        // Who asks is not known here.
        keeper: Keeper::Command,
    })
}

/// `--allow 172.17.0.0`, which admits nobody: no container has that address.
fn refuse_subnet_without_prefix(allow: &[Source], bridge: &Bridge) -> Result<(), String> {
    let is_subnet = |source: &Source| {
        let net = source.net().filter(|net| net.prefix_len() == net.max_prefix_len())?;
        // A subnet of two addresses or fewer has none of its own.
        let mut subnets = bridge.addrs.iter().filter(|own| own.prefix_len() + 1 < own.max_prefix_len());
        subnets.find(|own| own.network() == net.addr()).map(IpNet::trunc)
    };
    match allow.iter().find_map(is_subnet) {
        None => Ok(()),
        Some(subnet) => Err(format!(
            "--allow {} is the address of the subnet itself, which no container has: use `--allow {subnet}`",
            subnet.addr()
        )),
    }
}

/// The bridge's addresses of the target's family, and the allow-list for them.
fn steered(
    network: &Network,
    target: SocketAddr,
    match_ifindex: bool,
) -> Result<(Vec<IpNet>, BTreeSet<Source>), String> {
    let bridge = &network.bridge;
    let own: Vec<IpNet> =
        bridge.addrs.iter().copied().filter(|a| a.addr().is_ipv4() == target.is_ipv4()).collect();
    let subnets = subnets(&own);
    let allow = if network.allow.is_empty() {
        everybody(subnets, bridge, &own)?
    } else {
        allowed(&network.allow, &subnets, target, match_ifindex)?
    };
    Ok((own, allow))
}

/// The host's other addresses that are served too, of the target's family. Where rules do not tell the bridge, one for
/// such an address would be for every bridge.
fn further(network: &Network, target: SocketAddr, match_ifindex: bool) -> Result<Vec<IpAddr>, String> {
    let is_family = |address: &&IpAddr| address.is_ipv4() == target.is_ipv4();
    let asked = network.gateways.iter().filter(is_family);
    if match_ifindex {
        return Ok(network.host_gateways.iter().filter(is_family).chain(asked).copied().collect());
    }
    match asked.copied().find(|asked| !network.bridge.addrs.iter().any(|net| net.addr() == *asked)) {
        None => Ok(Vec::new()),
        Some(address) => Err(format!(
            "--gateway {address} is no address of the bridge, and this kernel (below 5.17) does not tell steering \
             which bridge a connection to it comes from: leave it out, use a newer kernel, or relay (--datapath \
             splice --foreground)"
        )),
    }
}

fn allowed_to_relay(network: &Network) -> Result<BTreeSet<Source>, String> {
    let bridge = &network.bridge;
    if network.allow.is_empty() {
        return everybody(subnets(&bridge.addrs), bridge, &bridge.addrs);
    }
    Ok(network.allow.iter().map(truncated).collect())
}

/// Where containers are, by the addresses of their bridge: one with a full prefix, as of a virtual IP, says nothing of
/// that.
fn subnets(own: &[IpNet]) -> BTreeSet<IpNet> {
    own.iter().filter(|net| net.prefix_len() < net.max_prefix_len()).map(IpNet::trunc).collect()
}

/// The allow-list where nobody asked for one.
fn everybody(subnets: BTreeSet<IpNet>, bridge: &Bridge, own: &[IpNet]) -> Result<BTreeSet<Source>, String> {
    let name = &bridge.name;
    if subnets.is_empty() {
        return Err(format!(
            "{name} has no subnet whose containers could be let in, only {}: say with --allow who may connect",
            list(own)
        ));
    }
    if let Some(uplink) = &bridge.setting.uplink {
        return Err(format!(
            "bridge {name} leads to other machines ({uplink}), and without --allow all of {} could connect: use \
             --allow with the addresses of the containers, or {} to let in the machines too",
            list(&subnets),
            subnets.iter().map(|net| format!("--allow {net}")).collect::<Vec<_>>().join(" ")
        ));
    }
    Ok(subnets.into_iter().map(Source::Net).collect())
}

/// A network without the bits of a host in it.
fn truncated(source: &Source) -> Source {
    match source {
        Source::Net(net) => Source::Net(net.trunc()),
        container => container.clone(),
    }
}

/// The allow-list that was asked for, for one family. Without `ingress_ifindex` the source subnet is the only proof
/// that a connection came over the bridge, so a wider list is refused there.
fn allowed(
    asked: &[Source],
    subnets: &BTreeSet<IpNet>,
    target: SocketAddr,
    match_ifindex: bool,
) -> Result<BTreeSet<Source>, String> {
    let all = asked;
    let has_family = |source: &&Source| source.addr().is_ipv4() == target.is_ipv4();
    let asked: BTreeSet<Source> = all.iter().filter(has_family).map(truncated).collect();
    if asked.is_empty() {
        return Err(format!(
            "--allow {} has no address of the target's family, and target {target} is reached over {}: allow an \
             address within {}",
            list(all),
            if target.is_ipv4() { "IPv4" } else { "IPv6" },
            list(subnets)
        ));
    }
    // A container proves by itself which one it is.
    let mut nets = asked.iter().filter_map(Source::net);
    if let Some(outside) = nets.find(|net| !match_ifindex && !subnets.iter().any(|s| s.contains(*net))) {
        return Err(format!(
            "--allow {outside} is outside the bridge's subnet {}, and this kernel (below 5.17) can tell the bridge \
             only by its subnet: allow sources within it, or use a newer kernel",
            list(subnets)
        ));
    }
    Ok(asked)
}

/// Two services on one port of the gateway; one for each family of the gateway's addresses is possible.
///
/// # Errors
/// Names both.
pub fn no_two_on_one_port(specs: &[ServiceSpec]) -> Result<(), String> {
    let mut by_port: HashMap<Port, Vec<&ServiceSpec>> = HashMap::new();
    for spec in specs {
        let there = by_port.entry(spec.port).or_default();
        if let Some(first) = there.iter().find(|first| on_one_port(first, spec)) {
            return Err(format!(
                "the command line asks for port {} twice, for {} and {}: give each its own port, \
                 NAME=PORT:TARGET_PORT",
                spec.port, first.service, spec.service
            ));
        }
        there.push(spec);
    }
    Ok(())
}

/// Whether one network cannot have both: at one port, and not told apart by their families and names.
pub fn on_one_port(one: &ServiceSpec, other: &ServiceSpec) -> bool {
    let family = |spec: &ServiceSpec| spec.target.tcp().map(|target| target.is_ipv4());
    let apart = family(one).zip(family(other)).is_some_and(|(one, other)| one != other);
    one.port == other.port && !(apart && one.service != other.service)
}

/// The listener, if any, that already answers at the gateway's port, and is not the service itself.
pub fn bound_on_gateway<'a>(listeners: &'a [Listener], state: &Attachment) -> Option<&'a Listener> {
    let own = on_every_address(listeners, state).map(|listener| listener.cookie);
    // One that is bound to another interface, also to a bridge that is gone, gets nothing from this one.
    let mut here = listeners.iter().filter(|listener| [0, state.ifindex].contains(&listener.device));
    let at = |&gateway| SocketAddr::new(gateway, state.port.get());
    here.find(|l| state.gateways.iter().map(at).any(|gateway| l.serves(gateway)) && own != Some(l.cookie))
}

/// Where an attachment's relay listens: its port of its gateways, bound to its bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayPlace {
    ifindex: u32,
    port: Port,
    gateways: BTreeSet<IpAddr>,
}

impl RelayPlace {
    /// That of a relayed attachment.
    pub fn of(relayed: &Attachment) -> Self {
        let Attachment { ifindex, port, gateways, .. } = relayed;
        Self { ifindex: *ifindex, port: *port, gateways: gateways.clone() }
    }

    /// Whether the listener is one of that relay.
    pub fn is_of(&self, listener: &Listener) -> bool {
        listener.addr.port() == self.port.get()
            && listener.device == self.ifindex
            && self.gateways.contains(&listener.addr.ip())
    }
}

/// The service's own listener, where that is on every address and so has the gateway's port, too. One that is bound to
/// the target's address alone is the service in its place.
pub fn on_every_address<'a>(listeners: &'a [Listener], state: &Attachment) -> Option<&'a Listener> {
    let target = state.target.tcp().filter(|target| target.port() == state.port.get())?;
    let serving = listeners.iter().filter(|listener| listener.can_serve(target));
    serving.min_by_key(|listener| listener.is_on_every_address()).filter(|one| one.is_on_every_address())
}

/// Whether an MPTCP listener serves `target` now.
pub fn is_mptcp(listeners: &[Listener], target: &Target) -> bool {
    target.tcp().is_some_and(|target| mptcp_listener(listeners, target).is_some())
}

/// The MPTCP listener that serves `target`, if no plain one on an equally specific address does: the kernel gives a
/// connection to one on the most specific address.
pub fn mptcp_listener(listeners: &[Listener], target: SocketAddr) -> Option<&Listener> {
    let serving = || listeners.iter().filter(|listener| listener.can_serve(target));
    let best = serving().map(|listener| listener.specificity(target)).max()?;
    let mut closest = serving().filter(|listener| listener.specificity(target) == best);
    let first = closest.next()?;
    (first.mptcp && closest.all(|listener| listener.mptcp)).then_some(first)
}

/// `attached: a, b`, the end of a refusal of an unknown name.
pub fn known<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    match list(names) {
        names if names.is_empty() => "nothing is attached in this network namespace".to_owned(),
        names => format!("attached: {names}"),
    }
}

/// Comma-separated.
pub fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

/// The first `most`, and how many more there are.
pub fn few<T: ToString>(items: impl IntoIterator<Item = T>, separator: &str, most: usize) -> String {
    let mut items = items.into_iter();
    let first: Vec<_> = items.by_ref().take(most).map(|item| item.to_string()).collect();
    let first = first.join(separator);
    match items.count() {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

#[cfg(test)]
#[path = "wanted_tests.rs"]
mod tests;
