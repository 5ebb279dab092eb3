//! Tests of what is planned, and of what is in the way.

use super::{super::taken::refuse_taken, *};
use crate::model::{
    bridge::{Setting, Uplink},
    datapath::{Requested, tests::facts},
    source::NamedContainer,
};

fn network(addrs: &[&str], allow: &[&str]) -> Network {
    let nets = |texts: &[&str]| -> Vec<IpNet> { texts.iter().map(|t| t.parse().unwrap()).collect() };
    let bridge = Bridge { index: 7, name: "br-a".into(), addrs: nets(addrs), setting: Setting::default() };
    let allow = nets(allow).into_iter().map(Source::Net).collect();
    let (host_gateways, gateways) = (Vec::new(), Vec::new());
    Network { container: None, name: "appnet".into(), bridge, allow, host_gateways, gateways }
}

/// Nothing listens.
fn around(match_ifindex: bool) -> Surroundings<'static> {
    static NONE: BTreeMap<SocketAddr, Elsewhere> = BTreeMap::new();
    Surroundings { listeners: &[], elsewhere: &NONE, match_ifindex }
}

fn specs(texts: &[&str]) -> Vec<ServiceSpec> {
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

fn plan(texts: &[&str], network: Network, match_ifindex: bool) -> Result<Vec<Attachment>, String> {
    let facts = facts(Requested::Auto);
    specs(texts).iter().map(|spec| wanted(spec, &network, &facts, around(match_ifindex))).collect()
}

#[test]
fn gateways_and_default_allow_come_from_the_targets_family() {
    let network = network(&["172.30.1.1/24", "fd00:30:1::1/64"], &[]);
    let all = plan(&["redis", "web=8080:::1:80"], network, true).unwrap();
    assert_eq!(list(&all[0].gateways), "172.30.1.1");
    assert_eq!(list(&all[0].allow), "172.30.1.0/24");
    assert_eq!(list(&all[1].gateways), "fd00:30:1::1");
    assert_eq!(list(&all[1].allow), "fd00:30:1::/64");
    assert_eq!(all[0].name(), "appnet-redis-6379");
}

#[test]
fn further_addresses_of_the_host_are_served_in_the_targets_family() {
    let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let network = Network {
        host_gateways: addresses(&["172.17.0.1", "fd00:17::1"]),
        gateways: addresses(&["192.0.2.1"]),
        ..network(&["172.30.1.1/24", "fd00:30:1::1/64"], &[])
    };
    let served = |spec: &str, match_ifindex| {
        plan(&[spec], network.clone(), match_ifindex).map(|all| list(&all[0].gateways))
    };
    assert_eq!(served("redis", true).unwrap(), "172.17.0.1, 172.30.1.1, 192.0.2.1");
    assert_eq!(served("web=8080:::1:80", true).unwrap(), "fd00:17::1, fd00:30:1::1");
    assert_eq!(served("web=8080:::1:80", false).unwrap(), "fd00:30:1::1", "a rule would be for every bridge");
    let error = served("redis", false).unwrap_err();
    assert!(error.contains("--gateway 192.0.2.1") && error.contains("below 5.17"), "{error}");
    let relayed = served("db=5432:unix:/run/db", false).unwrap();
    assert_eq!(relayed, "172.17.0.1, 172.30.1.1, 192.0.2.1, fd00:17::1, fd00:30:1::1");
}

#[test]
fn a_relay_serves_both_families_whatever_the_target() {
    let network = network(&["172.30.1.1/24", "fd00:30:1::1/64"], &[]);
    let all = plan(&["db=5432:unix:/run/db"], network, false).unwrap();
    assert_eq!(list(&all[0].gateways), "172.30.1.1, fd00:30:1::1");
    assert_eq!(list(&all[0].allow), "172.30.1.0/24, fd00:30:1::/64");
}

#[test]
fn another_datapath_of_the_same_attachment_is_in_the_way() {
    let spliced = |requested| {
        let network = network(&["172.30.1.1/24"], &[]);
        wanted(&specs(&["redis"])[0], &network, &facts(requested), around(true)).unwrap()
    };
    let (steered, spliced) = (spliced(Requested::Auto), spliced(Requested::Splice));
    let error = refuse_taken(std::slice::from_ref(&spliced), std::slice::from_ref(&steered)).unwrap_err();
    assert!(error.contains("bridge-user detach appnet-redis-6379"), "{error}");
}

#[test]
fn a_missing_family_takes_a_relay() {
    let one = |requested| {
        wanted(
            &specs(&["web=8080:::1:80"])[0],
            &network(&["172.30.1.1/24"], &[]),
            &facts(requested),
            around(true),
        )
    };
    let relayed = one(Requested::Auto).unwrap();
    assert_eq!((relayed.datapath, list(&relayed.gateways)), (Datapath::Splice, "172.30.1.1".to_owned()));
    let why = "bridge br-a has no IPv6 address to steer to [::1]:80 from";
    assert_eq!(relayed.reason.to_string(), why);
    let error = one(Requested::Steer).unwrap_err();
    assert!(error.contains(why) && error.contains("--datapath auto with --foreground"), "{error}");
}

#[test]
fn two_specs_on_one_port_are_refused() {
    let error = no_two_on_one_port(&specs(&["redis", "cache=6379:7000"])).unwrap_err();
    assert!(error.contains("6379 twice, for redis and cache"), "{error}");
    assert_eq!(no_two_on_one_port(&specs(&["redis", "cache=6380:7000"])), Ok(()));
    assert_eq!(no_two_on_one_port(&specs(&["redis", "redis6=6379:[::1]:6379"])), Ok(()));
    assert!(no_two_on_one_port(&specs(&["redis", "redis=6379:[::1]:6379"])).is_err());
}

#[test]
fn each_family_of_a_port_may_have_its_attachment() {
    let both = || network(&["172.30.1.1/24", "fd00:30:1::1/64"], &[]);
    let all = plan(&["redis", "redis6=6379:[::1]:6379"], both(), true).unwrap();
    assert_eq!(refuse_taken(&all[1..2], &all[..1]), Ok(()));
    let spliced = Capabilities { proxy_protocol: true, ..facts(Requested::Auto) };
    let relayed = |spec| wanted(spec, &both(), &spliced, around(true)).unwrap();
    let all: Vec<_> = specs(&["redis", "redis6=6379:[::1]:6379"]).iter().map(relayed).collect();
    let error = refuse_taken(&all, &[]).unwrap_err();
    assert!(error.contains("appnet-redis-6379") && error.contains("another port"), "{error}");
}

#[test]
fn two_networks_on_one_bridge_are_refused() {
    let other = Network { name: "other".into(), ..network(&["172.30.1.1/24"], &[]) };
    let one = |network| plan(&["redis"], network, true).unwrap().remove(0);
    let error = refuse_taken(&[one(network(&["172.30.1.1/24"], &[])), one(other)], &[]).unwrap_err();
    assert!(error.contains("both on this bridge"), "{error}");
}

#[test]
fn an_allow_list_of_the_other_family_never_means_everybody() {
    let error = plan(&["redis"], network(&["172.30.1.1/24"], &["fd00::7/128"]), true).unwrap_err();
    assert!(error.contains("fd00::7/128") && error.contains("172.30.1.0/24"), "{error}");
}

#[test]
fn the_gateway_is_not_a_source() {
    let error = plan(&["redis"], network(&["172.30.1.1/24"], &["172.30.1.1/32"]), true).unwrap_err();
    assert!(error.contains("172.30.1.1 is the gateway itself"), "{error}");
}

#[test]
fn a_virtual_ip_on_the_bridge_is_a_gateway_and_lets_nobody_in() {
    for spec in ["redis", "db=5432:unix:/run/db"] {
        let all = plan(&[spec], network(&["172.30.1.1/24", "10.9.9.9/32"], &[]), true).unwrap();
        assert_eq!(list(&all[0].gateways), "10.9.9.9, 172.30.1.1");
        assert_eq!(list(&all[0].allow), "172.30.1.0/24");
        let error = plan(&[spec], network(&["10.9.9.9/32"], &[]), true).unwrap_err();
        assert!(error.contains("only 10.9.9.9/32: say with --allow"), "{error}");
        let all = plan(&[spec], network(&["10.9.9.9/32"], &["10.1.0.0/16"]), true).unwrap();
        assert_eq!(list(&all[0].allow), "10.1.0.0/16");
    }
}

#[test]
fn allow_is_normalised_and_limited_to_the_subnet_on_old_kernels() {
    let all = plan(&["redis"], network(&["172.30.1.1/24"], &["10.1.2.3/8"]), true).unwrap();
    assert_eq!(list(&all[0].allow), "10.0.0.0/8");
    let error = plan(&["redis"], network(&["172.30.1.1/24"], &["10.1.2.3/8"]), false).unwrap_err();
    assert!(error.contains("10.0.0.0/8") && error.contains("172.30.1.0/24"), "{error}");
    assert!(plan(&["redis"], network(&["172.30.1.1/24"], &["172.30.1.7/32"]), false).is_ok());
}

#[test]
fn another_attachment_on_the_port_is_named() {
    let present = plan(&["redis"], network(&["172.30.1.1/24"], &[]), true).unwrap().remove(0);
    let same = present.clone();
    assert_eq!(refuse_taken(std::slice::from_ref(&same), std::slice::from_ref(&present)), Ok(()));
    let other = Attachment { service: "cache".into(), ..present.clone() };
    let error = refuse_taken(std::slice::from_ref(&other), std::slice::from_ref(&present)).unwrap_err();
    assert!(error.contains("appnet-redis-6379"), "{error}");
    let (a, b) = (("a-b", "c"), ("a", "b-c"));
    let named = |(network, service): (&str, &str), ifindex| Attachment {
        network: network.into(),
        service: service.into(),
        ifindex,
        ..present.clone()
    };
    let error = refuse_taken(&[named(a, 1)], &[named(b, 2)]).unwrap_err();
    assert!(error.contains("a-b-c-6379 already belongs to service b-c on network a"), "{error}");
}

fn listener(addr: &str, v6only: Option<bool>, mptcp: bool) -> Listener {
    Listener {
        addr: addr.parse().unwrap(),
        inode: 1,
        cookie: 1,
        v6only,
        mptcp,
        device: 0,
        uid: 0,
        is_full: false,
    }
}

#[test]
fn gateway_conflicts_include_wildcards_but_not_loopback() {
    let state = |spec| plan(&[spec], network(&["172.30.1.1/24"], &[]), true).unwrap().remove(0);
    let mapped = state("redis=6379:7000");
    let on_device = |device, addr, v6only| {
        let listener = Listener { device, ..listener(addr, v6only, false) };
        bound_on_gateway(&[listener], &mapped).is_some()
    };
    let conflict = |addr, v6only| on_device(0, addr, v6only);
    assert!(conflict("172.30.1.1:6379", None));
    assert!(conflict("0.0.0.0:6379", None));
    assert!(conflict("[::]:6379", Some(false)));
    assert!(!conflict("[::]:6379", Some(true)));
    assert!(!conflict("127.0.0.1:6379", None));
    assert!(!conflict("0.0.0.0:6380", None));
    assert!(on_device(7, "172.30.1.1:6379", None));
    // As a relay's, whose bridge was made again.
    assert!(!on_device(6, "172.30.1.1:6379", None));
    let own = [listener("0.0.0.0:6379", None, false)];
    assert!(
        on_every_address(&own, &state("redis")).is_some()
            && bound_on_gateway(&own, &state("redis")).is_none()
    );
    assert!(on_every_address(&own, &mapped).is_none());
}

#[test]
fn the_most_specific_listener_decides_whether_it_is_mptcp() {
    let target = "127.0.0.1:11434".parse().unwrap();
    let one = |addr, mptcp| listener(addr, None, mptcp);
    let v6 = |v6only| listener("[::]:11434", Some(v6only), true);
    let found =
        |listeners: &[Listener]| mptcp_listener(listeners, target).map(|found| found.addr.to_string());
    let exact = Some("127.0.0.1:11434".to_owned());
    assert_eq!(found(&[]), None);
    assert_eq!(found(&[one("127.0.0.1:11434", true), one("0.0.0.0:11434", false)]), exact);
    assert_eq!(found(&[one("127.0.0.1:11434", false), one("0.0.0.0:11434", true)]), None);
    assert_eq!(found(&[one("0.0.0.0:11434", false), v6(false)]), None);
    assert_eq!(found(&[v6(false)]), Some("[::]:11434".to_owned()));
    assert_eq!(found(&[v6(true)]), None, "an IPv6-only listener serves no IPv4 target");
    assert_eq!(found(&[one("127.0.0.1:11434", true), one("127.0.0.1:11434", false)]), None);
}

#[test]
fn a_container_is_allowed_by_itself_and_not_by_its_address() {
    let web = Source::Container(NamedContainer {
        name: "web".into(),
        address: "172.30.1.7".parse().unwrap(),
        inode: 7,
        cookie: Some(70),
    });
    let allowing =
        |source: &Source| Network { allow: vec![source.clone()], ..network(&["172.30.1.1/24"], &[]) };
    let all = plan(&["redis"], allowing(&web), false).unwrap();
    assert_eq!(all[0].allow, BTreeSet::from([web.clone()]));
    assert_eq!((list(&all[0].allow), web.as_typed()), ("web (172.30.1.7)".into(), "web".into()));
    let relayed = plan(&["web=8080:[::1]:80"], allowing(&web), true).unwrap().remove(0);
    assert_eq!((relayed.datapath, relayed.allow), (Datapath::Splice, BTreeSet::from([web])));
}

#[test]
fn a_bridge_that_leads_to_other_machines_takes_an_allow_list() {
    let mut network = network(&["172.30.1.1/24"], &[]);
    network.bridge.setting.uplink = Some(Uplink::Port { name: "eth1".into(), kind: String::new() });
    for text in ["redis", "web=8080:unix:/run/x"] {
        let error = plan(&[text], network.clone(), true).unwrap_err();
        assert!(error.contains("its port eth1 is a network card"), "{error}");
        assert!(error.contains("--allow 172.30.1.0/24"), "{error}");
    }
    network.allow = vec![Source::Net("172.30.1.11/32".parse().unwrap())];
    assert_eq!(list(&plan(&["redis"], network, true).unwrap()[0].allow), "172.30.1.11/32");
}

#[test]
fn a_bridge_in_a_vrf_and_a_target_that_only_a_relay_reaches_are_relayed() {
    let mut network = network(&["172.30.1.1/24"], &[]);
    let held = Elsewhere::Relayed("dockerd holds it".to_owned());
    let elsewhere = BTreeMap::from([("127.0.0.1:6379".parse().unwrap(), held)]);
    let around = Surroundings { elsewhere: &elsewhere, ..around(true) };
    let both = specs(&["redis", "web=8080"]);
    let reasons = |network: &Network| {
        let one = |spec| wanted(spec, network, &facts(Requested::Auto), around).unwrap();
        let all = both.iter().map(one);
        all.map(|state| (state.datapath, state.reason.to_string())).collect::<Vec<_>>()
    };
    let relayed = (Datapath::Splice, "dockerd holds it".to_owned());
    assert_eq!(reasons(&network), [relayed.clone(), (Datapath::Steer, "probe passed".to_owned())]);
    network.bridge.setting.vrf = Some("red".into());
    let in_vrf = "bridge br-a is in VRF red, as which the kernel reports what arrives on it";
    assert_eq!(reasons(&network), [relayed, (Datapath::Splice, in_vrf.to_owned())]);
}

#[test]
fn a_subnet_without_its_prefix_is_answered_with_it() {
    let error = plan(&["redis"], network(&["172.30.1.1/24"], &["172.30.1.0/32"]), true).unwrap_err();
    assert!(error.ends_with("which no container has: use `--allow 172.30.1.0/24`"), "{error}");
    for fine in ["172.30.1.0/24", "172.30.1.2/32", "10.0.0.0/32"] {
        plan(&["redis"], network(&["172.30.1.1/24"], &[fine]), true).unwrap();
    }
}
