//! Two entries that want the same port of the same network.
//!
//! Invariant: names decide. Two names that turn out to mean one network (a name and an id) are found when they are
//! attached.

use super::{Entry, error::Problem};
use crate::{
    model::pattern::meet,
    plan::{on_one_port, request::Request},
};

/// The network that a request without one means.
const DEFAULT: &str = "bridge";
const ALL: &str = "all";

/// Each entry that has a port of an earlier one.
pub(super) fn problems(entries: &[Entry]) -> Vec<Problem> {
    let earlier = |at: usize| entries.iter().take(at);
    let clashes = entries.iter().enumerate().filter_map(|(at, entry)| {
        let (first, place) = earlier(at).find_map(|first| Some((first, clash(first, entry)?)))?;
        Some(Problem {
            line: entry.line,
            text: format!(
                "line {} attaches port {} on {place}, too: give each its own port, NAME=PORT:TARGET_PORT, or put both \
                 into one section",
                first.line,
                port(entry),
            ),
        })
    });
    clashes.collect()
}

fn port(entry: &Entry) -> String {
    entry.request.specs.iter().map(|spec| spec.port.to_string()).collect()
}

/// Where both would have one port.
fn clash(first: &Entry, second: &Entry) -> Option<String> {
    let (first, second) = (&first.request, &second.request);
    let mut services = first.specs.iter().flat_map(|one| second.specs.iter().map(move |other| (one, other)));
    if first.container != second.container || !services.any(|(one, other)| on_one_port(one, other)) {
        return None;
    }
    let bridges = first.bridges.iter().find(|name| second.bridges.contains(name));
    if let Some(bridge) = bridges {
        return Some(format!("bridge {bridge}"));
    }
    let (ours, theirs) = (networks(first), networks(second));
    let shared = ours.iter().find(|name| theirs.iter().any(|other| meet(name, other)))?;
    Some(format!("network {shared}"))
}

/// The names of the networks that are meant.
fn networks(request: &Request) -> Vec<&str> {
    let is_default = request.networks.is_empty() && request.bridges.is_empty();
    match &request.container {
        Some(_) if is_default => vec![ALL],
        None if is_default => vec![DEFAULT],
        _ => request.networks.iter().map(String::as_str).collect(),
    }
}
