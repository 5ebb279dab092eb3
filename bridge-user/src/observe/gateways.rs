//! The addresses of the host that containers use besides their network's own gateway: `host-gateway`, and `--gateway`.
//!
//! Invariants: nothing is served but what is an address of this host; `host-gateway` is served where its port is free,
//! and is never a reason to refuse a network's own gateway, whereas `--gateway` was asked for and is refused.

use std::net::IpAddr;

use anyhow::{Context as _, bail, ensure};

use super::networks::BlockingDocker;
use crate::{
    UsageError,
    model::{attachment::Attachment, bridge::Bridge, codes, finding::Finding, listener::Listener},
    net::{
        links::{addresses, link_by_name, own_addresses},
        namespace::Namespace,
        own::OwnAddresses,
    },
    plan::{self, Candidate, Network},
};

/// What `host-gateway` resolves to in every container: the gateways of the default network.
pub(super) fn host_gateways(docker: &BlockingDocker, namespace: &Namespace) -> anyhow::Result<Vec<IpAddr>> {
    let Some(default) = docker.ask(docker.docker.host_gateway_network())? else { return Ok(Vec::new()) };
    let mut gateways = default.gateways;
    // Docker 20.10 does not always tell; it takes the first address then.
    if gateways.is_empty()
        && let Some(link) = link_by_name(namespace, &default.bridge)?
    {
        gateways.extend(addresses(namespace, link.index)?.first().map(|net| net.addr()));
    }
    let own = OwnAddresses::of(namespace).context("failed to ask for this host's addresses")?;
    gateways.retain(|&address| own.contain(address).unwrap_or(false));
    Ok(gateways)
}

/// Requires that what `--gateway` names can be served.
///
/// # Errors
/// Says why not, and which addresses there are.
pub(super) fn require_local(asked: &[IpAddr], namespace: &Namespace) -> anyhow::Result<()> {
    if asked.is_empty() {
        return Ok(());
    }
    if let Some(loopback) = asked.iter().find(|address| address.to_canonical().is_loopback()) {
        bail!(UsageError(format!(
            "--gateway {loopback} is a loopback address, which no container can connect to on this host: name one of \
             the host's other addresses"
        )));
    }
    let own = OwnAddresses::of(namespace).context("failed to ask for this host's addresses")?;
    for &address in asked {
        let is_own =
            own.contain(address).context("failed to ask whether --gateway is this host's address")?;
        let there =
            || own_addresses(namespace).map(|all| plan::list(all.iter().filter(|one| !one.is_loopback())));
        ensure!(
            is_own,
            "--gateway {address} is no address of this host: use one of {}, or add it first (ip address add {address} \
             dev IFACE)",
            there()?
        );
    }
    Ok(())
}

/// Requires that each address of `--gateway` would be served by something of what was asked for.
///
/// # Errors
/// Says why nothing would.
pub(super) fn require_served(asked: &[IpAddr], candidates: &[Candidate<'_>]) -> anyhow::Result<()> {
    let serves = |candidate: &Candidate<'_>, address: &IpAddr| match &candidate.found {
        Ok(state) => state.gateways.contains(address),
        // Its own refusal says why it does not.
        Err(_) => candidate.spec.target.tcp().is_none_or(|target| target.is_ipv4() == address.is_ipv4()),
    };
    match asked.iter().find(|address| !candidates.iter().any(|candidate| serves(candidate, address))) {
        None => Ok(()),
        Some(address) => bail!(
            "--gateway {address} would serve nothing: none of the targets has its family: use an address of the other \
             family, or attach a listener on {}",
            if address.is_ipv4() { "127.0.0.1" } else { "[::1]" }
        ),
    }
}

/// Leaves out the `host-gateway` addresses at whose port something else answers, and tells of them.
pub(super) fn leave_out_taken(
    state: &mut Attachment,
    network: &Network,
    listeners: &[Listener],
    is_in_front: impl Fn(&Attachment, &Bridge) -> bool,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let bridge = &network.bridge;
    let is_own = |address: &IpAddr| bridge.addrs.iter().any(|net| net.addr() == *address);
    let optional = network.host_gateways.iter().filter(|one| !is_own(one) && !network.gateways.contains(one));
    for &address in optional.filter(|one| state.gateways.contains(one)).collect::<Vec<_>>() {
        let alone = Attachment { gateways: [address].into(), ..state.clone() };
        let bound = plan::bound_on_gateway(listeners, &alone);
        if bound.is_some() || is_in_front(&alone, bridge) {
            state.gateways.remove(&address);
            findings.push(taken(state, address, bound));
        }
    }
    findings
}

fn taken(state: &Attachment, address: IpAddr, bound: Option<&Listener>) -> Finding {
    let by = bound
        .map_or_else(|| "a NAT rule takes".to_owned(), |one| format!("what listens on {} has", one.addr));
    codes::HOST_GATEWAY_TAKEN.finding(
        state.name(),
        format!(
            "{by} port {} of {address}, which host-gateway stands for: it is not served there",
            state.port
        ),
        "stop that and attach again, or let the containers use their network's own gateway",
    )
}
