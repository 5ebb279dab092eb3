//! One `[[attach]]` section: the request that it stands for.
//!
//! Invariant: what a section leaves out has the default of `attach`; an empty list is refused where it would mean that
//! default, so that nobody is let in by a list that names nobody.

use std::net::IpAddr;

use super::{
    Entry, limits,
    section::{Located, Section},
};
use crate::{
    model::{
        attachment::Keeper,
        datapath::{Requested, steerable},
        event_level::EventLevel,
        identity::Identity,
        pattern::{ALL, is_pattern, pattern},
        spec::ServiceSpec,
    },
    plan::request::{AllowedSource, Request},
    relay::RelayOptions,
};

const NETWORKS: &str = "a list of names and globs of networks, or \"all\"";
const BRIDGES: &str = "a list of interface names";
const GATEWAYS: &str = "a list of addresses of the host";
const ALLOW: &str = "a list of addresses, subnets and names of containers";

/// What the other sections say about every entry.
#[derive(Clone, Copy)]
pub(super) struct Common {
    /// How relays work.
    pub(super) relay: RelayOptions,
    /// Level of the event channel.
    pub(super) event_level: Option<EventLevel>,
}

/// Reads the section; nothing where it has no service that could be attached.
pub(super) fn entry(section: &mut Section<'_>, common: Common) -> Option<Entry> {
    let line = section.line();
    let spec = service(section);
    let networks = networks(section);
    let bridges = names(section, "bridges", BRIDGES);
    let container =
        section.string("container", "the name of a container").map(|found| found.value.to_owned());
    let gateways = gateways(section);
    let allow = allow(section);
    let identity = section.choice::<Identity>("identity").map(|found| found.value).unwrap_or_default();
    let datapath = datapath(section);
    let force = section.boolean("force").is_some_and(|found| found.value);
    section.not_yet("localhost");
    section.not_yet("isolate");
    let mut own = section.section("relay", "relay of [[attach]]");
    let relay = limits::options(&mut own, common.relay);
    section.adopt(own);
    let request = Request {
        specs: vec![spec?],
        container,
        networks,
        bridges,
        gateways,
        datapath,
        identity,
        allow,
        event_level: common.event_level,
        relay,
        force,
        foreground: true,
        keeper: Keeper::Config,
        engine: None,
    };
    refuse_contradictions(section, &request);
    Some(Entry { line, request })
}

fn service(section: &mut Section<'_>) -> Option<ServiceSpec> {
    if !section.has("service") {
        section.refuse(
            section.line(),
            format!("no service{}: write `service = \"SPEC\"` below it", section.place()),
        );
    }
    let expected = "one SPEC, as on the command line; write a section [[attach]] for each service";
    let Located { line, value } = section.string("service", expected)?;
    value.parse().map_err(|error| section.refuse(line, format!("{error}"))).ok()
}

fn networks(section: &mut Section<'_>) -> Vec<String> {
    if section.is("networks", ALL) {
        return vec![ALL.to_owned()];
    }
    let Some(found) = section.strings("networks", NETWORKS) else { return Vec::new() };
    if found.value.is_empty() && !section.has("bridges") {
        let text =
            "`networks = []` names no network: name one, or leave it out for the default, [\"bridge\"]";
        section.refuse(found.line, text);
    }
    for Located { line, value } in &found.value {
        if let Err(cause) = pattern(value)
            && is_pattern(value)
        {
            section.refuse(
                *line,
                format!("`networks` has \"{value}\", which is no glob: {cause}: use *, ? and [...] in it"),
            );
        }
    }
    found.value.into_iter().map(|name| name.value.to_owned()).collect()
}

fn names(section: &mut Section<'_>, key: &'static str, expected: &str) -> Vec<String> {
    let found = section.strings(key, expected).map(|found| found.value).unwrap_or_default();
    found.into_iter().map(|name| name.value.to_owned()).collect()
}

fn gateways(section: &mut Section<'_>) -> Vec<IpAddr> {
    let found = section.strings("gateways", GATEWAYS).map(|found| found.value).unwrap_or_default();
    parsed(section, found, |text| {
        text.parse().map_err(|_| format!("`gateways` has \"{text}\": expected {GATEWAYS}"))
    })
}

fn allow(section: &mut Section<'_>) -> Vec<AllowedSource> {
    let Some(found) = section.strings("allow", ALLOW) else { return Vec::new() };
    if found.value.is_empty() {
        let text = "`allow = []` names nobody: name sources, or leave it out for the bridge's own subnets";
        section.refuse(found.line, text);
    }
    parsed(section, found.value, |text| {
        text.parse().map_err(|expected| format!("`allow` has \"{text}\": expected {expected}"))
    })
}

/// Those that can be parsed; the others are problems.
fn parsed<T>(
    section: &mut Section<'_>,
    found: Vec<Located<&str>>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Vec<T> {
    let mut values = Vec::new();
    for Located { line, value } in found {
        match parse(value) {
            Ok(value) => values.push(value),
            Err(text) => section.refuse(line, text),
        }
    }
    values
}

fn datapath(section: &mut Section<'_>) -> Requested {
    let Some(Located { line, value }) = section.choice::<Requested>("datapath") else {
        return Requested::Auto;
    };
    if value == Requested::Express {
        section.refuse(line, "`datapath = \"express\"` is not in this version: write \"auto\"");
    }
    value
}

/// What no host could do, in the words of the file.
fn refuse_contradictions(section: &mut Section<'_>, request: &Request) {
    let line = section.line();
    let by_bridge = !request.bridges.is_empty();
    if by_bridge && request.container.is_some() {
        section
            .refuse(line, "`bridges` does not go with `container`: inside a container there are `networks`");
    }
    if request.container.is_some() && !request.gateways.is_empty() {
        section.refuse(
            line,
            "`gateways` does not go with `container`, which has its own addresses: leave it out",
        );
    }
    if let Some(name) = request.allow.iter().find_map(AllowedSource::container).filter(|_| by_bridge) {
        section.refuse(
            line,
            format!(
                "`allow` has container {name}, which does not go with `bridges`: a container's address is known per \
                 network of its engine: use `networks`, or give the container's address"
            ),
        );
    }
    let is_steered = request.datapath == Requested::Steer;
    let targets = request.specs.iter().map(|spec| &spec.target).filter(|_| is_steered);
    let proxy_protocol = request.relay.proxy_protocol.is_some();
    for why in targets.filter_map(|target| steerable(target, proxy_protocol).err()) {
        section.refuse(line, format!("`datapath = \"steer\"`: {why}"));
    }
}
