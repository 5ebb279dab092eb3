//! One pass: everything that is asked for is compared with what is there, and made so.
//!
//! Invariants: what is attached and nobody asks for any more goes after everything else is as it should be; what was
//! typed by hand is left alone; an attachment that cannot be as asked, and is otherwise, is taken off before anything
//! is attached, so that nobody stays admitted who is not to be.

use std::time::Duration;

use super::{
    Daemon, LOOK_AGAIN, Typed,
    asked::{self, Outcome},
    held::Held,
};
use crate::{
    apply,
    kernel::{Instance, instance::owned::owned},
    model::{
        attachment::{Attachment, Keeper},
        finding::Finding,
    },
    observe::prepare::{Prepared, prepare},
    plan::{self, request::Request},
};

impl Daemon {
    /// Makes what is asked for true, as far as possible; returns when to look again at the latest.
    pub(super) fn pass(&mut self) -> Duration {
        self.read_again();
        self.labels.ask(&self.config);
        let by_file = match self.held.is_all() {
            true => Vec::new(),
            false => asked::together(self.by_file()),
        };
        let mut outcomes: Vec<Outcome> =
            by_file.iter().map(|request| self.follow(request, &self.held)).collect();
        // What both ask for is the file's.
        let made: Vec<String> = outcomes.iter().flat_map(Outcome::names).collect();
        for Typed { request, held } in &self.typed {
            let mut held = held.clone();
            held.hold(&made);
            outcomes.push(self.follow(request, &held));
        }
        let removed = self.remove_unasked(&outcomes);
        let mut findings: Vec<Finding> = self.refused.iter().chain(self.labels.findings()).cloned().collect();
        for outcome in &outcomes {
            findings.extend(outcome.not_attached());
            findings.extend_from_slice(&outcome.findings);
        }
        self.say(&findings);
        let is_known = self.refused.is_none() && self.labels.are_known();
        let is_whole = outcomes.iter().all(Outcome::is_whole) && is_known;
        let failed = removed.inspect_err(|error| log::error!("{error:#}")).is_err() || !is_whole;
        self.relays.tell(findings);
        if failed {
            return self.backoff.pause();
        }
        self.backoff.reset();
        LOOK_AGAIN
    }

    /// Makes one request true, as far as possible.
    pub(super) fn follow(&self, request: &Request, held: &Held) -> Outcome {
        let engine = request.engine.clone().or_else(|| self.config.docker.host.clone());
        let request = &Request { engine, ..request.clone() };
        let running = self.relays.places();
        let prepared = prepare(request, &self.scope, &running);
        match prepared.and_then(|prepared| self.attach(request, held, prepared)) {
            Ok(outcome) => outcome,
            Err(error) => Outcome::failed(request, held, &error),
        }
    }

    fn attach(&self, request: &Request, held: &Held, mut prepared: Prepared) -> anyhow::Result<Outcome> {
        held.leave_out(&mut prepared.intent);
        let relayed = std::mem::take(&mut prepared.intent.relayed);
        let outdated = std::mem::take(&mut prepared.intent.outdated);
        let in_place = |state: &Attachment| {
            let is_same = |other: &Attachment| other.is_same(state);
            state.keeper == Keeper::Config && outdated.iter().any(is_same) || relayed.iter().any(is_same)
        };
        if !outdated.is_empty() || !relayed.is_empty() {
            log_detached(&apply::detach(&prepared.scope, in_place)?);
        }
        let is_new = |state: &&Attachment| !prepared.intent.replaced.contains(state);
        let changed: Vec<String> =
            prepared.intent.steered.iter().filter(is_new).map(Attachment::name).collect();
        let attached = apply::attach(&prepared, request.relay)?;
        attached.warnings.iter().for_each(|warning| log::warn!("{warning}"));
        if !changed.is_empty() {
            log::info!("attached {}", plan::list(&changed));
        }
        let intent = &prepared.intent;
        let steered = |state: &Attachment| intent.steered.iter().any(|steered| steered.is_same(state));
        self.relays.drain_apart(self.relays.take(steered));
        let mut outcome = Outcome::new(request, held, intent.refused.clone());
        outcome.findings.extend(intent.left_out.iter().cloned());
        outcome.stays(&intent.warnings);
        for state in &relayed {
            match self.relays.follow(state, request.relay) {
                Ok(true) => log::info!("relays {}", state.name()),
                Ok(false) => {}
                Err(error) => outcome.refuse(state, &error),
            }
        }
        outcome.made(intent.wanted().chain(&intent.kept).chain(&relayed).cloned());
        Ok(outcome)
    }

    /// Detaches what the configuration asked for once, and no request keeps.
    fn remove_unasked(&self, outcomes: &[Outcome]) -> anyhow::Result<()> {
        let is_asked = |state: &Attachment| outcomes.iter().any(|outcome| outcome.keeps(state));
        let is_left = |state: &Attachment| state.keeper == Keeper::Config && !is_asked(state);
        let stopped = self.relays.take(|state| !is_asked(state));
        self.relays.drain_apart(stopped);
        let list = |instance: Instance| instance.state.list();
        let present = Instance::open(&self.scope)?.map_or_else(|| Ok(Vec::new()), list)?;
        if present.iter().any(|(_, state)| is_left(state)) {
            log_detached(&apply::detach(&self.scope, is_left)?);
        }
        for container in owned(&self.scope)? {
            if container.attachments()?.iter().any(is_left) {
                log_detached(&apply::detach_owned(&container, is_left)?);
            }
        }
        Ok(())
    }

    /// Logs each thing that is new; the same again and again once.
    fn say(&mut self, findings: &[Finding]) {
        let now: Vec<String> = findings.iter().map(|one| format!("{}: {one}", one.subject)).collect();
        for line in now.iter().filter(|line| !self.said.contains(line)) {
            log::warn!("{line}");
        }
        self.said = now;
    }
}

fn log_detached(names: &[String]) {
    if !names.is_empty() {
        log::info!("detached {}", plan::list(names));
    }
}
