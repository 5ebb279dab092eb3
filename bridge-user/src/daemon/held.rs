//! What was detached by hand: the configuration asks for it, and it stays off until the daemon is told otherwise.
//!
//! Invariant: pure.

use std::collections::BTreeSet;

use crate::{model::attachment::Attachment, plan::Intent};

/// Attachments that are kept off.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    all: bool,
    names: BTreeSet<String>,
}

impl Held {
    /// Keeps everything off.
    pub(super) fn hold_all(&mut self) {
        self.all = true;
    }

    /// Whether everything is kept off.
    pub(super) fn is_all(&self) -> bool {
        self.all
    }

    /// Keeps these attachments off.
    pub(super) fn hold(&mut self, names: &[String]) {
        self.names.extend(names.iter().cloned());
    }

    /// Whether this one is kept off.
    pub(super) fn holds(&self, state: &Attachment) -> bool {
        !self.names.is_empty() && self.names.contains(&state.name())
    }

    /// Takes what is kept off out of what is going to be done.
    pub(super) fn leave_out(&self, intent: &mut Intent) {
        for states in [&mut intent.steered, &mut intent.relayed, &mut intent.kept] {
            states.retain(|state| !self.holds(state));
        }
    }
}
