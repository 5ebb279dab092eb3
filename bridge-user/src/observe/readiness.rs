//! Whether an attachment can serve connections, judged from a snapshot of its namespace. Pure but for asking whether a
//! UNIX socket is bound.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
};

use bridge_common::maps::TargetKey;
use serde::{Deserialize, Serialize};

use super::{
    checks::{serving, surroundings as around},
    surroundings::Surroundings,
};
use crate::{
    model::{
        attachment::Attachment,
        bridge::Bridge,
        datapath::Datapath,
        finding::{Finding, Severity},
        presets,
        source::Source,
        target::Target,
    },
    net::listeners::{Listener, is_bound},
    plan,
};

/// Whether an attachment can serve connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Readiness {
    /// A listener is registered.
    Ready,
    /// Nothing listens on the target; connections are refused until something does.
    WaitingForListener,
    /// The bridge is gone, or is another one of the same name, or is down.
    WaitingForBridge,
    /// Something else is bound to the gateway's port, or a NAT rule takes its connections.
    Conflict,
    /// Connections arrive at the bridge, and something drops them before they are steered.
    BlockedByFirewall,
    /// A listener is there but cannot be steered to, what answers is no listener here, or nobody is admitted any more.
    Failed,
}

/// The facts about this namespace that readiness is judged by.
#[derive(Default)]
pub struct Snapshot {
    /// TCP listeners.
    pub listeners: Vec<Listener>,
    /// Cookies of the registered ones.
    pub registered: BTreeSet<u64>,
    /// Interfaces with the tc program, which counts what arrives, and steers to MPTCP listeners.
    pub tc_bridges: BTreeSet<u32>,
    /// Addresses whose newest MPTCP listener is transparent.
    pub prepared: HashSet<TargetKey>,
    /// Containers in allow-lists whose run is over, by the cookies of their network namespaces.
    pub ended: BTreeSet<u64>,
    /// NAT rules, and who holds the targets' listeners.
    pub around: Surroundings,
}

impl Snapshot {
    /// What carries a steered attachment's connections to the listener there is now.
    pub fn carrier(&self, state: &Attachment) -> Datapath {
        let mptcp = plan::is_mptcp(&self.listeners, &state.target);
        if mptcp && self.tc_bridges.contains(&state.ifindex) { Datapath::SteerTc } else { state.datapath }
    }
}

/// What was judged: the state, and why it is not better.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The state.
    pub state: Readiness,
    /// What keeps the attachment from being ready, if anything does, then what is good to know.
    pub findings: Vec<Finding>,
}

impl Judgement {
    fn ready() -> Self {
        Self { state: Readiness::Ready, findings: Vec::new() }
    }

    /// Adds what is found of connections that did not come through; an error among it is that a firewall stops them.
    pub fn with_stopped(mut self, found: Vec<Finding>) -> Self {
        if ![Readiness::Ready, Readiness::WaitingForListener].contains(&self.state) {
            return self;
        }
        let is_blocked = found.iter().any(|finding| finding.severity == Severity::Error);
        if self.state == Readiness::Ready && is_blocked {
            self.state = Readiness::BlockedByFirewall;
        }
        self.findings.extend(found);
        self
    }

    fn because(state: Readiness, finding: Finding) -> Self {
        Self { state, findings: vec![finding] }
    }
}

/// Judges one steered attachment; `bridge`: what has its interface index now.
pub fn judge(state: &Attachment, bridge: Option<&Bridge>, facts: &Snapshot) -> Judgement {
    let mut judgement = of_kernel(state, bridge, facts);
    let ended: Vec<_> = state
        .allow
        .iter()
        .filter_map(Source::container)
        .filter(|container| container.cookie.is_some_and(|cookie| facts.ended.contains(&cookie)))
        .collect();
    if judgement.state == Readiness::Ready && !ended.is_empty() && ended.len() == state.allow.len() {
        judgement.state = Readiness::Failed;
    }
    judgement.findings.extend(ended.into_iter().map(|container| serving::named_run_ended(state, container)));
    judgement
}

