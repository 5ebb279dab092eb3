//! How attachments are reported: the JSON of `cli.md`. Pure data, also between a relay process and who asks it.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use bridge_common::maps::{Stats, TrackStats};
use serde::{Deserialize, Serialize, Serializer};

use super::{
    checks::serving,
    readiness::{Judgement, Readiness, Snapshot},
};
use crate::{
    model::{
        attachment::{Attachment, Keeper},
        bridge::Bridge,
        datapath::Datapath,
        finding::Finding,
        identity::Identity,
        naming, presets,
        protocol::Protocol,
        source::{NamedContainer, Source},
        target::Port,
    },
    relay::RelayStats,
};

/// What `status` and `attach` print.
#[derive(Debug, Serialize)]
pub struct Report {
    /// [`crate::model::JSON_VERSION`].
    pub version: u32,
    /// One entry per attachment, by name.
    pub attachments: Vec<AttachmentReport>,
    /// What was found that is about no attachment that can be shown: relay processes that do not answer.
    pub findings: Vec<Finding>,
    /// What became of listeners on wanted addresses, whole namespace; absent when nothing is attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener_tracking: Option<ListenerTracking>,
}

impl Report {
    /// Adds findings, each to the attachment that is its subject.
    pub(crate) fn add(&mut self, findings: Vec<Finding>) {
        let places: HashMap<String, usize> =
            self.attachments.iter().enumerate().map(|(at, entry)| (entry.name.clone(), at)).collect();
        for finding in findings {
            let about = places.get(&finding.subject).and_then(|at| self.attachments.get_mut(*at));
            match about {
                Some(entry) => entry.findings.push(finding),
                None => self.findings.push(finding),
            }
        }
    }
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
pub struct AttachmentReport {
    /// `<network>-<service>-<port>`.
    pub name: String,
    /// Service name.
    pub service: String,
    /// Port on the gateway.
    pub port: u16,
    /// What containers speak to it.
    #[serde(default)]
    pub protocol: Protocol,
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
    /// What containers are given to reach it, for each gateway address: a URL, or `HOST:PORT`.
    #[serde(default)]
    pub connect: Vec<String>,
    /// What carries connections.
    pub datapath: Datapath,
    /// Why that datapath.
    pub reason: String,
    /// Whom the service sees.
    pub identity: Identity,
    /// Who keeps it: whoever typed it, or the daemon's configuration.
    #[serde(default)]
    pub keeper: Keeper,
    /// Whether containers reach it at their own `localhost` too.
    #[serde(default)]
    pub localhost: bool,
    /// Whether connections can be served now.
    pub state: Readiness,
    /// Why not, where not ready: those of the findings that say it, as people read them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Allowed sources, as they are typed.
    pub allow: Vec<String>,
    /// The containers among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_containers: Vec<AllowedContainer>,
    /// What is so on purpose, then what keeps it from being ready.
    pub findings: Vec<Finding>,
    /// Connections so far.
    pub counters: AttachmentCounters,
}

/// A container in an allow-list.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AllowedContainer {
    /// Its name.
    pub name: String,
    /// Its address on the network when it was attached. It is admitted by its network namespace, not by this.
    pub address: String,
}

impl From<&NamedContainer> for AllowedContainer {
    fn from(container: &NamedContainer) -> Self {
        Self { name: container.name.clone(), address: container.address.to_string() }
    }
}

/// Connections so far.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttachmentCounters {
    /// Established, each once: with the service by steering, or joined to the target by a relay.
    pub accepted: u64,
    /// Refused because of their source.
    pub denied: u64,
    /// Refused because nothing listened, the kernel would not take the listener, or a relay could not connect to it.
    pub no_listener: u64,
    /// Bytes moved; unknown (`null`) for steered connections, which no code of ours carries.
    pub bytes: Option<u64>,
    /// What only steering counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stages: Option<Stages>,
    /// What only a relay counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<RelayStats>,
}

/// How far the SYNs of steered connections came. One that the kernel drops is sent again by the client, and counts
/// again.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Stages {
    /// Came in at the bridge, those that a client sent again among them; `null` where nothing counts it (below Linux
    /// 5.19).
    pub arrived: Option<u64>,
    /// Given to a listener.
    pub steered: u64,
    /// Answered by the kernel; not those answered by a SYN cookie, or with Fast Open.
    pub answered: u64,
    /// For the same port of another address of this host.
    pub wrong_gateway: u64,
}

