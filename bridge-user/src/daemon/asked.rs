//! What became of one request, and which attachments it keeps.
//!
//! Invariant: pure. What a request asked for by name stays when it cannot be looked up, and waits; what only a pattern
//! stood for goes when the engine says that it is gone, and stays while the engine says nothing.

use super::held::Held;
use crate::{
    model::{
        attachment::Attachment,
        codes,
        finding::Finding,
        pattern::{DEFAULT_NETWORKS, covers, is_pattern},
        spec::ServiceSpec,
    },
    plan::{self, Refusal, request::Request},
};

/// The requests with those that differ in their services alone made one: it is looked up once.
pub(super) fn together<'a>(requests: impl Iterator<Item = &'a Request>) -> Vec<Request> {
    let mut all: Vec<Request> = Vec::new();
    for request in requests {
        let is_alike = |other: &&mut Request| {
            let specs = other.specs.clone();
            **other == Request { specs, ..request.clone() }
        };
        match all.iter_mut().find(is_alike) {
            Some(one) => one.specs.extend_from_slice(&request.specs),
            None => all.push(request.clone()),
        }
    }
    all
}

/// What became of a request.
pub(super) struct Outcome {
    request: Request,
    held: Held,
    /// What is attached of it now, or would be but for a bridge that is gone.
    made: Vec<Attachment>,
    /// What was refused of it.
    pub(super) refused: Vec<Refusal>,
    /// What stays as it was, and why it is not made anew.
    stays: Vec<String>,
    /// Why nothing could be looked up.
    error: Option<String>,
    /// What was left out, or failed and does not matter now.
    pub(super) findings: Vec<Finding>,
}

impl Outcome {
    /// Of a request that could be looked up.
    pub(super) fn new(request: &Request, held: &Held, refused: Vec<Refusal>) -> Self {
        Self {
            request: request.clone(),
            held: held.clone(),
            made: Vec::new(),
            refused,
            stays: Vec::new(),
            error: None,
            findings: Vec::new(),
        }
    }

    /// Of one that could not.
    pub(super) fn failed(request: &Request, held: &Held, error: &anyhow::Error) -> Self {
        Self { error: Some(format!("{error:#}")), ..Self::new(request, held, Vec::new()) }
    }

    /// Notes what stays as it was.
    pub(super) fn stays(&mut self, warnings: &[String]) {
        self.stays.extend_from_slice(warnings);
    }

    /// Notes what is attached of it.
    pub(super) fn made(&mut self, states: impl IntoIterator<Item = Attachment>) {
        self.made.extend(states);
    }

    /// The names of what is attached of it.
    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        self.made.iter().map(Attachment::name)
    }

    /// Whether it made the attachment with this name.
    pub(super) fn has_made(&self, name: &str) -> bool {
        self.made.iter().any(|state| state.name() == name)
    }

    /// Notes why one is not relayed.
    pub(super) fn refuse(&mut self, state: &Attachment, error: &anyhow::Error) {
        let Attachment { service, port, target, .. } = state.clone();
        let spec = Some(ServiceSpec { service, port, target }.to_string());
        self.refused.push(Refusal { spec, network: state.network.clone(), error: format!("{error:#}") });
    }

    /// Whether all of it is as asked for.
    pub(super) fn is_whole(&self) -> bool {
        self.refused.is_empty() && self.stays.is_empty() && self.error.is_none()
    }

    /// Why nothing could be looked up.
    pub(super) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Whether the request keeps this attachment.
    pub(super) fn keeps(&self, state: &Attachment) -> bool {
        if self.held.holds(state) {
            return false;
        }
        if self.made.iter().any(|made| made.is_same(state)) {
            return true;
        }
        self.request.specs.iter().any(|spec| state.is_of(spec)) && self.is_in_its_place(state)
    }

    fn is_in_its_place(&self, state: &Attachment) -> bool {
        let Request { container, networks, bridges, .. } = &self.request;
        if *container != state.container {
            return false;
        }
        let is_named = |name: &String| *name == state.network;
        if networks.iter().chain(bridges).any(is_named) {
            return true;
        }
        let stands_for = |name: &&String| is_pattern(name) && covers(name, &state.network);
        let unknown = |name: &&String| {
            self.error.is_some() || self.refused.iter().any(|refusal| refusal.network == **name)
        };
        match (container, networks.is_empty() && bridges.is_empty()) {
            (Some(_), true) => self.error.is_some(),
            (None, true) => DEFAULT_NETWORKS.contains(&state.network.as_str()),
            (_, false) => networks.iter().filter(stands_for).any(|name| unknown(&name)),
        }
    }

    /// What is not as asked for, as findings.
    pub(super) fn not_attached(&self) -> Vec<Finding> {
        let whole = self.error.as_ref().map(|error| finding(plan::list(&self.request.specs), error));
        let each = self.refused.iter().map(|refusal| {
            let what = refusal.spec.as_deref().unwrap_or("everything");
            finding(format!("{what} on {}", refusal.network), &refusal.error)
        });
        let specs = || plan::list(&self.request.specs);
        let stays = self.stays.iter().map(|warning| finding(specs(), warning));
        whole.into_iter().chain(each).chain(stays).collect()
    }
}

/// That something is not as the configuration asks.
pub(super) fn finding(subject: String, error: &str) -> Finding {
    codes::NOT_AS_CONFIGURED.finding(subject, error, "it is tried again whenever something changes")
}

#[cfg(test)]
#[path = "asked_tests.rs"]
mod tests;
