//! What an attach is going to do, after every check: pure data, to be carried out or shown.

use std::collections::HashSet;

use anyhow::bail;

use super::{
    diff::{Steered, Wanted},
    snapshot::Snapshot,
    wanted::{failed_to_attach, is_mptcp},
};
use crate::model::{
    attachment::Attachment, datapath::Reason, event_level::EventLevel, features::Features, finding::Finding,
    instance::NamespaceId, listener::Listener,
};

/// An attach that passed every check.
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
    /// What is known to be in the way of the attachments, or worth telling of them.
    pub findings: Vec<Finding>,
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

    /// Requires that no process is needed.
    ///
    /// # Errors
    /// Names what needs one, why, and the way out.
    pub fn require_no_relay(&self) -> anyhow::Result<()> {
        let Some(first) = self.relayed.first() else { return Ok(()) };
        bail!(
            "{}: it needs a relay ({}: {}), which lives in a process, and this version has no daemon: add --foreground \
             and keep it running, for example in a systemd unit",
            failed_to_attach(&first.service, first.port, &first.bridge),
            first.datapath,
            first.reason
        )
    }

    /// Requires that everything can be steered: a relay would have to run inside the container, and none does.
    ///
    /// # Errors
    /// Names what cannot, why, and the way out.
    pub fn require_steered(&self) -> anyhow::Result<()> {
        let Some(first) = self.relayed.first() else { return Ok(()) };
        bail!(
            "{}: it needs a relay ({}: {}), and there are none inside containers: use --datapath auto and a TCP \
             listener on the container's 127.0.0.1, or let the service listen on the container's own address",
            failed_to_attach(&first.service, first.port, &first.bridge),
            first.datapath,
            first.reason
        )
    }
}
