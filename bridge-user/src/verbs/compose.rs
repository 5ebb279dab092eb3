//! `attach --print compose`: what a compose file needs, so that its containers reach what is attached.
//!
//! Invariant: the text is YAML. A string with anything but letters in it is written as JSON, which YAML includes.

use std::{collections::BTreeMap, fmt::Write as _};

use crate::{
    model::presets,
    observe::report::{AttachmentReport, Report},
};

/// The name that containers get for their gateway: Docker Desktop's, and what most images are told to use.
const HOST: &str = "host.docker.internal";
/// Docker's default network, which a compose file can only name as a mode.
const DEFAULT_NETWORK: &str = "bridge";

/// A service for each network, with what its containers are to be given.
pub(crate) fn snippet(report: &Report) -> String {
    let mut networks: BTreeMap<&str, Vec<&AttachmentReport>> = BTreeMap::new();
    for entry in &report.attachments {
        networks.entry(&entry.network).or_default().push(entry);
    }
    let mut text = "services:\n".to_owned();
    for (network, entries) in &networks {
        let name = if networks.len() == 1 { "app".to_owned() } else { format!("app-on-{network}") };
        text.push_str(&service(&name, network, entries));
    }
    let external: Vec<_> = networks.keys().filter(|network| **network != DEFAULT_NETWORK).collect();
    if !external.is_empty() {
        text.push_str("networks:\n");
    }
    for network in external {
        // Written to a string, which cannot fail.
        let _ = writeln!(text, "  {}:\n    external: true", scalar(network));
    }
    text
}

fn service(name: &str, network: &str, entries: &[&AttachmentReport]) -> String {
    let membership = if network == DEFAULT_NETWORK {
        "network_mode: bridge".to_owned()
    } else {
        format!("networks: [{}]", scalar(network))
    };
    let mut lines = vec![format!("  {}:", scalar(name)), format!("    {membership}")];
    let first = entries.iter().find_map(|entry| entry.gateways.first());
    lines.extend(first.map(|gateway| format!("    extra_hosts: [{}]", scalar(&format!("{HOST}:{gateway}")))));
    lines.push("    environment:".to_owned());
    for entry in entries {
        let connect = presets::connect(&entry.service);
        let variable = match connect.variable {
            "" => variable(&entry.service, entry.port),
            variable => variable.to_owned(),
        };
        let url = connect.url(&format!("{HOST}:{}", entry.port));
        lines.push(format!("      {variable}: {}", scalar(&url)));
    }
    lines.join("\n") + "\n"
}

/// `WEB_8080` for a service that has no variable of its own.
fn variable(service: &str, port: u16) -> String {
    let name = service.to_ascii_uppercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    format!("{name}_{port}")
}

/// A string as YAML takes it.
fn scalar(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    if text.chars().all(is_plain) && text.starts_with(|c: char| c.is_ascii_alphabetic()) {
        text.to_owned()
    } else {
        serde_json::Value::from(text).to_string()
    }
}
