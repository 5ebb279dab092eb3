//! What an attach is going to do, after every check: pure data, to be carried out or shown.

use std::collections::HashSet;

use super::{
    diff::{Steered, Wanted},
    partition::Refusal,
    snapshot::Snapshot,
    wanted::is_mptcp,
};
use crate::model::{
    attachment::Attachment, datapath::Reason, event_level::EventLevel, features::Features, finding::Finding,
    instance::NamespaceId, listener::Listener,
};

/// An attach, as far as it passed every check.
pub struct Intent {
    /// What the kernel can do, where something is to be steered.
    pub features: Option<Features>,
    /// What to steer.
    pub steered: Vec<Attachment>,
    /// What to relay.
    pub relayed: Vec<Attachment>,
    /// What is attached now of what is to be steered.
    pub replaced: Vec<Attachment>,
    /// The listeners there are now.
    pub listeners: Vec<Listener>,
    /// What was asked for and is not going to be attached.
    pub refused: Vec<Refusal>,
    /// What is attached already, and left alone.
    pub kept: Vec<Attachment>,
    /// What is attached otherwise than asked for, and cannot be attached as asked.
    pub outdated: Vec<Attachment>,
    /// What is attached already and would be refused if it were not, one line each.
    pub warnings: Vec<String>,
    /// What is known to be in the way of the attachments, or worth telling of them.
    pub findings: Vec<Finding>,
    /// What was left out of what was asked for, which is only known now.
    pub left_out: Vec<Finding>,
    /// The level of events that was asked for.
    pub event_level: Option<EventLevel>,
}

impl Intent {
    /// Everything that is wanted.
    pub fn wanted(&self) -> impl Iterator<Item = &Attachment> {
        self.steered.iter().chain(&self.relayed)
    }

    /// What should be where `there` is, which `owner` attaches from outside. What is there and not asked for stays.
    pub fn over(&self, there: &Snapshot, owner: Option<NamespaceId>) -> Wanted {
        let asked: HashSet<_> = self.steered.iter().map(Attachment::key).collect();
        let kept = there.attachments().filter(|present| !asked.contains(&present.key()));
        let steered = Steered { asked: self.steered.clone(), kept: kept.cloned().collect() };
        Wanted {
            relayed: self.relayed.clone(),
            steered: (!self.steered.is_empty()).then_some(steered),
            event_level: self.event_level,
            probed: self.steered.iter().any(|state| state.reason == Reason::ProbePassed),
            owner,
        }
    }

    /// Whether only an MPTCP listener serves it now.
    pub fn is_mptcp(&self, state: &Attachment) -> bool {
        is_mptcp(&self.listeners, &state.target)
    }
}
