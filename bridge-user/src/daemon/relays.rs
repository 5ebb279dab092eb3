//! The daemon's relays, and what it has to tell of what is not attached: what its threads share.
//!
//! Invariant: nobody waits for connections to drain while holding the lock.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::{
    model::{attachment::Attachment, finding::Finding},
    net::namespace::Namespace,
    observe::report::AttachmentReport,
    plan::RelayPlace,
    relay::RelayOptions,
    runner::{self, Runner, RunningRelay},
};

/// How long a relay that was stopped may take to give its port back to the one that takes its place.
const HAND_OVER: Duration = Duration::from_secs(1);
const HAND_OVER_PAUSE: Duration = Duration::from_millis(5);

/// What the daemon relays.
pub(super) struct Relays {
    kept: Mutex<Kept>,
}

struct Kept {
    runner: Runner,
    /// Where those listen that were stopped and may not have closed their listeners yet.
    draining: Vec<RelayPlace>,
    findings: Vec<Finding>,
}

impl Relays {
    /// None yet.
    pub(super) fn new(namespace: &Namespace) -> Self {
        Self {
            kept: Mutex::new(Kept {
                runner: Runner::new(namespace),
                draining: Vec::new(),
                findings: Vec::new(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where its relays listen, and those that drain did.
    pub(super) fn places(&self) -> Vec<RelayPlace> {
        let kept = self.lock();
        kept.runner.attachments().map(RelayPlace::of).chain(kept.draining.iter().cloned()).collect()
    }

    /// What `status` shows of it.
    ///
    /// # Errors
    /// When links or listeners cannot be read.
    pub(super) fn entries(&self) -> anyhow::Result<Vec<AttachmentReport>> {
        self.lock().runner.entries()
    }

    /// What is not as it should be.
    pub(super) fn findings(&self) -> Vec<Finding> {
        self.lock().findings.clone()
    }

    /// Tells what is not as it should be, from now on.
    pub(super) fn tell(&self, findings: Vec<Finding>) {
        self.lock().findings = findings;
    }

    /// Relays this, in place of what was relayed under its name. Returns whether that is new.
    ///
    /// # Errors
    /// When a gateway's port cannot be bound or a resource is short; it is not relayed then.
    pub(super) fn follow(
        self: &Arc<Self>,
        wanted: &Attachment,
        options: RelayOptions,
    ) -> anyhow::Result<bool> {
        if self.lock().runner.is_running(wanted, options) {
            return Ok(false);
        }
        let stopping = self.take(|state| state.is_same(wanted));
        let had_port = !stopping.is_empty();
        self.drain_apart(stopping);
        let deadline = Instant::now() + HAND_OVER;
        loop {
            let started = self.lock().runner.start(wanted, options);
            match started {
                Err(_) if had_port && Instant::now() < deadline => thread::sleep(HAND_OVER_PAUSE),
                started => return started.map(|()| true),
            }
        }
    }

    /// Takes out those that `chosen` picks.
    pub(super) fn take(&self, chosen: impl Fn(&Attachment) -> bool) -> Vec<RunningRelay> {
        let mut kept = self.lock();
        let states: Vec<&Attachment> = kept.runner.attachments().filter(|state| chosen(state)).collect();
        let names: Vec<String> = states.iter().map(|state| state.name()).collect();
        let places: Vec<RelayPlace> = states.into_iter().map(RelayPlace::of).collect();
        kept.draining.extend(places);
        kept.runner.take(&names)
    }

    /// Drains relays that were taken out, and says how many connections had to be reset.
    pub(super) fn drain(&self, stopping: Vec<RunningRelay>) {
        let places: Vec<RelayPlace> =
            stopping.iter().map(RunningRelay::attachment).map(RelayPlace::of).collect();
        match runner::drain(stopping) {
            0 => {}
            cut => log::warn!("reset {cut} connections that were still open at the end of the drain time"),
        }
        let mut kept = self.lock();
        for place in places {
            let at = kept.draining.iter().position(|one| *one == place);
            at.map(|at| kept.draining.swap_remove(at));
        }
    }

    /// The same, while others go on.
    pub(super) fn drain_apart(self: &Arc<Self>, stopping: Vec<RunningRelay>) {
        if !stopping.is_empty() {
            let relays = Arc::clone(self);
            thread::spawn(move || relays.drain(stopping));
        }
    }
}
