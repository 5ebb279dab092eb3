//! From what the command line calls networks to the networks and bridges there are.
//!
//! Invariants: a network that was named is used or refused, whatever becomes of others; one that a pattern stands for
//! is used, or left out and told of, unless none is left, which is the pattern's refusal.

use std::{collections::HashSet, net::IpAddr};

use anyhow::{anyhow, bail};

use super::{
    engine::{EngineProcess, require_here, require_same},
    gateways::host_gateways,
    meant,
    networks::{Asked, BlockingDocker, Gathered},
};
use crate::{
    engine::{docker::DockerError, networks::BridgeNetwork},
    model::{attachment::Keeper, codes, finding::Finding, pattern::is_pattern},
    net::{NetError, links::bridge_by_name, namespace::Namespace},
    plan::{Network, request::Request},
};

/// The networks of a request, and what was left out.
#[derive(Default)]
pub(crate) struct Resolved {
    /// Each one once.
    pub(crate) networks: Vec<Asked>,
    /// Those that a pattern stands for and that cannot be used, and what else was gathered.
    pub(crate) gathered: Gathered,
    /// The ids of the networks.
    ids: HashSet<String>,
}

impl Resolved {
    fn add(&mut self, network: BridgeNetwork, found: anyhow::Result<Network>) {
        self.networks.push(Asked::new(&network.name, found));
        self.ids.insert(network.id);
    }
}

/// The engine's networks that a request names.
pub(super) fn networks(
    docker: &Result<BlockingDocker, String>,
    request: &Request,
    namespace: &Namespace,
) -> Resolved {
    let default = ["bridge".to_owned()];
    let names = if request.networks.is_empty() { &default } else { &request.networks[..] };
    let mut resolved = Resolved::default();
    match Resolving::new(docker, request, namespace) {
        Ok(resolving) => {
            // A pattern leaves out only what nobody named.
            let (patterns, named): (Vec<_>, Vec<_>) = names.iter().partition(|name| is_pattern(name));
            named.into_iter().for_each(|name| resolving.add_named(name, &mut resolved));
            patterns.into_iter().for_each(|name| resolving.add_matching(name, &mut resolved));
        }
        Err(error) => {
            let error = format!("{error:#}");
            let refused = |name: &String| Asked { name: name.clone(), found: Err(error.clone()) };
            resolved.networks.extend(names.iter().map(refused));
        }
    }
    resolved
}

fn left_out(network: &str, error: &anyhow::Error) -> Finding {
    let cause = format!("it is not attached to: {error:#}");
    codes::NETWORK_LEFT_OUT.finding(format!("network {network}"), cause, "name the networks to attach to")
}

struct Resolving<'a> {
    docker: &'a BlockingDocker,
    process: Option<EngineProcess>,
    request: &'a Request,
    namespace: &'a Namespace,
    host_gateways: Vec<IpAddr>,
}

impl<'a> Resolving<'a> {
    /// # Errors
    /// When no network of this engine can be used.
    fn new(
        docker: &'a Result<BlockingDocker, String>,
        request: &'a Request,
        namespace: &'a Namespace,
    ) -> anyhow::Result<Self> {
        let docker = docker.as_ref().map_err(|error| anyhow!("{error}"))?;
        docker.ask(docker.docker.refuse_elsewhere())?;
        let host_gateways = host_gateways(docker, namespace)?;
        let process = EngineProcess::of(docker);
        Ok(Self { docker, process, request, namespace, host_gateways })
    }

    fn add_named(&self, name: &str, resolved: &mut Resolved) {
        match self.docker.ask(self.docker.docker.network(name)) {
            Ok(network) if resolved.ids.contains(&network.id) => {}
            Ok(network) => {
                let found = self.network(&network, &mut resolved.gathered);
                resolved.add(network, found);
            }
            Err(error) => {
                let error = meant::by_network(error, self.docker, self.namespace, name);
                resolved.networks.push(Asked::new(name, Err(error)));
            }
        }
    }

