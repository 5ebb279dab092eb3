//! How attachments are shown: the JSON of `cli.md`, and a table of the same.

use std::{collections::BTreeSet, fmt::Write as _, os::unix::fs::FileTypeExt as _};

use bridge_common::maps::{Stats, TrackStats};
use serde::{Deserialize, Serialize};

use crate::{
    attachment::{AttachmentState, Identity},
    datapath::Datapath,
    naming,
    net::listeners::Listener,
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
    /// What became of listeners on watched addresses, whole namespace; absent when nothing is attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener_tracking: Option<ListenerTracking>,
}

/// What the kernel's listener tracking did since the first attach.
#[derive(Debug, Serialize)]
pub struct ListenerTracking {
    /// Registered at listen(2).
    pub tracked: u64,
    /// Ignored: another network namespace's.
    pub foreign: u64,
    /// Left alone: MPTCP.
    pub mptcp: u64,
    /// Refused by the socket map.
    pub refused: u64,
    /// Registered in the place of an older member of a large `SO_REUSEPORT` group.
    pub replaced: u64,
}

impl From<TrackStats> for ListenerTracking {
    fn from(stats: TrackStats) -> Self {
        let TrackStats { tracked, foreign, mptcp, refused, replaced } = stats;
        Self { tracked, foreign, mptcp, refused, replaced }
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
        return bridge_gone(state);
    }
    if let Some(other) = plan::bound_on_gateway(&facts.listeners, &state.gateways, state.port) {
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
            "{} is an MPTCP listener now, and the tc program that steers to such is not on {}: attach again, or start the \
             service with MPTCP off (Go programs: GODEBUG=multipathtcp=0)",
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
    waiting_for_listener(state)
}

/// Judges one relayed attachment; `listeners`: those of this namespace.
pub fn judge_relay(state: &AttachmentState, bridge_there: bool, listeners: &[Listener]) -> Judgement {
    if !bridge_there {
        return bridge_gone(state);
    }
    let there = match &state.target {
        // The relay itself connects over loopback, so a listener bound to `lo` serves it.
        Target::Tcp(target) => listeners.iter().any(|listener| listener.serves(*target)),
        Target::Unix(path) => path.metadata().is_ok_and(|meta| meta.file_type().is_socket()),
    };
    if there { (Readiness::Ready, None) } else { waiting_for_listener(state) }
}

fn bridge_gone(state: &AttachmentState) -> Judgement {
    let text = format!(
        "bridge {} (index {}) with address {} is gone: attach again once the network is back",
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

fn waiting_for_listener(state: &AttachmentState) -> Judgement {
    (Readiness::WaitingForListener, Some(format!("nothing listens on {}", state.target)))
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
        let entry = Self::new(state, Identity::Container, judgement, counters);
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
        Self::new(state, Identity::Loopback, judgement, counters)
    }

    fn new(
        state: &AttachmentState,
        identity: Identity,
        (readiness, detail): Judgement,
        counters: Counters,
    ) -> Self {
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
            identity,
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
mod tests {
    use super::*;
    use crate::datapath::Reason;

    fn state() -> AttachmentState {
        AttachmentState {
            service: "redis".into(),
            container: None,
            network: "bridge".into(),
            bridge: "docker0".into(),
            ifindex: 3,
            port: Port::new(6379).unwrap(),
            target: Target::Tcp("127.0.0.1:6379".parse().unwrap()),
            gateways: BTreeSet::from(["172.17.0.1".parse().unwrap()]),
            allow: BTreeSet::from(["172.17.0.0/16".parse().unwrap()]),
            datapath: Datapath::Steer,
            reason: Reason::ProbePassed,
        }
    }

    fn listener(addr: &str, cookie: u64, mptcp: bool) -> Listener {
        Listener { addr: addr.parse().unwrap(), inode: 1, cookie, v6only: None, mptcp, device: 0, uid: 0 }
    }

    fn facts(listeners: Vec<Listener>, registered: &[u64]) -> Facts {
        Facts { listeners, registered: registered.iter().copied().collect(), mptcp_bridges: BTreeSet::new() }
    }

    fn judged(bridge: bool, listeners: Vec<Listener>, registered: &[u64]) -> Readiness {
        judge(&state(), bridge, &facts(listeners, registered)).0
    }

    #[test]
    fn readiness_follows_the_facts() {
        let redis = || listener("127.0.0.1:6379", 5, false);
        assert_eq!(judged(true, vec![redis()], &[5]), Readiness::Ready);
        assert_eq!(judged(true, vec![], &[]), Readiness::WaitingForListener);
        assert_eq!(judged(true, vec![redis()], &[]), Readiness::Failed);
        assert_eq!(judged(true, vec![listener("127.0.0.1:6379", 5, true)], &[]), Readiness::Failed);
        assert_eq!(judged(false, vec![redis()], &[5]), Readiness::WaitingForBridge);
        let other = listener("172.17.0.1:6379", 6, false);
        assert_eq!(judged(true, vec![redis(), other], &[5]), Readiness::Conflict);
    }

    #[test]
    fn an_mptcp_listener_is_ready_where_the_tc_program_is() {
        let mut facts = facts(vec![listener("127.0.0.1:6379", 5, true)], &[]);
        facts.mptcp_bridges.insert(3);
        assert_eq!(judge(&state(), true, &facts), (Readiness::Ready, None));
        assert_eq!(facts.carrier(&state()), Datapath::SteerTc);
        facts.listeners.push(listener("0.0.0.0:6379", 6, false));
        assert_eq!(facts.carrier(&state()), Datapath::Steer);
    }

    #[test]
    fn json_has_the_contracts_shape() {
        let stats = Stats { accepted: 12, ..Stats::default() };
        let entry = Entry::of_steered(&state(), &stats, &facts(vec![], &[]), (Readiness::Ready, None));
        let json = serde_json::to_string(&Report {
            version: JSON_VERSION,
            attachments: vec![entry],
            listener_tracking: None,
        })
        .unwrap();
        let expected = concat!(
            r#"{"version":1,"attachments":[{"name":"bridge-redis-6379","service":"redis","port":6379,"#,
            r#""target":"127.0.0.1:6379","network":"bridge","bridge":"docker0","gateways":["172.17.0.1"],"#,
            r#""datapath":"steer","reason":"probe passed","identity":"container","state":"ready","#,
            r#""allow":["172.17.0.0/16"],"counters":{"accepted":12,"denied":0,"no_listener":0,"bytes":null}}]}"#
        );
        assert_eq!(json, expected);
    }

    #[test]
    fn a_stopped_containers_attachment_says_how_it_comes_back() {
        let state = AttachmentState { container: Some("web".into()), ..state() };
        let (readiness, detail) = container_gone(&state);
        assert_eq!(readiness, Readiness::WaitingForBridge);
        let detail = detail.unwrap();
        assert!(detail.contains("container web was stopped or restarted: attach again"), "{detail}");
        let facts = Facts::default();
        let entry = Entry::of_steered(&state, &Stats::default(), &facts, (readiness, Some(detail)));
        let json = serde_json::to_string(&entry).unwrap();
        assert!(json.contains(r#""container":"web","network":"bridge""#), "{json}");
        assert!(entry.is_meant_by("web") && entry.is_meant_by("web.bridge-redis-6379"));
    }

    #[test]
    fn a_relays_entry_survives_its_way_through_json() {
        let state = AttachmentState { datapath: Datapath::Splice, ..state() };
        let stats = RelayStats { accepted: 3, bytes_up: 5, bytes_down: 7, ..RelayStats::default() };
        let entry = Entry::of_relay(&state, stats, judge_relay(&state, true, &[]));
        let json = serde_json::to_string(&entry).unwrap();
        assert!(json.contains(r#""datapath":"splice""#) && json.contains(r#""bytes":12"#), "{json}");
        assert!(json.contains(r#""identity":"loopback","state":"waiting-for-listener""#), "{json}");
        let back: Entry = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), json);
    }

    #[test]
    fn columns_line_up() {
        let rows = [["A".to_owned(), "BB".to_owned()], ["CCC".to_owned(), "D".to_owned()]];
        assert_eq!(table(&rows), "A    BB\nCCC  D\n");
    }
}
