//! Findings about connections that did not come through.
//!
//! Invariant: the subject is the attachment's name, and the evidence how many connections came to each stage.

use bridge_common::maps::Stats;

use crate::{
    model::{attachment::Attachment, codes, finding::Finding, listener::Listener},
    plan,
};

/// A connection arrived at the bridge, and something dropped it before it was steered.
pub fn blocked_by_firewall(state: &Attachment, stats: &Stats) -> Finding {
    let Attachment { port, bridge, .. } = state;
    let finding = codes::BLOCKED_BY_FIREWALL.finding(
        state.name(),
        format!(
            "a connection to port {port} arrived on {bridge}, and something on this host dropped it: a firewall rule, \
             or the reverse-path filter"
        ),
        format!(
            "let TCP port {port} in on interface {bridge} (ufw: `ufw allow in on {bridge} proto tcp to any port \
             {port}`)"
        ),
    );
    finding.with_evidence(evidence(stats))
}

/// The kernel answered a connection, and the client did not come back.
pub fn answers_lost(state: &Attachment, stats: &Stats) -> Finding {
    let finding = codes::ANSWERS_LOST.finding(
        state.name(),
        format!(
            "a connection was steered and answered, and its client did not come back: the answers may take another way \
             than {}, or a firewall rule for outgoing packets drops them",
            state.bridge
        ),
        "look where answers go: `ip route get CLIENT from GATEWAY`, `ip rule`, and the firewall's output rules",
    );
    finding.with_evidence(evidence(stats))
}

/// The service does not accept the connections that wait.
pub fn queue_full(state: &Attachment, listener: &Listener) -> Finding {
    codes::QUEUE_FULL.finding(
        state.name(),
        format!(
            "the service on {} does not accept the connections that wait for it: its queue is full",
            listener.addr
        ),
        "look at the service: it hangs, or its listen backlog is too short (net.core.somaxconn limits it)",
    )
}

/// Connections came for another address of this host.
pub fn wrong_gateway(state: &Attachment, stats: &Stats) -> Finding {
    let gateways = plan::list(&state.gateways);
    let finding = codes::WRONG_GATEWAY.finding(
        state.name(),
        format!(
            "connections to port {} came in on {} for another address of this host than {gateways}, where nothing \
             serves them",
            state.port, state.bridge
        ),
        format!("let the containers use {gateways}: see what the name they use resolves to in them"),
    );
    finding.with_evidence(evidence(stats))
}

fn evidence(stats: &Stats) -> String {
    let stages = ["arrived", "steered", "answered", "accepted", "wrong_gateway"];
    let named = stats.named().into_iter().filter(|(name, _)| stages.contains(name));
    named.map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}