fn of_kernel(state: &Attachment, bridge: Option<&Bridge>, facts: &Snapshot) -> Judgement {
    let Some(bridge) = bridge.filter(|bridge| has_a_gateway(bridge, state)) else {
        return bridge_gone(state, "attach again");
    };
    let mut judgement =
        obstacle(state, bridge, &facts.around).unwrap_or_else(|| judge_listener(state, facts));
    let own = plan::on_every_address(&facts.listeners, state);
    let own = own.filter(|_| judgement.state == Readiness::Ready);
    judgement.findings.extend(own.map(|listener| around::listener_on_every_address(state, listener)));
    judgement.findings.extend(remarks(state, bridge, &facts.around));
    judgement
}

/// What keeps connections from the datapath, whoever listens.
pub fn obstacle(state: &Attachment, bridge: &Bridge, facts: &Surroundings) -> Option<Judgement> {
    if bridge.setting.is_down {
        return Some(Judgement::because(Readiness::WaitingForBridge, around::bridge_down(state)));
    }
    if let Some(cause) = plan::in_vrf(bridge).filter(|_| !state.datapath.is_relay()) {
        return Some(Judgement::because(Readiness::Failed, around::bridge_in_vrf(state, cause)));
    }
    let (gateway, rule) = facts.in_front(state, bridge)?;
    let finding = around::nat_rule_in_front(state, gateway, &rule);
    Some(Judgement::because(Readiness::Conflict, finding))
}

/// What is good to know of the bridge, and keeps nobody from being served.
pub fn remarks(state: &Attachment, bridge: &Bridge, facts: &Surroundings) -> Vec<Finding> {
    let present: BTreeSet<IpAddr> = bridge.addrs.iter().map(|net| net.addr()).collect();
    let of_family = |one: &&IpAddr| state.gateways.iter().any(|gateway| gateway.is_ipv4() == one.is_ipv4());
    // What the host has elsewhere arrives on the bridge all the same.
    let is_gone = |gateway: &&IpAddr| !present.contains(*gateway) && !facts.addresses.contains(*gateway);
    let gone: Vec<IpAddr> = state.gateways.iter().filter(is_gone).copied().collect();
    let new: Vec<IpAddr> = present.difference(&state.gateways).filter(of_family).copied().collect();
    let subnet = bridge.addrs.iter().find(|net| state.allow.contains(&Source::Net(net.trunc())));
    let uplink = bridge.setting.uplink.as_ref().filter(|_| subnet.is_some());
    let findings = [
        (bridge.name != state.bridge).then(|| around::bridge_renamed(state, bridge)),
        (!gone.is_empty()).then(|| around::gateway_removed(state, &gone)),
        // Inside a container the other addresses of the interface are not asked for.
        (!new.is_empty() && state.container.is_none()).then(|| around::gateway_added(state, &new)),
        uplink.map(|uplink| around::bridge_has_uplink(state, uplink)),
        around::allowed_outside(state, bridge),
        (!facts.nat.unread.is_empty()).then(|| around::nat_unread(state, &facts.nat.unread)),
    ];
    findings.into_iter().flatten().collect()
}

fn has_a_gateway(bridge: &Bridge, state: &Attachment) -> bool {
    bridge.addrs.iter().any(|net| state.gateways.contains(&net.addr()))
}

fn judge_listener(state: &Attachment, facts: &Snapshot) -> Judgement {
    if let Some(other) = plan::bound_on_gateway(&facts.listeners, state) {
        return Judgement::because(Readiness::Conflict, serving::port_bound_on_gateway(state, other));
    }
    let Some(target) = state.target.tcp() else {
        return Judgement::because(Readiness::Failed, serving::not_steerable(state));
    };
    if let Some(held) = facts.around.placeholder(target, &facts.listeners, |_| None) {
        let finding = around::placeholder_listener(state, target, &held);
        return Judgement::because(Readiness::Failed, finding);
    }
    if let Some(listener) = plan::mptcp_listener(&facts.listeners, target) {
        return of_mptcp(state, listener, facts);
    }
    let serving: Vec<_> = facts.listeners.iter().filter(|l| l.can_serve(target)).collect();
    if serving.iter().any(|l| facts.registered.contains(&l.cookie)) {
        return Judgement::ready();
    }
    if let Some(listener) = serving.first() {
        return Judgement::because(Readiness::Failed, serving::listener_not_registered(state, listener));
    }
    if let Some(listener) = facts.listeners.iter().find(|l| l.serves(target)) {
        return Judgement::because(Readiness::Failed, serving::listener_bound_to_interface(state, listener));
    }
    if let Some(rule) = facts.around.carried_elsewhere(target).filter(|rule| rule.is_certain) {
        return Judgement::because(Readiness::Failed, around::answered_elsewhere(state, target, &rule));
    }
    waiting_for_listener(state, &facts.listeners)
}

