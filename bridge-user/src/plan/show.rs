//! `attach --dry-run`: what would carry what, and every change in order. Changes nothing.

use std::net::SocketAddr;

use serde::Serialize;

use super::{Change, Intent, Refusal, list};
use crate::model::{
    JSON_VERSION, attachment::Attachment, datapath::Datapath, escape::push_line, finding::Finding,
    identity::Identity,
};

/// The changes an attach would make.
#[derive(Debug, Serialize)]
pub struct DryRun {
    /// [`JSON_VERSION`].
    pub version: u32,
    /// Always true: tells this document from a report.
    pub dry_run: bool,
    /// The container in whose network namespace all of it would happen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// What would carry each attachment.
    pub choices: Vec<Choice>,
    /// One sentence for each change, in order; empty when everything is as wanted.
    pub steps: Vec<String>,
    /// The same changes as data.
    pub changes: Vec<Change>,
    /// What would be written to the configuration after that, a sentence each.
    pub configuration: Vec<String>,
    /// What would be in the way of it, or is worth telling.
    pub findings: Vec<Finding>,
    /// What would not be attached, and why.
    pub refused: Vec<Refusal>,
    /// What is attached already and would be refused if it were not.
    pub warnings: Vec<String>,
    /// What would come of it, one sentence for each attachment.
    #[serde(skip)]
    summary: Vec<String>,
}

/// What would carry an attachment, and why.
#[derive(Debug, Serialize)]
pub struct Choice {
    /// The attachment's name.
    pub name: String,
    /// The datapath.
    pub datapath: Datapath,
    /// Why that one.
    pub reason: String,
}

impl Choice {
    fn new(intent: &Intent, state: &Attachment) -> Self {
        let tc = state.datapath == Datapath::Steer && intent.is_mptcp(state);
        let datapath = if tc { Datapath::SteerTc } else { state.datapath };
        Self { name: state.name(), datapath, reason: state.reason.to_string() }
    }
}

impl DryRun {
    /// Shows what is intended, and the changes that lead there; `container`: whose namespace all of it is in.
    pub fn new(intent: &Intent, container: Option<String>, changes: Vec<Change>) -> Self {
        let choices: Vec<_> = intent.wanted().map(|state| Choice::new(intent, state)).collect();
        let summary = intent.wanted().zip(&choices).map(|(state, choice)| summary(state, choice)).collect();
        let steps = changes.iter().map(ToString::to_string).collect();
        Self {
            version: JSON_VERSION,
            dry_run: true,
            container,
            choices,
            steps,
            changes,
            configuration: Vec::new(),
            findings: intent.left_out.iter().chain(&intent.findings).cloned().collect(),
            refused: intent.refused.clone(),
            warnings: intent.warnings.clone(),
            summary,
        }
    }

    /// What would come of it, then each change on a line of its own; nothing where everything is refused.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        if self.choices.is_empty() && self.warnings.is_empty() {
            return text;
        }
        if let Some(container) = &self.container {
            push_line(&mut text, &format!("in the network namespace of container {container}:"));
        }
        for sentence in &self.summary {
            push_line(&mut text, sentence);
        }
        for warning in &self.warnings {
            push_line(&mut text, &format!("warning: {warning}"));
        }
        for finding in &self.findings {
            push_line(&mut text, &format!("{}: {}: {finding}", finding.severity, finding.subject));
        }
        if self.steps.is_empty() && self.configuration.is_empty() {
            let why = if self.refused.is_empty() { "everything" } else { "the rest" };
            push_line(&mut text, "");
            push_line(&mut text, &format!("nothing would change: {why} is attached as asked"));
            return text;
        }
        text.push_str("\nnothing was changed; attach would do this:\n");
        for (at, step) in self.steps.iter().chain(&self.configuration).enumerate() {
            push_line(&mut text, &format!("{:3}. {step}", at + 1));
        }
        text
    }
}

/// `containers on app_default (br-1a2b) will reach redis at 172.18.0.1:6379 -> 127.0.0.1:6379, …`.
fn summary(state: &Attachment, choice: &Choice) -> String {
    let at = |&gateway| SocketAddr::new(gateway, state.port.get());
    let entrances = list(state.gateways.iter().map(at));
    let network = match state.network == state.bridge {
        true => state.bridge.clone(),
        false => format!("{} ({})", state.network, state.bridge),
    };
    let how = match choice.datapath {
        Datapath::Steer => "steered".to_owned(),
        Datapath::SteerTc => "steered to its MPTCP listener".to_owned(),
        relay => format!("relayed with {relay}"),
    };
    let seen = match state.identity {
        Identity::Container => "",
        Identity::Loopback => ", and look like local clients to it",
    };
    format!(
        "containers on {network} will reach {} at {entrances} -> {}, {how} ({}), allow {}{seen}",
        state.service,
        state.target,
        choice.reason,
        list(&state.allow)
    )
}
