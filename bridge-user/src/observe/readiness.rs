//! Whether an attachment can serve connections, judged from a snapshot of its namespace. Pure but for asking whether a
//! UNIX socket is bound.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    model::{attachment::Attachment, datapath::Datapath, target::Target},
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

/// Readiness, and why not.
pub(crate) type Judgement = (Readiness, Option<String>);

/// Judges one steered attachment. `bridge_there`: the interface index still belongs to the bridge, with its gateway
/// addresses.
pub fn judge(state: &Attachment, bridge_there: bool, facts: &Snapshot) -> Judgement {
    if !bridge_there {
        return bridge_gone(state, "attach again");
    }
    let bound = plan::bound_on_gateway(&facts.listeners, &state.gateways, state.port, state.ifindex);
    if let Some(other) = bound {
        let text = format!(
            "{} is bound by another listener: connections over {} go to {} while it listens, otherwise there",
            other.addr, state.bridge, state.target
        );
        return (Readiness::Conflict, Some(text));
    }
    let Some(target) = state.target.tcp() else {
        return (Readiness::Failed, Some(format!("{} cannot be steered to", state.target)));
    };
    let serving: Vec<_> = facts.listeners.iter().filter(|l| l.can_serve(target)).collect();
    if serving.iter().any(|l| facts.registered.contains(&l.cookie)) {
        return (Readiness::Ready, None);
    }
    if facts.carrier(state) == Datapath::SteerTc {
        return (Readiness::Ready, None);
    }
    if let Some(listener) = plan::only_mptcp(&facts.listeners, target) {
        let text = format!(
            "{} is an MPTCP listener now, and the tc program on {} or the nftables table bridge_user is missing, which \
             steering to it needs (`nft flush ruleset` removes the table): attach again, or start the service with \
             MPTCP off (Go programs: GODEBUG=multipathtcp=0)",
            listener.addr, state.bridge
        );
        return (Readiness::Failed, Some(text));
    }
    if let Some(listener) = serving.first() {
        return (
            Readiness::Failed,
            Some(format!("the listener on {} is not registered: attach again", listener.addr)),
        );
    }
    if let Some(listener) = facts.listeners.iter().find(|l| l.serves(target)) {
        let text = format!(
            "the listener on {} is bound to an interface (SO_BINDTODEVICE), so connections from a bridge cannot reach \
             it: bind it to the address alone",
            listener.addr
        );
        return (Readiness::Failed, Some(text));
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
    if there { (Readiness::Ready, None) } else { waiting_for_listener(state, listeners) }
}

fn bridge_gone(state: &Attachment, cure: &str) -> Judgement {
    let text = format!(
        "bridge {} (index {}) with address {} is gone: {cure} once the network is back",
        state.bridge,
        state.ifindex,
        plan::list(&state.gateways)
    );
    (Readiness::WaitingForBridge, Some(text))
}

/// Judges an attachment inside a container whose namespace is gone.
pub fn container_gone(state: &Attachment) -> Judgement {
    let name = state.container.as_deref().unwrap_or("?");
    let text = format!(
        "container {name} was stopped or restarted: attach again, or keep `attach --container {name} --foreground` running \
         to follow restarts"
    );
    (Readiness::WaitingForBridge, Some(text))
}

fn waiting_for_listener(state: &Attachment, listeners: &[Listener]) -> Judgement {
    let elsewhere = |listener: &&Listener| {
        state.target.tcp().is_some_and(|target| listener.addr.port() == target.port())
            && listener.addr.ip().to_canonical().is_loopback()
    };
    let hint = listeners.iter().find(elsewhere).map(|listener| {
        format!(
            ", but there is a listener on {0}: attach {1}={2}:{0} to mean that",
            listener.addr, state.service, state.port
        )
    });
    let text = format!("nothing listens on {}{}", state.target, hint.unwrap_or_default());
    (Readiness::WaitingForListener, Some(text))
}

#[cfg(test)]
#[path = "readiness_tests.rs"]
mod tests;
