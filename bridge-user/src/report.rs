//! How attachments are shown: the JSON of `cli.md`, and a table of the same.

use std::{collections::BTreeSet, fmt::Write as _};

use bridge_common::maps::{Stats, TrackStats};
use serde::{Deserialize, Serialize, Serializer};

use crate::{
    attachment::{AttachmentState, Identity},
    datapath::Datapath,
    naming,
    net::listeners::{Listener, is_bound},
    plan,
    relay::RelayStats,
    spec::{Port, Target},
};

/// Version of the JSON documents.
pub const JSON_VERSION: u32 = 1;

/// What `status` and `attach` print.
#[derive(Debug, Serialize)]
pub struct Report {
    /// [`JSON_VERSION`].
    pub version: u32,
    /// One entry per attachment, by name.
    pub attachments: Vec<Entry>,
    /// What became of listeners on wanted addresses, whole namespace; absent when nothing is attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener_tracking: Option<ListenerTracking>,
}

/// What the kernel's listener tracking did since the first attach: in JSON, one member for each counter.
#[derive(Debug)]
pub struct ListenerTracking(pub TrackStats);

impl Serialize for ListenerTracking {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.named())
    }
}

/// One attachment as shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// `<network>-<service>-<port>`.
    pub name: String,
    /// Service name.
    pub service: String,
    /// Port on the gateway.
    pub port: u16,
    /// Where the service listens.
    pub target: String,
    /// The container it is inside of, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Docker network, or interface name where a bridge was given.
    pub network: String,
    /// Bridge interface, or the container's.
    pub bridge: String,
    /// Gateway addresses.
    pub gateways: Vec<String>,
    /// What carries connections.
    pub datapath: Datapath,
    /// Why that datapath.
    pub reason: String,
    /// Whom the service sees.
    pub identity: Identity,
    /// Whether connections can be served now.
    pub state: Readiness,
    /// Why not, where not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Allowed sources.
    pub allow: Vec<String>,
    /// Connections so far.
    pub counters: Counters,
}

/// Connections so far.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Counters {
    /// Steered onto a listener, or joined to the target by a relay.
    pub accepted: u64,
    /// Refused because of their source.
    pub denied: u64,
    /// Refused because nothing listened, the kernel would not take the listener, or a relay could not connect to it.
    pub no_listener: u64,
    /// Bytes moved; unknown (`null`) for steered connections, which no code of ours carries.
    pub bytes: Option<u64>,
    /// What only a relay counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<RelayStats>,
}

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
pub struct Facts {
    /// TCP listeners.
    pub listeners: Vec<Listener>,
    /// Cookies of the registered ones.
    pub registered: BTreeSet<u64>,
    /// Interfaces over which MPTCP listeners can be steered to.
    pub mptcp_bridges: BTreeSet<u32>,
}

impl Facts {
    /// What carries a steered attachment's connections to the listener there is now.
    pub fn carrier(&self, state: &AttachmentState) -> Datapath {
        let mptcp = plan::is_mptcp(&self.listeners, &state.target);
        if mptcp && self.mptcp_bridges.contains(&state.ifindex) { Datapath::SteerTc } else { state.datapath }
    }
}

/// Readiness, and why not.
pub type Judgement = (Readiness, Option<String>);

