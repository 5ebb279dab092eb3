//! Tests of what of a request is attached, what stays, and what is refused.

use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::{
    model::{
        attachment::Keeper,
        codes,
        datapath::{Datapath, Requested},
        identity::Identity,
        target::Port,
    },
    observe::readiness::tests::{bridge, state},
    relay::{Limits, RelayOptions},
};

fn request(specs: &[&str], allow: &[&str]) -> Request {
    Request {
        specs: specs.iter().map(|text| text.parse().unwrap()).collect(),
        container: None,
        networks: Vec::new(),
        bridges: Vec::new(),
        gateways: Vec::new(),
        datapath: Requested::Auto,
        identity: Identity::Container,
        allow: allow.iter().map(|text| text.parse().unwrap()).collect(),
        event_level: None,
        relay: RelayOptions { proxy_protocol: None, limits: Limits::default() },
        force: false,
        foreground: false,
        keeper: Keeper::Command,
        engine: None,
    }
}

fn candidate<'a>(
    spec: &'a ServiceSpec,
    network: &'a str,
    bridge: Option<&'a Bridge>,
    found: Result<Attachment, String>,
) -> Candidate<'a> {
    Candidate { spec, network, container: None, bridge, found, left_out: Vec::new() }
}

fn anything(_: &Attachment) -> Result<(), String> {
    Ok(())
}

#[test]
fn one_takes_no_other_down_and_a_network_is_named_once() {
    let request = request(&["redis", "web=8080"], &[]);
    let docker0 = bridge();
    let on = |network: &'static str, spec| match network {
        "gone" => candidate(spec, network, None, Err("failed to find bridge gone".to_owned())),
        _ => {
            let ServiceSpec { service, port, .. } = spec;
            let (service, ifindex) = (service.clone(), u32::from(network == "other"));
            let found = Attachment { service, port: *port, network: network.to_owned(), ifindex, ..state() };
            candidate(spec, network, Some(&docker0), Ok(found))
        }
    };
    let pairs = ["gone", "app", "other"]
        .iter()
        .flat_map(|network| request.specs.iter().map(|spec| on(network, spec)));
    let all: Vec<_> = pairs.collect();
    let bound = |state: &Attachment| match state.name().as_str() {
        "app-web-8080" => Err("port 8080 is already bound".to_owned()),
        _ => Ok(()),
    };
    let sorted = partition(&request, &all, &[], 1, bound);
    let names: Vec<_> = sorted.wanted.iter().map(Attachment::name).collect();
    assert_eq!(names, ["app-redis-6379", "other-redis-6379", "other-web-8080"]);
    let refused: Vec<_> = sorted
        .refused
        .iter()
        .map(|one| (one.spec.as_deref(), one.network.as_str(), one.error.as_str()))
        .collect();
    let web = Some("web=8080:127.0.0.1:8080");
    let bound_error = "failed to attach web (8080) on docker0: port 8080 is already bound";
    assert_eq!(refused, [(None, "gone", "failed to find bridge gone"), (web, "app", bound_error)]);
    let [one] = &partition(&request, &all[..1], &[], 1, bound).refused[..] else { panic!("not one") };
    assert_eq!(one.spec.as_deref(), Some("redis=6379:127.0.0.1:6379"));
}

#[test]
fn what_does_not_fit_leaves_the_room_to_others() {
    let request = request(&["redis"], &[]);
    let docker0 = bridge();
    let addresses = (0..70_000u32).map(|at| IpNet::from(IpAddr::from(Ipv4Addr::from(at))));
    let wide = Attachment { allow: addresses.map(Source::Net).collect(), ..state() };
    let small = Attachment { service: "small".into(), port: Port::MIN, ..state() };
    let on = |found: &Attachment| candidate(&request.specs[0], "app", Some(&docker0), Ok(found.clone()));
    let sorted = partition(&request, &[on(&wide), on(&small)], &[], 1, anything);
    assert_eq!(sorted.wanted, [small]);
    assert!(sorted.refused[0].error.contains("70000 allow-list entries"), "{:?}", sorted.refused);
}