/// One whose service has an MPTCP listener.
fn of_mptcp(state: &Attachment, listener: &Listener, facts: &Snapshot) -> Judgement {
    if !facts.tc_bridges.contains(&state.ifindex) {
        return Judgement::because(Readiness::Failed, serving::mptcp_steering_missing(state, listener));
    }
    if !facts.prepared.contains(&listener.key()) {
        return Judgement::because(
            Readiness::WaitingForListener,
            serving::mptcp_not_prepared(state, listener),
        );
    }
    Judgement::ready()
}

/// Judges one relayed attachment.
pub fn judge_relay(state: &Attachment, bridge: Option<&Bridge>, facts: &Snapshot) -> Judgement {
    let Some(bridge) = bridge.filter(|bridge| has_a_gateway(bridge, state)) else {
        return bridge_gone(state, &format!("bridge-user detach {}, then attach again", state.name()));
    };
    let mut judgement = obstacle(state, bridge, &facts.around).unwrap_or_else(|| judge_target(state, facts));
    judgement.findings.extend(remarks(state, bridge, &facts.around));
    judgement
}

/// Whether what a relay connects to is there: the relay is served like any program of this host.
fn judge_target(state: &Attachment, facts: &Snapshot) -> Judgement {
    let there = match &state.target {
        Target::Tcp(target) => {
            let held = facts.around.placeholder(*target, &facts.listeners, |_| None);
            if let Some(held) = held.filter(|held| held.rule.is_none()) {
                let finding = around::placeholder_listener(state, *target, &held);
                return Judgement::because(Readiness::Failed, finding);
            }
            // It connects over loopback, so a listener bound to `lo` serves it.
            let listens = facts.listeners.iter().any(|listener| listener.serves(*target));
            listens || facts.around.answered.contains(target)
        }
        Target::Unix(path) => is_bound(path),
    };
    if there { Judgement::ready() } else { waiting_for_listener(state, &facts.listeners) }
}

/// Judges a relayed attachment whose UNIX target has become another's; `what`: how.
pub fn foreign_target(state: &Attachment, what: &str) -> Judgement {
    Judgement::because(Readiness::Failed, serving::foreign_target(state, what))
}

/// Judges an attachment inside a container whose namespace is gone.
pub fn container_gone(state: &Attachment) -> Judgement {
    Judgement::because(Readiness::WaitingForBridge, serving::container_gone(state))
}

fn bridge_gone(state: &Attachment, how_to_attach: &str) -> Judgement {
    Judgement::because(Readiness::WaitingForBridge, serving::bridge_gone(state, how_to_attach))
}

fn waiting_for_listener(state: &Attachment, listeners: &[Listener]) -> Judgement {
    let usual = presets::find(&state.service).map(|preset| preset.port.get());
    let elsewhere = |listener: &&Listener| {
        let port = listener.addr.port();
        state.target.tcp().is_some_and(|target| target.port() == port || usual == Some(port))
            && listener.addr.ip().to_canonical().is_loopback()
    };
    let finding = match listeners.iter().find(elsewhere) {
        Some(listener) => serving::listener_elsewhere(state, listener),
        None => serving::no_listener(state),
    };
    Judgement::because(Readiness::WaitingForListener, finding)
}

#[cfg(test)]
#[path = "readiness_tests.rs"]
pub(crate) mod tests;
