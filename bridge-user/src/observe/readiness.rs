//! Whether an attachment can serve connections, judged from a snapshot of its namespace. Pure but for asking whether a
//! UNIX socket is bound.

use std::collections::{BTreeSet, HashSet};

use bridge_common::maps::TargetKey;
use serde::{Deserialize, Serialize};

use super::checks::serving;
use crate::{
    model::{
        attachment::Attachment, datapath::Datapath, finding::Finding, source::Source, target::Target,
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
    /// The bridge is gone, or is another one of the same name.
    WaitingForBridge,
    /// Something else is bound to the gateway's port.
    Conflict,
    /// A listener is there but cannot be steered to, or nobody is admitted any more.
    Failed,
}

/// The facts about this namespace that readiness is judged by.
#[derive(Default)]
pub struct Snapshot {
    /// TCP listeners.
    pub listeners: Vec<Listener>,
    /// Cookies of the registered ones.
    pub registered: BTreeSet<u64>,
    /// Interfaces over which MPTCP listeners can be steered to.
    pub mptcp_bridges: BTreeSet<u32>,
    /// Addresses whose newest MPTCP listener is transparent.
    pub prepared: HashSet<TargetKey>,
    /// Containers in allow-lists whose run is over, by the cookies of their network namespaces.
    pub ended: BTreeSet<u64>,
}

impl Snapshot {
    /// What carries a steered attachment's connections to the listener there is now.
    pub fn carrier(&self, state: &Attachment) -> Datapath {
        let mptcp = plan::is_mptcp(&self.listeners, &state.target);
        if mptcp && self.mptcp_bridges.contains(&state.ifindex) { Datapath::SteerTc } else { state.datapath }
    }
}

/// What was judged: the state, and why it is not better.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The state.
    pub state: Readiness,
    /// What keeps the attachment from being ready, if anything does.
    pub findings: Vec<Finding>,
}

impl Judgement {
    fn ready() -> Self {
        Self { state: Readiness::Ready, findings: Vec::new() }
    }

    fn because(state: Readiness, finding: Finding) -> Self {
        Self { state, findings: vec![finding] }
    }
}

/// Judges one steered attachment. `bridge_there`: the interface index still belongs to the bridge, with its gateway
/// addresses.
pub fn judge(state: &Attachment, bridge_there: bool, facts: &Snapshot) -> Judgement {
    let mut judgement = of_listener(state, bridge_there, facts);
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

fn of_listener(state: &Attachment, bridge_there: bool, facts: &Snapshot) -> Judgement {
    if !bridge_there {
        return bridge_gone(state, "attach again");
    }
    let bound = plan::bound_on_gateway(&facts.listeners, &state.gateways, state.port, state.ifindex);
    if let Some(other) = bound {
        return Judgement::because(Readiness::Conflict, serving::port_bound_on_gateway(state, other));
    }
    let Some(target) = state.target.tcp() else {
        return Judgement::because(Readiness::Failed, serving::not_steerable(state));
    };
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
    waiting_for_listener(state, &facts.listeners)
}

/// One whose service has an MPTCP listener.
fn of_mptcp(state: &Attachment, listener: &Listener, facts: &Snapshot) -> Judgement {
    if !facts.mptcp_bridges.contains(&state.ifindex) {
        return Judgement::because(Readiness::Failed, serving::mptcp_steering_missing(state, listener));
    }
    if !facts.prepared.contains(&listener.key()) {
        return Judgement::because(Readiness::WaitingForListener, serving::mptcp_not_prepared(state, listener));
    }
    Judgement::ready()
}

/// Judges one relayed attachment; `listeners`: those of this namespace.
pub fn judge_relay(state: &Attachment, bridge_there: bool, listeners: &[Listener]) -> Judgement {
    if !bridge_there {
        return bridge_gone(state, &format!("bridge-user detach {}, then attach again", state.name()));
    }
    let there = match &state.target {
        // The relay itself connects over loopback, so a listener bound to `lo` serves it.
        Target::Tcp(target) => listeners.iter().any(|listener| listener.serves(*target)),
        Target::Unix(path) => is_bound(path),
    };
    if there { Judgement::ready() } else { waiting_for_listener(state, listeners) }
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
    let elsewhere = |listener: &&Listener| {
        state.target.tcp().is_some_and(|target| listener.addr.port() == target.port())
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
