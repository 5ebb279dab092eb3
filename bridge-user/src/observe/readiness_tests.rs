//! Tests of readiness and of the JSON and text that attachments are shown as.

use bridge_common::maps::Stats;

use super::{
    super::report::{AttachmentReport, Report},
    *,
};
use crate::{
    model::{
        JSON_VERSION,
        attachment::Keeper,
        bridge::{Setting, Uplink},
        datapath::Reason,
        finding::Severity,
        identity::Identity,
        source::NamedContainer,
        target::Port,
    },
    netfilter::nat::NatRules,
    relay::RelayStats,
};

/// Redis on docker0.
pub(crate) fn state() -> Attachment {
    Attachment {
        service: "redis".into(),
        container: None,
        network: "bridge".into(),
        bridge: "docker0".into(),
        ifindex: 3,
        port: Port::new(6379).unwrap(),
        target: Target::Tcp("127.0.0.1:6379".parse().unwrap()),
        gateways: BTreeSet::from(["172.17.0.1".parse().unwrap()]),
        allow: BTreeSet::from([Source::Net("172.17.0.0/16".parse().unwrap())]),
        datapath: Datapath::Steer,
        reason: Reason::ProbePassed,
        identity: Identity::Container,
        keeper: Keeper::Command,
    }
}

/// Its bridge, as it was when it was attached.
pub(crate) fn bridge() -> Bridge {
    let addrs = vec!["172.17.0.1/16".parse().unwrap()];
    Bridge { index: 3, name: "docker0".into(), addrs, setting: Setting::default() }
}

pub(crate) fn listener(addr: &str, cookie: u64, mptcp: bool) -> Listener {
    Listener {
        addr: addr.parse().unwrap(),
        inode: 1,
        cookie,
        v6only: None,
        mptcp,
        device: 0,
        uid: 0,
        is_full: false,
    }
}

fn facts(listeners: Vec<Listener>, registered: &[u64]) -> Snapshot {
    Snapshot { listeners, registered: registered.iter().copied().collect(), ..Snapshot::default() }
}

/// State and code; every finding is about the attachment and says what to do.
fn short(judgement: Judgement) -> (Readiness, Option<String>) {
    let Judgement { state, findings } = judgement;
    assert_eq!(findings.len(), usize::from(state != Readiness::Ready), "{findings:?}");
    let finding = findings.into_iter().next();
    if let Some(finding) = &finding {
        assert!(finding.severity > Severity::Info && !finding.cure.is_empty(), "{finding:?}");
        assert!(finding.subject.ends_with("bridge-redis-6379"), "{finding:?}");
    }
    (state, finding.map(|finding| finding.code.into_owned()))
}

fn judged(is_there: bool, listeners: Vec<Listener>, registered: &[u64]) -> (Readiness, Option<String>) {
    short(judge(&state(), is_there.then(bridge).as_ref(), &facts(listeners, registered)))
}

fn not_ready(state: Readiness, code: &str) -> (Readiness, Option<String>) {
    (state, Some(code.to_owned()))
}

#[test]
fn readiness_follows_the_facts() {
    use Readiness::{Conflict, Failed, Ready, WaitingForBridge, WaitingForListener};
    let redis = || listener("127.0.0.1:6379", 5, false);
    assert_eq!(judged(true, vec![redis()], &[5]), (Ready, None));
    assert_eq!(judged(true, vec![], &[]), not_ready(WaitingForListener, "no-listener"));
    let other_loopback = listener("[::1]:6379", 5, false);
    let elsewhere = not_ready(WaitingForListener, "listener-elsewhere");
    assert_eq!(judged(true, vec![other_loopback], &[]), elsewhere);
    assert_eq!(judged(true, vec![redis()], &[]), not_ready(Failed, "listener-not-registered"));
    let mptcp = listener("127.0.0.1:6379", 5, true);
    assert_eq!(judged(true, vec![mptcp], &[]), not_ready(Failed, "mptcp-steering-missing"));
    let bound = Listener { device: 1, ..redis() };
    assert_eq!(judged(true, vec![bound], &[]), not_ready(Failed, "listener-bound-to-interface"));
    assert_eq!(judged(false, vec![redis()], &[5]), not_ready(WaitingForBridge, "bridge-gone"));
    let other = listener("172.17.0.1:6379", 6, false);
    assert_eq!(judged(true, vec![redis(), other], &[5]), not_ready(Conflict, "port-bound-on-gateway"));
    let unix = Attachment { target: Target::Unix("/run/x.sock".into()), ..state() };
    assert_eq!(short(judge(&unix, Some(&bridge()), &facts(vec![], &[]))), not_ready(Failed, "not-steerable"));
}

