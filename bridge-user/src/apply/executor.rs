//! Carries out changes, in order, and undoes them: the only writer.
//!
//! Invariants: one arm for each kind of change, which does what the change says and nothing else; an attach is all or
//! nothing, a detach goes on after an error; every error is reported.

use anyhow::{Context as _, anyhow};

use super::forget_earlier;
use crate::{
    kernel::instance::writer::Writer,
    plan::{self, Change, ProgramPin},
    relay::RelayOptions,
    runner::{Runner, control},
    scope::Scope,
};

/// What carries out changes in one namespace.
pub(super) struct Executor<'a> {
    scope: &'a Scope,
    /// Where it is done from: the same, or the namespace that attaches inside a container.
    owner: &'a Scope,
    /// With the lock held, what changes the instance.
    writer: Option<Writer>,
    /// What this process relays.
    runner: Runner,
    relays: RelayOptions,
    /// What was carried out and is undone when something fails.
    done: Vec<Change>,
    /// Why optional changes failed.
    warnings: Vec<String>,
}

impl<'a> Executor<'a> {
    /// For the namespace, from that of `owner`; `relays`: how relays work.
    pub(super) fn new(scope: &'a Scope, owner: &'a Scope, relays: RelayOptions) -> Self {
        let runner = Runner::new(&scope.namespace);
        Self { scope, owner, writer: None, runner, relays, done: Vec::new(), warnings: Vec::new() }
    }

    /// Changes the instance with this from now on.
    pub(super) fn lock(&mut self, writer: Writer) {
        self.writer = Some(writer);
    }

    /// Releases the lock. What was done until now stays, whatever happens.
    pub(super) fn unlock(&mut self) {
        self.writer = None;
        self.done.clear();
    }

    /// The relays that were started, and what went wrong and does not matter now.
    pub(super) fn finish(self) -> (Runner, Vec<String>) {
        (self.runner, self.warnings)
    }

    /// Carries out all of the changes, or undoes them and what was done before them. A failure of an optional one is a
    /// warning.
    ///
    /// # Errors
    /// With the first failure, and with every failure to undo.
    pub(super) fn all_or_nothing(&mut self, changes: Vec<Change>) -> anyhow::Result<()> {
        let mut optional_failed = false;
        for together in changes.chunk_by(Change::is_one_with) {
            let [change, ..] = together else { continue };
            if optional_failed && change.is_optional() {
                continue;
            }
            match self.perform_together(together) {
                Ok(()) => self.done.extend_from_slice(together),
                Err(error) if change.is_optional() => {
                    optional_failed = true;
                    self.warnings.push(format!("{error:#}"));
                }
                Err(error) => return Err(self.undo(error)),
            }
        }
        Ok(())
    }

    /// Undoes what was done, last things first; returns why, with what could not be undone.
    pub(super) fn undo(&mut self, why: anyhow::Error) -> anyhow::Error {
        let mut failures = Vec::new();
        while let Some(change) = self.done.pop() {
            let undone = match change.inverse() {
                Some(inverse) => self.perform(&inverse),
                None => Ok(()),
            };
            failures.extend(undone.err());
        }
        match together(failures) {
            Ok(()) => why,
            Err(failures) => failures.context(format!("{why:#}; failed to undo what was done before")),
        }
    }

    /// Carries out as many of the changes as possible.
    ///
    /// # Errors
    /// With every failure.
    pub(super) fn as_much_as_possible(&mut self, changes: Vec<Change>) -> anyhow::Result<()> {
        let mut failures = Vec::new();
        for change in changes {
            if change.needs_all_before() && !failures.is_empty() {
                continue;
            }
            let Err(error) = self.perform(&change) else { continue };
            failures.push(error);
            if change.is_needed_by_all() {
                break;
            }
        }
        together(failures)
    }

