//! Whether an attachment can serve connections, judged from a snapshot of its namespace. Pure but for asking whether a
//! UNIX socket is bound.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::checks::serving;
use crate::{
    model::{attachment::Attachment, datapath::Datapath, finding::Finding, target::Target},
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
    /// A listener is there but cannot be steered to.
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
    let serving: Vec<_> = facts.listeners.iter().filter(|l| l.can_serve(target)).collect();
    if serving.iter().any(|l| facts.registered.contains(&l.cookie)) {
        return Judgement::ready();
    }
    if facts.carrier(state) == Datapath::SteerTc {
        return Judgement::ready();
    }
    if let Some(listener) = plan::only_mptcp(&facts.listeners, target) {
        return Judgement::because(Readiness::Failed, serving::mptcp_steering_missing(state, listener));
    }
    if let Some(listener) = serving.first() {
        return Judgement::because(Readiness::Failed, serving::listener_not_registered(state, listener));
    }
    if let Some(listener) = facts.listeners.iter().find(|l| l.serves(target)) {
        return Judgement::because(Readiness::Failed, serving::listener_bound_to_interface(state, listener));
    }
    waiting_for_listener(state, &facts.listeners)
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