    fn add_matching(&self, pattern: &str, resolved: &mut Resolved) {
        let matching = match self.docker.ask(self.docker.docker.networks_like(pattern)) {
            Ok(matching) => matching,
            // They are attached to when they are made.
            Err(DockerError::NoMatch { .. }) if self.request.keeper == Keeper::Config => return,
            Err(error) => return resolved.networks.push(Asked::new(pattern, Err(error.into()))),
        };
        let is_known = |network: &BridgeNetwork| resolved.ids.contains(&network.id);
        let (known, new): (Vec<_>, Vec<_>) = matching.into_iter().partition(is_known);
        let mut is_used = !known.is_empty();
        let mut refusals = Vec::new();
        for network in new {
            match self.network(&network, &mut resolved.gathered) {
                Ok(found) => {
                    is_used = true;
                    resolved.add(network, Ok(found));
                }
                Err(error) => refusals.push((network.name, error)),
            }
        }
        if is_used {
            resolved
                .gathered
                .left_out
                .extend(refusals.iter().map(|(network, error)| left_out(network, error)));
        } else if let Some((_, first)) = refusals.into_iter().next() {
            let error = first.context(format!("failed to use any network that `{pattern}` stands for"));
            resolved.networks.push(Asked::new(pattern, Err(error)));
        }
    }

    fn network(&self, network: &BridgeNetwork, gathered: &mut Gathered) -> anyhow::Result<Network> {
        let Self { docker, process, request, namespace, host_gateways } = self;
        require_here(docker, process.as_ref(), network, namespace)?;
        let bridge = match bridge_by_name(namespace, &network.bridge) {
            Err(NetError::NoAddress { name }) => bail!(without_gateway(network, &name)),
            Err(error @ NetError::UnknownInterface { .. }) => {
                return Err(self.without_bridge(network, error)?);
            }
            found => found?,
        };
        require_same(network, &bridge)?;
        let allow = docker.sources(request, (&network.id, &network.name), gathered)?;
        // Containers of an internal network have no route there.
        let host_gateways = if network.internal { Vec::new() } else { host_gateways.clone() };
        let (name, gateways) = (network.name.clone(), request.gateways.clone());
        Ok(Network { container: None, name, bridge, allow, host_gateways, gateways })
    }

    /// Why the bridge of a network is not there.
    fn without_bridge(&self, network: &BridgeNetwork, error: NetError) -> anyhow::Result<anyhow::Error> {
        if self.docker.ask(self.docker.docker.is_podman())? {
            return Ok(anyhow!(
                "failed to attach to network {}: its bridge {} is not there: Podman makes it with the network's first \
                 container and removes it with the last: start a container, then attach",
                network.name,
                network.bridge
            ));
        }
        let what =
            format!("failed to find the bridge of Docker network {} in this network namespace", network.name);
        Ok(anyhow::Error::new(error).context(what))
    }
}

/// What its owner wants is no fault to be mended.
fn without_gateway(network: &BridgeNetwork, bridge: &str) -> String {
    let why = match &network.without_gateway {
        Some(option) => format!("its owner wants none ({option})"),
        None => format!("its bridge {bridge} has no address"),
    };
    format!(
        "failed to attach to network {}: it has no gateway on this host, {why}, so its containers reach nothing of the \
         host: choose another network, and connect to it those containers that may",
        network.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_without_a_gateway_is_not_told_to_get_one() {
        let isolated = BridgeNetwork {
            id: "1".into(),
            name: "closed".into(),
            bridge: "br-1".into(),
            gateways: Vec::new(),
            subnets: Vec::new(),
            internal: true,
            without_gateway: Some("gateway_mode_ipv4=isolated".into()),
        };
        let text = without_gateway(&isolated, "br-1");
        assert!(text.contains("gateway_mode_ipv4=isolated") && !text.contains("ip address add"), "{text}");
    }
}
