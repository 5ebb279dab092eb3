//! What labels ask for, within what the file lets them have.
//!
//! Invariants: pure. A label gets a service of `allow-labels`, as that says it: the same port and the same target. A
//! container gets it for itself alone, on its own networks; a network for its own subnets. What a section of the file
//! attaches, or an earlier service has, no label changes.

use std::collections::BTreeMap;

use super::{Config, Entry, overlap::clash};
use crate::{
    model::{
        attachment::Keeper,
        codes,
        datapath::Requested,
        finding::Finding,
        identity::Identity,
        labels::{ATTACH, LOCALHOST, Labelled, Owner},
        spec::{ServiceSpec, UNNAMED_SERVICE},
    },
    plan::{
        list,
        request::{AllowedSource, Request},
    },
};

/// Who asks for one service on one network: containers by name, or all of it where the list is empty.
type Asked<'a> = BTreeMap<(&'a str, usize), Option<Vec<&'a str>>>;

/// What these labels get, and what they ask for and do not get. The entries have no line.
pub fn entries(config: &Config, all: &[Labelled]) -> (Vec<Entry>, Vec<Finding>) {
    let (mut entries, mut findings) = (Vec::new(), Vec::new());
    if !config.docker.labels {
        return (entries, findings);
    }
    for ((network, index), names) in asked(config, all, &mut findings) {
        let Some(spec) = config.docker.allow_labels.get(index) else { continue };
        let request = request(config, spec, network, names);
        let taken = config.attach.iter().chain(&entries).find(|entry| clash(&entry.request, &request));
        match taken {
            None => entries.push(Entry { line: 0, request }),
            Some(first) => findings.push(refused(
                &format!("network {network}"),
                &format!("labels ask for {} there, and port {} is {}", spec.service, spec.port, whose(first)),
                "let that have the port, or give the other one of its own",
            )),
        }
    }
    (entries, findings)
}

/// Each service of `allow-labels` that is asked for, by network and place in the list.
fn asked<'a>(config: &Config, all: &'a [Labelled], findings: &mut Vec<Finding>) -> Asked<'a> {
    let mut asked = Asked::new();
    for Labelled { owner, attach, localhost } in all {
        let words =
            attach.iter().flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty());
        for word in words {
            match config.docker.allow_labels.iter().position(|allowed| permits(allowed, word)) {
                Some(index) => ask(&mut asked, owner, index),
                None => findings.push(not_allowed(config, owner, word)),
            }
        }
        if localhost.as_deref().is_some_and(|value| value != "false") {
            let cause = format!("label {LOCALHOST} is not in this version");
            findings.push(refused(
                &owner.to_string(),
                &cause,
                "take the label off, and use the gateway's address",
            ));
        }
    }
    asked
}

fn ask<'a>(asked: &mut Asked<'a>, owner: &'a Owner, index: usize) {
    match owner {
        Owner::Network(network) => drop(asked.insert((network.as_str(), index), None)),
        Owner::Container { name, networks } => {
            for network in networks {
                if let Some(names) =
                    asked.entry((network.as_str(), index)).or_insert_with(|| Some(Vec::new()))
                {
                    names.push(name);
                }
            }
        }
    }
}

/// Whether a label's word is what is allowed: its name, or another SPEC with the same port and target.
fn permits(allowed: &ServiceSpec, word: &str) -> bool {
    let is_named = allowed.service == word && word != UNNAMED_SERVICE;
    let is_same = |spec: ServiceSpec| spec.port == allowed.port && spec.target == allowed.target;
    is_named || word.parse().is_ok_and(is_same)
}

fn request(config: &Config, spec: &ServiceSpec, network: &str, names: Option<Vec<&str>>) -> Request {
    let container = |name: &str| AllowedSource::Container(name.to_owned());
    Request {
        specs: vec![spec.clone()],
        container: None,
        networks: vec![network.to_owned()],
        bridges: Vec::new(),
        gateways: Vec::new(),
        datapath: Requested::Auto,
        identity: Identity::Container,
        allow: names.into_iter().flatten().map(container).collect(),
        event_level: config.events,
        relay: config.relay,
        force: false,
        foreground: true,
        keeper: Keeper::Config,
        engine: None,
    }
}

