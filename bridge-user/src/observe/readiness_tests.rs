//! Tests of readiness and of the JSON and text that attachments are shown as.

use bridge_common::maps::Stats;

use super::{
    super::report::{AttachmentReport, Report},
    *,
};
use crate::{
    model::{JSON_VERSION, datapath::Reason, identity::Identity, target::Port},
    relay::RelayStats,
};

fn state() -> Attachment {
    Attachment {
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
        identity: Identity::Container,
    }
}

fn listener(addr: &str, cookie: u64, mptcp: bool) -> Listener {
    Listener { addr: addr.parse().unwrap(), inode: 1, cookie, v6only: None, mptcp, device: 0, uid: 0 }
}

fn facts(listeners: Vec<Listener>, registered: &[u64]) -> Snapshot {
    Snapshot { listeners, registered: registered.iter().copied().collect(), mptcp_bridges: BTreeSet::new() }
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
fn a_service_on_the_other_loopback_is_pointed_out() {
    let text = |listeners| judge(&state(), true, &facts(listeners, &[])).1.unwrap();
    assert_eq!(text(vec![listener("127.0.0.1:6380", 5, false)]), "nothing listens on 127.0.0.1:6379");
    let hint = text(vec![listener("[::1]:6379", 5, false)]);
    assert!(hint.ends_with("a listener on [::1]:6379: attach redis=6379:[::1]:6379 to mean that"), "{hint}");
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
    let entry = AttachmentReport::of_steered(&state(), &stats, &facts(vec![], &[]), (Readiness::Ready, None));
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
    let state = Attachment { container: Some("web".into()), ..state() };
    let (readiness, detail) = container_gone(&state);
    assert_eq!(readiness, Readiness::WaitingForBridge);
    let detail = detail.unwrap();
    assert!(detail.contains("container web was stopped or restarted: attach again"), "{detail}");
    let facts = Snapshot::default();
    let entry = AttachmentReport::of_steered(&state, &Stats::default(), &facts, (readiness, Some(detail)));
    let json = serde_json::to_string(&entry).unwrap();
    assert!(json.contains(r#""container":"web","network":"bridge""#), "{json}");
    assert!(entry.is_meant_by("web") && entry.is_meant_by("web.bridge-redis-6379"));
}

#[test]
fn a_relays_entry_survives_its_way_through_json() {
    let state = Attachment { datapath: Datapath::Splice, identity: Identity::Loopback, ..state() };
    let stats = RelayStats { accepted: 3, bytes_up: 5, bytes_down: 7, ..RelayStats::default() };
    let entry = AttachmentReport::of_relay(&state, stats, judge_relay(&state, true, &[]));
    let json = serde_json::to_string(&entry).unwrap();
    assert!(json.contains(r#""datapath":"splice""#) && json.contains(r#""bytes":12"#), "{json}");
    assert!(json.contains(r#""identity":"loopback","state":"waiting-for-listener""#), "{json}");
    let back: AttachmentReport = serde_json::from_str(&json).unwrap();
    assert_eq!(serde_json::to_string(&back).unwrap(), json);
}