/// What becomes of redis on docker0, which is attached as `there`, when something is in the way now.
fn again(
    request: &Request,
    there: &Attachment,
    found: Result<Attachment, String>,
    bridge: Option<&Bridge>,
) -> Partition {
    let candidate = candidate(&request.specs[0], &there.network, bridge, found);
    partition(request, &[candidate], std::slice::from_ref(there), 2, |_| Err("it is taken".to_owned()))
}

#[test]
fn what_is_attached_stays_whatever_is_in_the_way_now() {
    let (there, docker0) = (state(), bridge());
    let same = request(&["redis"], &[]);
    let sorted = again(&same, &there, Ok(there.clone()), Some(&docker0));
    assert_eq!((&sorted.wanted[..], &sorted.refused[..]), (std::slice::from_ref(&there), &[][..]));
    assert_eq!(sorted.warnings, [format!("{} stays as it is: it is taken", there.name())]);
    let relayed = Attachment { datapath: Datapath::Splice, ..there.clone() };
    assert_eq!(
        again(&same, &there, Ok(relayed.clone()), Some(&docker0)).wanted,
        std::slice::from_ref(&there)
    );
    let led_away = again(&same, &there, Err("it leads to other machines".to_owned()), Some(&docker0));
    assert_eq!(led_away.wanted, std::slice::from_ref(&there));
    let gone = again(&same, &there, Err("there is no bridge".to_owned()), None);
    assert_eq!((gone.wanted.len(), gone.kept), (0, vec![there.clone()]));
    // Who wants a process gets none that ends at once.
    let in_front = Request { foreground: true, ..same };
    assert_eq!(again(&in_front, &there, Ok(relayed), Some(&docker0)).refused.len(), 1);
}

#[test]
fn nobody_stays_admitted_who_is_not_asked_for() {
    let docker0 = bridge();
    let narrow = request(&["redis"], &["172.17.0.9"]);
    let there = state();
    let wanted =
        Attachment { allow: [Source::Net("172.17.0.9/32".parse().unwrap())].into(), ..there.clone() };
    for found in [Ok(wanted.clone()), Err("the container is not there".to_owned())] {
        assert_eq!(again(&narrow, &there, found, Some(&docker0)).refused.len(), 1);
    }
    let kept = again(&narrow, &wanted, Err("the container is not there".to_owned()), Some(&docker0));
    assert_eq!(kept.wanted, [wanted]);
    let everybody = Attachment { allow: [Source::Net("0.0.0.0/0".parse().unwrap())].into(), ..there.clone() };
    let plain = request(&["redis"], &[]);
    assert_eq!(again(&plain, &everybody, Err("it leads on".to_owned()), Some(&docker0)).refused.len(), 1);
    let local = Request { identity: Identity::Loopback, ..plain };
    assert_eq!(again(&local, &there, Ok(there.clone()), Some(&docker0)).refused.len(), 1);
}

#[test]
fn an_address_that_is_asked_for_is_served_or_refused() {
    let docker0 = bridge();
    let there = state();
    let more = Request { gateways: vec!["192.0.2.1".parse().unwrap()], ..request(&["redis"], &[]) };
    assert_eq!(again(&more, &there, Ok(there.clone()), Some(&docker0)).refused.len(), 1);
    let mut served = there;
    served.gateways.extend(&more.gateways);
    assert_eq!(again(&more, &served, Ok(served.clone()), Some(&docker0)).wanted, [served]);
}

#[test]
fn what_was_left_out_is_told_of_what_is_attached() {
    let request = request(&["redis"], &[]);
    let docker0 = bridge();
    let finding = codes::HOST_GATEWAY_TAKEN.finding(state().name(), "taken".to_owned(), "stop that");
    let all = [Candidate {
        left_out: vec![finding.clone()],
        ..candidate(&request.specs[0], "app", Some(&docker0), Ok(state()))
    }];
    assert_eq!(partition(&request, &all, &[], 1, anything).left_out, [finding]);
    assert_eq!(partition(&request, &all, &[], 1, |_| Err("it is bound".to_owned())).left_out, []);
}