    /// Carries out changes that are one with each other, whole or not at all.
    fn perform_together(&mut self, changes: &[Change]) -> anyhow::Result<()> {
        if let [change] = changes {
            return self.perform(change);
        }
        let tracked = |change: &Change| match change {
            Change::TrackTarget { target, is_new, .. } => Some((*target, *is_new)),
            _ => None,
        };
        let targets: Vec<_> = changes.iter().filter_map(tracked).collect();
        self.writer()?.track(&targets)
    }

    fn writer(&mut self) -> anyhow::Result<&mut Writer> {
        self.writer.as_mut().context("failed to change an instance: the lock is not held")
    }

    fn perform(&mut self, change: &Change) -> anyhow::Result<()> {
        match change {
            Change::StartRelay { attachment } => self.runner.start(attachment, self.relays),
            Change::StopRelays { socket: None, names } => {
                drop(self.runner.take(names));
                Ok(())
            }
            Change::StopRelays { socket: Some(socket), names } => {
                control::stop(socket, names).with_context(|| format!("failed to stop {}", plan::list(names)))
            }
            Change::MountBpffs { .. } => self.scope.roots.ensure_bpffs(),
            Change::ForgetEarlier { names, .. } => forget_earlier(self.owner, &self.scope.namespace, names),
            _ => change_instance(self.writer()?, change),
        }
    }
}

/// Carries out a change of an instance.
fn change_instance(writer: &mut Writer, change: &Change) -> anyhow::Result<()> {
    match change {
        Change::CreateInstance { event_level, .. } => writer.create(*event_level),
        Change::RemoveInstance { .. } => writer.remove_instance(),
        Change::AttachProgram(ProgramPin { program, pin, .. }) => {
            writer.attach_program(program, pin.as_deref())
        }
        Change::DetachProgram(ProgramPin { pin, .. }) => writer.detach_program(pin.as_deref()),
        Change::ReplacePrograms { programs, interfaces, event_level, old_level, is_other_build } => {
            let interfaces: Vec<u32> = interfaces.iter().map(|interface| interface.index).collect();
            let replaced = writer.replace_programs(programs, &interfaces, *event_level);
            if replaced.is_err() && !is_other_build {
                // Some may be replaced. If they cannot be put back either, the next attach replaces all of them.
                let _ = writer.replace_programs(programs, &interfaces, *old_level);
            }
            replaced
        }
        Change::WriteMeta { new, old } => writer.write_meta(*new, old.is_none()),
        Change::RemoveLeftovers { .. } => writer.remove_leftovers(),
        Change::AttachTc { tc, .. } => writer.attach_tc(tc.interface.index, tc.hook),
        Change::DetachTc { tc } => writer.detach_tc(tc.interface.index),
        Change::TrackTarget { target, is_new, .. } => writer.track(&[(*target, *is_new)]),
        Change::ReleaseListeners { .. } => writer.release(),
        Change::UntrackTarget { target } => writer.untrack(*target),
        Change::PutAttachment { id, new, old, .. } => writer
            .put(*id, new, old.as_deref())
            .with_context(|| plan::failed_to_attach(&new.service, new.port, &new.bridge)),
        Change::RemoveAttachment { id, attachment, .. } => writer.remove(*id, attachment),
        Change::Publish { pin } => writer.publish(pin),
        Change::Withdraw { .. } => writer.withdraw(),
        Change::StartRelay { .. }
        | Change::StopRelays { .. }
        | Change::MountBpffs { .. }
        | Change::ForgetEarlier { .. } => {
            Err(anyhow!("failed to change an instance: {change} is none of it"))
        }
    }
}

/// All failures as one error.
pub(super) fn together(failures: Vec<anyhow::Error>) -> anyhow::Result<()> {
    let mut failures = failures.into_iter();
    let Some(first) = failures.next() else { return Ok(()) };
    let rest: Vec<_> = failures.map(|error| format!("{error:#}")).collect();
    if rest.is_empty() { Err(first) } else { Err(anyhow!("{first:#}; {}", rest.join("; "))) }
}