fn whose(entry: &Entry) -> String {
    match entry.line {
        0 => "another label's".to_owned(),
        line => format!("attached by line {line} of the configuration"),
    }
}

fn not_allowed(config: &Config, owner: &Owner, word: &str) -> Finding {
    let allowed = list(&config.docker.allow_labels);
    let allowed = if allowed.is_empty() { "is empty".to_owned() } else { format!("has {allowed}") };
    let cause = format!("label {ATTACH} asks for `{word}`, and allow-labels {allowed}");
    refused(
        &owner.to_string(),
        &cause,
        "add that SPEC to allow-labels of the configuration, or take the label off",
    )
}

fn refused(subject: &str, cause: &str, cure: &str) -> Finding {
    codes::LABEL_REFUSED.finding(subject, cause, cure)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn of(text: &str, all: &[(Owner, &str)]) -> (Vec<String>, Vec<String>) {
        let config = super::super::parse(Path::new("c.toml"), text).unwrap();
        let labelled = |(owner, attach): &(Owner, &str)| Labelled {
            owner: owner.clone(),
            attach: Some((*attach).to_owned()),
            localhost: None,
        };
        let all: Vec<_> = all.iter().map(labelled).collect();
        let (entries, findings) = entries(&config, &all);
        let shown = |Entry { request, .. }: &Entry| {
            let allow = list(request.allow.iter().map(AllowedSource::as_typed));
            format!("{} on {} for {allow}", request.specs[0], list(&request.networks))
        };
        (
            entries.iter().map(shown).collect(),
            findings.iter().map(|one| format!("{}: {one}", one.subject)).collect(),
        )
    }

    fn container(name: &str, networks: &[&str]) -> Owner {
        Owner::Container {
            name: name.into(),
            networks: networks.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    const LABELS: &str =
        "[docker]\nlabels = true\nallow-labels = [\"redis\", \"db=5432:unix:/run/db\", \"8080\"]\n";

    #[test]
    fn a_container_gets_it_for_itself_and_a_network_for_all() {
        let (entries, findings) = of(
            LABELS,
            &[
                (container("web", &["app", "lab"]), "redis, db"),
                (container("job", &["app"]), "6379"),
                (Owner::Network("lab".into()), "redis"),
            ],
        );
        let redis = "redis=6379:127.0.0.1:6379";
        let db = "db=5432:unix:/run/db";
        assert_eq!(
            entries,
            [
                format!("{redis} on app for web, job"),
                format!("{db} on app for web"),
                format!("{redis} on lab for "),
                format!("{db} on lab for web"),
            ]
        );
        assert!(findings.is_empty(), "{findings:#?}");
    }

    #[test]
    fn a_container_does_not_narrow_what_its_network_gets() {
        let network = (Owner::Network("app".into()), "redis");
        let web = (container("web", &["app"]), "redis");
        for all in [[network.clone(), web.clone()], [web, network]] {
            assert_eq!(of(LABELS, &all).0, ["redis=6379:127.0.0.1:6379 on app for "]);
        }
    }

    #[test]
    fn no_label_gets_more_than_is_allowed() {
        for word in [
            "mysql",
            "redis=6380",
            "6379:6380",
            "redis=6379:unix:/x",
            "5432",
            "tcp",
            "all",
            "\u{1b}[2J",
            "22",
        ] {
            let (entries, findings) = of(LABELS, &[(container("web", &["app"]), word)]);
            assert!(entries.is_empty(), "{word}: {entries:?}");
            assert!(findings[0].contains("container web: label bridge-user.attach asks for"), "{findings:?}");
        }
        let off = LABELS.replace("labels = true", "labels = false");
        assert_eq!(of(&off, &[(container("web", &["app"]), "redis")]), (Vec::new(), Vec::new()));
    }

    #[test]
    fn what_the_file_attaches_no_label_changes() {
        let text = format!("[[attach]]\nservice = \"redis\"\nnetworks = [\"a*\"]\n{LABELS}");
        let (entries, findings) = of(&text, &[(container("web", &["app", "lab"]), "redis")]);
        assert_eq!(entries, ["redis=6379:127.0.0.1:6379 on lab for web"]);
        assert!(findings[0].contains("network app: ") && findings[0].contains("line 1"), "{findings:?}");
    }
}