impl AttachmentReport {
    /// Whether a NAME on the command line means it.
    pub fn is_meant_by(&self, query: &str) -> bool {
        let container = self.container.as_deref();
        let matches = |port| naming::matches(query, container, &self.network, &self.service, port);
        Port::new(self.port).is_some_and(matches)
    }

    /// Allowed sources, containers with the address they had when they were attached.
    pub fn allowed(&self) -> Vec<String> {
        let with_address = |source: &String| match self
            .allowed_containers
            .iter()
            .find(|container| container.name == *source)
        {
            Some(AllowedContainer { name, address }) => format!("{name} ({address})"),
            None => source.clone(),
        };
        self.allow.iter().map(with_address).collect()
    }

    /// A steered attachment's.
    pub fn of_steered(state: &Attachment, stats: &Stats, facts: &Snapshot, judgement: Judgement) -> Self {
        let counters = AttachmentCounters {
            accepted: stats.accepted,
            denied: stats.denied,
            no_listener: stats.no_listener + stats.assign_failed,
            bytes: None,
            stages: Some(Stages {
                arrived: facts.tc_bridges.contains(&state.ifindex).then_some(stats.arrived),
                steered: stats.steered,
                answered: stats.answered,
                wrong_gateway: stats.wrong_gateway,
            }),
            relay: None,
        };
        let entry = Self::new(state, judgement, counters);
        Self { datapath: facts.carrier(state), ..entry }
    }

    /// A relayed attachment's. The relay is the target's peer, and a local one.
    pub fn of_relay(state: &Attachment, stats: RelayStats, judgement: Judgement) -> Self {
        let counters = AttachmentCounters {
            accepted: stats.accepted,
            denied: stats.denied,
            no_listener: stats.no_listener,
            bytes: Some(stats.bytes_up + stats.bytes_down),
            stages: None,
            relay: Some(stats),
        };
        Self::new(state, judgement, counters)
    }

    /// With the addresses of its bridge before other ones of the host: those are what containers are given.
    pub(crate) fn own_first(self, bridge: Option<&Bridge>) -> Self {
        let own: Vec<String> =
            bridge.iter().flat_map(|bridge| &bridge.addrs).map(|net| net.addr().to_string()).collect();
        let pairs = self.gateways.into_iter().zip(self.connect);
        let (first, rest): (Vec<_>, Vec<_>) = pairs.partition(|(gateway, _)| own.contains(gateway));
        let (gateways, connect) = first.into_iter().chain(rest).unzip();
        Self { gateways, connect, ..self }
    }

    fn new(state: &Attachment, judgement: Judgement, counters: AttachmentCounters) -> Self {
        let reasons: Vec<String> = judgement.findings.iter().map(ToString::to_string).collect();
        let mut findings: Vec<Finding> = serving::on_purpose(state).into_iter().collect();
        findings.extend(judgement.findings);
        Self {
            name: state.name(),
            service: state.service.clone(),
            port: state.port.get(),
            protocol: Protocol::Tcp,
            target: state.target.to_string(),
            container: state.container.clone(),
            network: state.network.clone(),
            bridge: state.bridge.clone(),
            gateways: state.gateways.iter().map(ToString::to_string).collect(),
            connect: state.gateways.iter().map(|&gateway| connect(state, gateway)).collect(),
            datapath: state.datapath,
            reason: state.reason.to_string(),
            identity: state.identity,
            keeper: state.keeper,
            localhost: false,
            state: judgement.state,
            detail: if reasons.is_empty() { None } else { Some(reasons.join("; ")) },
            allow: state.allow.iter().map(Source::as_typed).collect(),
            allowed_containers: state.allow.iter().filter_map(Source::container).map(Into::into).collect(),
            findings,
            counters,
        }
    }
}

fn connect(state: &Attachment, gateway: IpAddr) -> String {
    presets::connect(&state.service).url(&SocketAddr::new(gateway, state.port.get()).to_string())
}