#[test]
fn a_relay_is_judged_by_bridge_and_listener() {
    let relayed = |is_there: bool, listeners: &[Listener]| {
        short(judge_relay(&state(), is_there.then(bridge).as_ref(), &facts(listeners.to_vec(), &[])))
    };
    assert_eq!(relayed(true, &[listener("127.0.0.1:6379", 5, true)]), (Readiness::Ready, None));
    assert_eq!(relayed(true, &[]), not_ready(Readiness::WaitingForListener, "no-listener"));
    assert_eq!(relayed(false, &[]), not_ready(Readiness::WaitingForBridge, "bridge-gone"));
    let gone = judge_relay(&state(), None, &Snapshot::default()).findings[0].to_string();
    assert_eq!(
        gone,
        "bridge docker0 (index 3) with address 172.17.0.1 is gone: bridge-user detach bridge-redis-6379, then attach \
         again once the network is back"
    );
}

#[test]
fn a_service_on_the_other_loopback_is_pointed_out() {
    let text = |listeners| judge(&state(), Some(&bridge()), &facts(listeners, &[])).findings[0].to_string();
    let nothing = text(vec![listener("127.0.0.1:6380", 5, false)]);
    assert_eq!(nothing, "nothing listens on 127.0.0.1:6379: start the service, or attach where it listens");
    let hint = text(vec![listener("[::1]:6379", 5, false)]);
    // The bridge has no IPv6, so it takes a relay.
    assert!(hint.ends_with("[::1]:6379: attach 'redis=6379:[::1]:6379' --foreground to mean that"), "{hint}");
    let hint = text(vec![listener("127.0.0.2:6379", 5, false)]);
    assert!(hint.ends_with("127.0.0.2:6379: attach redis=6379:127.0.0.2:6379 to mean that"), "{hint}");
}

#[test]
fn the_usual_port_of_a_service_is_pointed_out() {
    let target = Target::Tcp("127.0.0.1:7000".parse().unwrap());
    let moved = Attachment { port: Port::new(7000).unwrap(), target, ..state() };
    let text = |state: &Attachment| {
        let usual = facts(vec![listener("127.0.0.1:6379", 5, false)], &[]);
        judge(state, Some(&bridge()), &usual).findings[0].to_string()
    };
    let hint = text(&moved);
    assert!(hint.ends_with("attach redis=7000:127.0.0.1:6379 to mean that"), "{hint}");
    let other = Attachment { service: "tcp".into(), ..moved };
    assert!(text(&other).ends_with("or attach where it listens"));
}

