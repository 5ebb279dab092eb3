//! Two entries that want the same port of the same network.

use std::collections::HashMap;

use super::{Entry, error::Problem, places::shared};
use crate::{
    model::target::Port,
    plan::{on_one_port, request::Request},
};

/// Each entry that has a port of an earlier one.
pub(super) fn problems(entries: &[Entry]) -> Vec<Problem> {
    let mut earlier: HashMap<Port, Vec<&Entry>> = HashMap::new();
    let mut problems = Vec::new();
    for entry in entries {
        for spec in &entry.request.specs {
            let of_this_port = earlier.entry(spec.port).or_default();
            if let Some(first) = of_this_port.iter().find(|first| clash(&first.request, &entry.request)) {
                problems.push(problem(first, entry, spec.port));
            }
            of_this_port.push(entry);
        }
    }
    problems
}

fn problem(first: &Entry, entry: &Entry, port: Port) -> Problem {
    let place =
        shared(&first.request, &entry.request).map(|place| format!(" on {place}")).unwrap_or_default();
    Problem {
        line: entry.line,
        text: format!(
            "line {} attaches port {port}{place}, too: give each its own port, NAME=PORT:TARGET_PORT, or put both into \
             one section",
            first.line
        ),
    }
}

/// Whether both would have one port of one network.
pub(super) fn clash(first: &Request, second: &Request) -> bool {
    let mut services = first.specs.iter().flat_map(|one| second.specs.iter().map(move |other| (one, other)));
    services.any(|(one, other)| on_one_port(one, other)) && shared(first, second).is_some()
}
