//! What containers and networks ask for by labels, as the engine tells.
//!
//! Invariant: while the engine does not answer, what labels got is theirs.

use super::asked::finding;
use crate::{
    config::{self, Config, Entry},
    model::finding::Finding,
    observe::networks::BlockingDocker,
};

/// What labels get now.
#[derive(Default)]
pub(super) struct Labels {
    entries: Vec<Entry>,
    findings: Vec<Finding>,
    /// The engine does not answer.
    are_old: bool,
}

impl Labels {
    /// Asks the engine, if the configuration follows labels.
    pub(super) fn ask(&mut self, config: &Config) {
        if !config.docker.labels {
            *self = Self::default();
            return;
        }
        let docker = BlockingDocker::connect(config.docker.host.as_deref());
        match docker.and_then(|docker| Ok(docker.ask(docker.docker.labelled())?)) {
            Ok(all) => {
                let (entries, findings) = config::labels::entries(config, &all);
                *self = Self { entries, findings, are_old: false };
            }
            Err(error) => {
                self.findings = vec![finding("labels".to_owned(), &format!("{error:#}"))];
                self.are_old = true;
            }
        }
    }

    /// What they get.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What they ask for and do not get, or why nobody can say.
    pub(super) fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Whether the engine answered.
    pub(super) fn are_known(&self) -> bool {
        !self.are_old
    }
}