/// Judges one steered attachment. `bridge_there`: the interface index still belongs to the bridge, with its gateway
/// addresses.
pub fn judge(state: &AttachmentState, bridge_there: bool, facts: &Facts) -> Judgement {
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
pub fn judge_relay(state: &AttachmentState, bridge_there: bool, listeners: &[Listener]) -> Judgement {
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

fn bridge_gone(state: &AttachmentState, cure: &str) -> Judgement {
    let text = format!(
        "bridge {} (index {}) with address {} is gone: {cure} once the network is back",
        state.bridge,
        state.ifindex,
        plan::list(&state.gateways)
    );
    (Readiness::WaitingForBridge, Some(text))
}

/// Judges an attachment inside a container whose namespace is gone.
pub fn container_gone(state: &AttachmentState) -> Judgement {
    let name = state.container.as_deref().unwrap_or("?");
    let text = format!(
        "container {name} was stopped or restarted: attach again, or keep `attach --container {name} --foreground` running \
         to follow restarts"
    );
    (Readiness::WaitingForBridge, Some(text))
}

fn waiting_for_listener(state: &AttachmentState, listeners: &[Listener]) -> Judgement {
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

impl Entry {
    /// Whether a NAME on the command line means it.
    pub fn is_meant_by(&self, query: &str) -> bool {
        let container = self.container.as_deref();
        let matches = |port| naming::matches(query, container, &self.network, &self.service, port);
        Port::new(self.port).is_some_and(matches)
    }

    /// A steered attachment's.
    pub fn of_steered(state: &AttachmentState, stats: &Stats, facts: &Facts, judgement: Judgement) -> Self {
        let counters = Counters {
            accepted: stats.accepted,
            denied: stats.denied,
            no_listener: stats.no_listener + stats.assign_failed,
            bytes: None,
            relay: None,
        };
        let entry = Self::new(state, judgement, counters);
        Self { datapath: facts.carrier(state), ..entry }
    }

    /// A relayed attachment's. The relay is the target's peer, and a local one.
    pub fn of_relay(state: &AttachmentState, stats: RelayStats, judgement: Judgement) -> Self {
        let counters = Counters {
            accepted: stats.accepted,
            denied: stats.denied,
            no_listener: stats.no_listener,
            bytes: Some(stats.bytes_up + stats.bytes_down),
            relay: Some(stats),
        };
        Self::new(state, judgement, counters)
    }

    fn new(state: &AttachmentState, (readiness, detail): Judgement, counters: Counters) -> Self {
        Self {
            name: state.name(),
            service: state.service.clone(),
            port: state.port.get(),
            target: state.target.to_string(),
            container: state.container.clone(),
            network: state.network.clone(),
            bridge: state.bridge.clone(),
            gateways: state.gateways.iter().map(ToString::to_string).collect(),
            datapath: state.datapath,
            reason: state.reason.to_string(),
            identity: state.identity,
            state: readiness,
            detail,
            allow: state.allow.iter().map(ToString::to_string).collect(),
            counters,
        }
    }
}

impl Readiness {
    const fn text(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::WaitingForListener => "waiting-for-listener",
            Self::WaitingForBridge => "waiting-for-bridge",
            Self::Conflict => "conflict",
            Self::Failed => "failed",
        }
    }
}

impl Report {
    /// As a table for people, details below.
    pub fn to_text(&self) -> String {
        if self.attachments.is_empty() {
            return "nothing is attached in this network namespace\n".to_owned();
        }
        let header =
            ["NAME", "STATE", "DATAPATH", "GATEWAY", "TARGET", "ALLOW", "ACCEPTED", "DENIED", "NO-LISTENER"];
        let mut rows = vec![header.map(str::to_owned)];
        rows.extend(self.attachments.iter().map(Entry::row));
        let mut text = table(&rows);
        for entry in &self.attachments {
            if entry.datapath.is_relay() {
                let _ = writeln!(text, "{}: relayed with {}: {}", entry.name, entry.datapath, entry.reason);
            } else if entry.identity == Identity::Loopback {
                let _ = writeln!(text, "{}: the service sees local clients (identity loopback)", entry.name);
            }
            if let Some(detail) = &entry.detail {
                let _ = writeln!(text, "{}: {detail}", entry.name);
            }
        }
        text
    }
}

impl Entry {
    fn row(&self) -> [String; 9] {
        let bracketed = |g: &String| if g.contains(':') { format!("[{g}]") } else { g.clone() };
        let gateways = self.gateways.iter().map(|g| format!("{}:{}", bracketed(g), self.port));
        [
            self.name.clone(),
            self.state.text().to_owned(),
            self.datapath.to_string(),
            plan::list(gateways),
            self.target.clone(),
            self.allow.join(","),
            self.counters.accepted.to_string(),
            self.counters.denied.to_string(),
            self.counters.no_listener.to_string(),
        ]
    }
}

/// Left-aligned columns, two spaces apart.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|i| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
