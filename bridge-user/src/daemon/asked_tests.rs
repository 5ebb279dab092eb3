//! Tests of which attachments a request keeps.

use super::*;
use crate::{
    model::{attachment::Keeper, datapath::Requested, identity::Identity},
    observe::readiness::tests::state,
    relay::RelayOptions,
};

/// Redis on networks or, inside a container, on those it is on.
fn request(networks: &[&str], container: Option<&str>) -> Request {
    Request {
        specs: vec!["redis".parse().unwrap()],
        container: container.map(str::to_owned),
        networks: networks.iter().map(|name| (*name).to_owned()).collect(),
        bridges: Vec::new(),
        gateways: Vec::new(),
        datapath: Requested::Auto,
        identity: Identity::Container,
        allow: Vec::new(),
        event_level: None,
        relay: RelayOptions::default(),
        force: false,
        foreground: true,
        keeper: Keeper::Config,
        engine: None,
    }
}

fn on(network: &str) -> Attachment {
    Attachment { network: network.to_owned(), service: "redis".to_owned(), ..state() }
}

fn refused(network: &str) -> Refusal {
    Refusal { spec: None, network: network.to_owned(), error: "it is not there".to_owned() }
}

#[test]
fn what_is_asked_for_by_name_stays_without_its_network() {
    let outcome = Outcome::new(&request(&["app"], None), &Held::default(), vec![refused("app")]);
    assert!(outcome.keeps(&on("app")) && !outcome.keeps(&on("other")));
    let other = Attachment { service: "web".to_owned(), ..on("app") };
    assert!(!outcome.keeps(&other), "another service");
    assert!(!outcome.is_whole());
    let [finding] = &outcome.not_attached()[..] else { panic!("one finding") };
    assert_eq!((&*finding.code, &*finding.subject), ("not-as-configured", "everything on app"));
}

#[test]
fn what_a_pattern_stood_for_goes_with_its_network_and_not_with_the_engine() {
    let request = request(&["web-*"], None);
    let mut looked = Outcome::new(&request, &Held::default(), Vec::new());
    looked.made([on("web-1")]);
    assert!(looked.keeps(&on("web-1")) && !looked.keeps(&on("web-2")));
    let silent = Outcome::new(&request, &Held::default(), vec![refused("web-*")]);
    assert!(silent.keeps(&on("web-2")) && !silent.keeps(&on("app")));
    let failed = Outcome::failed(&request, &Held::default(), &anyhow::anyhow!("no engine"));
    assert!(failed.keeps(&on("web-2")) && !failed.keeps(&on("app")));
    assert_eq!(failed.error(), Some("no engine"));
}

#[test]
fn every_network_is_a_pattern_and_none_is_the_default_one() {
    let all = Outcome::failed(&request(&["all"], None), &Held::default(), &anyhow::anyhow!("no engine"));
    assert!(all.keeps(&on("anything")));
    let default = Outcome::failed(&request(&[], None), &Held::default(), &anyhow::anyhow!("no engine"));
    assert!(default.keeps(&on("bridge")) && !default.keeps(&on("app")));
}

#[test]
fn a_container_keeps_what_is_inside_it_while_it_cannot_be_looked_into() {
    let request = request(&[], Some("web"));
    let inside = Attachment { container: Some("web".to_owned()), ..on("app") };
    let gone = Outcome::failed(&request, &Held::default(), &anyhow::anyhow!("it does not run"));
    assert!(gone.keeps(&inside) && !gone.keeps(&on("app")));
    let left_the_network = Outcome::new(&request, &Held::default(), Vec::new());
    assert!(!left_the_network.keeps(&inside));
}

#[test]
fn what_differs_in_its_services_alone_is_looked_up_once() {
    let web = Request { specs: vec!["web=8080".parse().unwrap()], ..request(&["app"], None) };
    let all = [request(&["app"], None), request(&["other"], None), web];
    let made = together(all.iter());
    let specs: Vec<Vec<&str>> =
        made.iter().map(|request| request.specs.iter().map(|spec| spec.service.as_str()).collect()).collect();
    assert_eq!(specs, [vec!["redis", "web"], vec!["redis"]]);
}

#[test]
fn what_was_detached_by_hand_is_not_kept() {
    let mut held = Held::default();
    held.hold(&[on("app").name()]);
    let outcome = Outcome::new(&request(&["app", "web"], None), &held, vec![refused("app"), refused("web")]);
    assert!(!outcome.keeps(&on("app")) && outcome.keeps(&on("web")));
}