#[test]
fn sources_that_no_container_of_the_bridge_has_are_pointed_out() {
    let codes = |nets: &[&str]| {
        let allow = nets.iter().map(|net| Source::Net(net.parse().unwrap())).collect();
        let found = remarks(&Attachment { allow, ..state() }, &bridge(), &Surroundings::default());
        found.iter().map(|finding| finding.code.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(codes(&["10.9.0.0/16"]), ["allow-outside"]);
    assert_eq!(codes(&["172.17.0.2/32", "172.18.0.2/32"]), ["allow-outside"]);
    assert_eq!(codes(&["172.17.0.2/32", "172.0.0.0/8", "fe80::/64"]), Vec::<String>::new());
}

#[test]
fn an_mptcp_listener_is_ready_where_the_tc_program_is_and_it_is_transparent() {
    let mut facts = facts(vec![listener("127.0.0.1:6379", 5, true)], &[]);
    facts.tc_bridges.insert(3);
    let waiting = not_ready(Readiness::WaitingForListener, "mptcp-not-prepared");
    assert_eq!(short(judge(&state(), Some(&bridge()), &facts)), waiting);
    facts.prepared.insert(facts.listeners[0].key());
    assert_eq!(judge(&state(), Some(&bridge()), &facts), Judgement::ready());
    assert_eq!(facts.carrier(&state()), Datapath::SteerTc);
    facts.listeners.push(listener("127.0.0.1:6379", 6, false));
    assert_eq!(facts.carrier(&state()), Datapath::Steer);
}

#[test]
fn a_named_container_whose_run_is_over_is_told() {
    let web = |name: &str, cookie| {
        let address = "172.17.0.9".parse().unwrap();
        Source::Container(NamedContainer { name: name.into(), address, inode: 1, cookie: Some(cookie) })
    };
    let judged = |allow: &[Source]| {
        let state = Attachment { allow: allow.iter().cloned().collect(), ..state() };
        let mut facts = facts(vec![listener("127.0.0.1:6379", 5, false)], &[5]);
        facts.ended.insert(70);
        let Judgement { state, findings } = judge(&state, Some(&bridge()), &facts);
        (state, findings.iter().map(|finding| finding.code.to_string()).collect::<Vec<_>>())
    };
    let net = Source::Net("172.17.0.0/24".parse().unwrap());
    assert_eq!(judged(&[web("a", 71)]), (Readiness::Ready, vec![]));
    assert_eq!(judged(&[web("a", 70), net]), (Readiness::Ready, vec!["named-run-ended".into()]));
    assert_eq!(judged(&[web("a", 70), web("b", 71)]).0, Readiness::Ready);
    assert_eq!(judged(&[web("a", 70)]), (Readiness::Failed, vec!["named-run-ended".into()]));
}

#[test]
fn json_has_the_contracts_shape() {
    let stats = Stats { arrived: 14, steered: 13, answered: 12, accepted: 12, ..Stats::default() };
    let entry = AttachmentReport::of_steered(&state(), &stats, &facts(vec![], &[]), Judgement::ready());
    let json = serde_json::to_string(&Report {
        version: JSON_VERSION,
        attachments: vec![entry],
        findings: vec![],
        listener_tracking: None,
    })
    .unwrap();
    let expected = concat!(
        r#"{"version":1,"attachments":[{"name":"bridge-redis-6379","service":"redis","port":6379,"#,
        r#""protocol":"tcp","target":"127.0.0.1:6379","network":"bridge","bridge":"docker0","#,
        r#""gateways":["172.17.0.1"],"#,
        r#""connect":["redis://172.17.0.1:6379"],"#,
        r#""datapath":"steer","reason":"probe passed","identity":"container","#,
        r#""keeper":"command","localhost":false,"state":"ready","#,
        r#""allow":["172.17.0.0/16"],"findings":[],"#,
        r#""counters":{"accepted":12,"denied":0,"no_listener":0,"bytes":null,"#,
        r#""stages":{"arrived":null,"steered":13,"answered":12,"wrong_gateway":0}}}],"findings":[]}"#
    );
    assert_eq!(json, expected);
}

#[test]
fn a_stopped_containers_attachment_says_how_it_comes_back() {
    let state = Attachment { container: Some("web".into()), ..state() };
    let judgement = container_gone(&state);
    assert_eq!(short(judgement.clone()), not_ready(Readiness::WaitingForBridge, "container-gone"));
    let facts = Snapshot::default();
    let entry = AttachmentReport::of_steered(&state, &Stats::default(), &facts, judgement);
    assert_eq!(
        entry.detail.as_deref(),
        Some(
            "container web was stopped or restarted: attach again, or keep `attach --container web --foreground` \
             running to follow restarts"
        )
    );
    let json = serde_json::to_string(&entry).unwrap();
    assert!(json.contains(r#""container":"web","network":"bridge""#), "{json}");
    assert!(entry.is_meant_by("web") && entry.is_meant_by("web.bridge-redis-6379"));
}

#[test]
fn a_relays_entry_survives_its_way_through_json() {
    let state = Attachment { datapath: Datapath::Splice, identity: Identity::Loopback, ..state() };
    let stats = RelayStats { accepted: 3, bytes_up: 5, bytes_down: 7, ..RelayStats::default() };
    let entry =
        AttachmentReport::of_relay(&state, stats, judge_relay(&state, Some(&bridge()), &Snapshot::default()));
    let json = serde_json::to_string(&entry).unwrap();
    assert!(json.contains(r#""datapath":"splice""#) && json.contains(r#""bytes":12"#), "{json}");
    assert!(
        json.contains(r#""keeper":"command","localhost":false,"state":"waiting-for-listener""#),
        "{json}"
    );
    let codes: Vec<_> = entry.findings.iter().map(|finding| finding.code.as_ref()).collect();
    assert_eq!(codes, ["relayed", "no-listener"]);
    let back: AttachmentReport = serde_json::from_str(&json).unwrap();
    assert_eq!(serde_json::to_string(&back).unwrap(), json);
}

#[test]
fn detail_is_what_people_read_and_findings_are_the_same_as_data() {
    let judgement = judge(&state(), Some(&bridge()), &facts(vec![listener("[::1]:6379", 5, false)], &[]));
    let local = Attachment { identity: Identity::Loopback, ..state() };
    let entry = AttachmentReport::of_steered(&local, &Stats::default(), &Snapshot::default(), judgement);
    let json = serde_json::to_string(&entry).unwrap();
    let expected = concat!(
        r#""detail":"nothing listens on 127.0.0.1:6379, but there is a listener on [::1]:6379: "#,
        r#"attach 'redis=6379:[::1]:6379' --foreground to mean that","allow":["172.17.0.0/16"],"findings":["#,
        r#"{"code":"local-clients","severity":"info","subject":"bridge-redis-6379","#,
        r#""cause":"the service sees local clients (identity loopback)","cure":""},"#,
        r#"{"code":"listener-elsewhere","severity":"warning","subject":"bridge-redis-6379","#,
        r#""evidence":"[::1]:6379","cause":"nothing listens on 127.0.0.1:6379, but there is a listener on "#,
        r#"[::1]:6379","cure":"attach 'redis=6379:[::1]:6379' --foreground to mean that"}],"counters""#
    );
    assert!(json.contains(expected), "{json}");
}

#[test]
fn advice_goes_to_the_attachment_it_is_about() {
    let ready = || Judgement::ready();
    let of = |state: &Attachment| {
        AttachmentReport::of_steered(state, &Stats::default(), &Snapshot::default(), ready())
    };
    let other = Attachment { network: "app".into(), ..state() };
    let mut report = Report {
        version: JSON_VERSION,
        attachments: vec![of(&other), of(&state())],
        findings: vec![],
        listener_tracking: None,
    };
    let finding = serving::no_listener(&state());
    report.add(vec![finding.clone()]);
    let found: Vec<_> = report.attachments.iter().map(|entry| entry.findings.as_slice()).collect();
    assert_eq!(found, [&[][..], &[finding]]);
    assert!(report.findings.is_empty());
}

/// State and codes of a service that listens as it should, on this bridge.
fn on_bridge(bridge: &Bridge, nat: NatRules) -> (Readiness, Vec<String>) {
    let mut facts = facts(vec![listener("127.0.0.1:6379", 5, false)], &[5]);
    facts.around.nat = nat;
    let Judgement { state, findings } = judge(&state(), Some(bridge), &facts);
    (state, findings.into_iter().map(|finding| finding.code.into_owned()).collect())
}

#[test]
fn a_bridge_that_was_changed_is_told_of() {
    use Readiness::{Failed, Ready, WaitingForBridge};
    let changed = |change: &dyn Fn(&mut Bridge)| {
        let mut bridge = bridge();
        change(&mut bridge);
        on_bridge(&bridge, NatRules::default())
    };
    let codes = |state, codes: &[&str]| (state, codes.iter().map(|code| (*code).to_owned()).collect());
    let address = |text: &str| text.parse().unwrap();
    assert_eq!(changed(&|_| ()), codes(Ready, &[]));
    assert_eq!(changed(&|now| now.name = "other".into()), codes(Ready, &["bridge-renamed"]));
    assert_eq!(changed(&|now| now.addrs.push(address("172.17.0.9/16"))), codes(Ready, &["gateway-added"]));
    // The target's family has no part in it.
    assert_eq!(changed(&|now| now.addrs.push(address("fd00::1/64"))), codes(Ready, &[]));
    assert_eq!(changed(&|now| now.addrs.clear()), codes(WaitingForBridge, &["bridge-gone"]));
    assert_eq!(changed(&|now| now.setting.is_down = true), codes(WaitingForBridge, &["bridge-down"]));
    assert_eq!(changed(&|now| now.setting.vrf = Some("red".into())), codes(Failed, &["bridge-in-vrf"]));
    let uplink = |now: &mut Bridge| now.setting.uplink = Some(Uplink::DefaultRoute);
    assert_eq!(changed(&uplink), codes(Ready, &["bridge-has-uplink"]));
}

#[test]
fn one_of_several_addresses_is_missed_and_the_others_serve() {
    let both = BTreeSet::from(["172.17.0.1".parse().unwrap(), "172.17.0.2".parse().unwrap()]);
    let state = Attachment { gateways: both, ..state() };
    let facts = facts(vec![listener("127.0.0.1:6379", 5, false)], &[5]);
    let judgement = judge(&state, Some(&bridge()), &facts);
    assert_eq!(judgement.state, Readiness::Ready);
    assert_eq!(judgement.findings[0].code, "gateway-removed");
    assert!(judgement.findings[0].cause.contains("172.17.0.2"), "{:?}", judgement.findings);
}

#[test]
fn a_rule_in_front_is_a_conflict_and_one_that_was_not_read_is_told_of() {
    let rule = NatRules::of_iptables("-A PREROUTING -p tcp -m tcp --dport 6379 -j REDIRECT --to-ports 80");
    assert_eq!(on_bridge(&bridge(), rule), (Readiness::Conflict, vec!["nat-rule-in-front".to_owned()]));
    let mut unread = NatRules::default();
    unread.unread.push("there is no nft".into());
    assert_eq!(on_bridge(&bridge(), unread), (Readiness::Ready, vec!["nat-unread".to_owned()]));
}

#[test]
fn a_service_on_every_address_is_no_other_listener() {
    let of = |listeners: Vec<Listener>, registered| {
        let Judgement { state, findings } = judge(&state(), Some(&bridge()), &facts(listeners, registered));
        (state, findings[0].code.clone().into_owned())
    };
    let everywhere = || listener("0.0.0.0:6379", 7, false);
    let own = of(vec![everywhere()], &[7]);
    assert_eq!(own, (Readiness::Ready, "listener-on-every-address".to_owned()));
    let another = of(vec![everywhere(), listener("127.0.0.1:6379", 5, false)], &[5, 7]);
    assert_eq!(another, (Readiness::Conflict, "port-bound-on-gateway".to_owned()));
}

#[test]
fn a_relay_is_served_where_the_host_is() {
    let target = state().target.tcp().unwrap();
    let judged = |facts: &Snapshot| short(judge_relay(&state(), Some(&bridge()), facts));
    let mut facts = facts(vec![], &[]);
    assert_eq!(judged(&facts), not_ready(Readiness::WaitingForListener, "no-listener"));
    facts.around.answered.insert(target);
    assert_eq!(judged(&facts), (Readiness::Ready, None));
}

#[test]
fn no_socket_and_a_rule_is_no_waiting() {
    let mut facts = facts(vec![], &[]);
    facts.around.nat =
        NatRules::of_iptables("-A OUTPUT -p tcp -m tcp --dport 6379 -j DNAT --to-destination 10.0.0.9:1");
    let judgement = judge(&state(), Some(&bridge()), &facts);
    assert_eq!(short(judgement), not_ready(Readiness::Failed, "answered-elsewhere"));
}

#[test]
fn containers_are_given_their_own_networks_gateway_first() {
    let mut state = state();
    let bridge = Bridge { addrs: vec!["172.30.1.1/24".parse().unwrap()], ..bridge() };
    state.gateways = ["172.17.0.1", "172.30.1.1"].map(|address| address.parse().unwrap()).into();
    let entry =
        AttachmentReport::of_steered(&state, &Stats::default(), &facts(vec![], &[]), Judgement::ready());
    let entry = entry.own_first(Some(&bridge));
    assert_eq!(entry.gateways, ["172.30.1.1", "172.17.0.1"]);
    let line = entry.connect_line().unwrap();
    assert!(line.contains("redis://172.30.1.1:6379 or REDIS_URL=redis://172.17.0.1:6379"), "{line}");
}
