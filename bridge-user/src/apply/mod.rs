//! Brings about what is wanted: compares it with what is there, and has the changes carried out.
//!
//! Invariant: what is carried out is what `plan::diff` says under the lock, in that order; nothing else is written.

mod executor;

use anyhow::{Context as _, anyhow};

use self::executor::{Executor, together};
use crate::{
    kernel::instance::{
        hidden::{self, Hidden},
        owned::{Owned, owned},
        writer::Writer,
    },
    model::{attachment::Attachment, instance::NamespaceId},
    net::namespace::Namespace,
    observe::{container::ContainerRun, pinned, preflight, prepare::Prepared},
    plan::{self, Change, Pinned, Snapshot, Steered, Wanted},
    relay::RelayOptions,
    runner::Runner,
    scope::Scope,
};

/// What came of an attach.
pub struct Attached {
    /// What this process relays.
    pub runner: Runner,
    /// What went wrong and does not matter now, one line each.
    pub warnings: Vec<String>,
}

/// Makes the prepared attachments.
///
/// # Errors
/// When the kernel refuses; nothing of this call is left then.
pub fn attach(prepared: &Prepared, relays: RelayOptions) -> anyhow::Result<Attached> {
    let owner = prepared.container.as_ref().map(ContainerRun::owner);
    let there = pinned::before(prepared)?;
    let all = plan::diff(&there, &prepared.intent.over(&there, owner));
    let (locked, unlocked): (Vec<_>, Vec<_>) = all.into_iter().partition(Change::needs_lock);
    let (after, before) =
        unlocked.into_iter().partition(|change| matches!(change, Change::ForgetEarlier { .. }));
    let outside = prepared.container.as_ref().map_or(&prepared.scope, ContainerRun::owner_scope);
    let mut executor = Executor::new(&prepared.scope, outside, relays);
    prepared.inside(prepared.scope.require_enterable())?;
    let attached = executor.all_or_nothing(before).and_then(|()| match locked.is_empty() {
        true => Ok(()),
        false => under_lock(&mut executor, prepared, owner),
    });
    prepared.inside(attached)?;
    executor.unlock();
    // What is attached by now stays, and serves.
    executor.as_much_as_possible(after)?;
    let (runner, warnings) = executor.finish();
    Ok(Attached { runner, warnings })
}

/// Compares again, since another attach may have come in between, and carries out what has to be done now.
fn under_lock(
    executor: &mut Executor<'_>,
    prepared: &Prepared,
    owner: Option<NamespaceId>,
) -> anyhow::Result<()> {
    match lock_and_compare(prepared, owner) {
        Ok((writer, changes)) => {
            executor.lock(writer);
            executor.all_or_nothing(changes)
        }
        Err(error) => Err(executor.undo(error)),
    }
}

fn lock_and_compare(
    prepared: &Prepared,
    owner: Option<NamespaceId>,
) -> anyhow::Result<(Writer, Vec<Change>)> {
    let Prepared { intent, scope, .. } = prepared;
    let writer = Writer::begin(scope, intent.features)?;
    preflight::may_pin(scope, &hidden::find_now(scope)?)?;
    let there = pinned::snapshot(scope, intent.features, &intent.steered)?;
    let present: Vec<_> = there.attachments().cloned().collect();
    plan::refuse_taken(&intent.steered, &present).map_err(|text| anyhow!(text))?;
    let next_id = there.instance.as_ref().map_or(1, |pinned| pinned.next_id);
    plan::require_room(&intent.steered, &present, next_id).map_err(|text| anyhow!(text))?;
    let mut changes = plan::diff(&there, &intent.over(&there, owner));
    changes.retain(Change::needs_lock);
    Ok((writer, changes))
}

/// Detaches what `chosen` picks in the namespace, and with the last one everything. Returns the names.
///
/// # Errors
/// When a map cannot be written or a pin not be removed; the rest is removed nevertheless.
pub fn detach(scope: &Scope, chosen: impl Fn(&Attachment) -> bool) -> anyhow::Result<Vec<String>> {
    if !scope.roots.bpffs_mounted() {
        return Ok(Vec::new());
    }
    scope.require_enterable()?;
    let writer = Writer::begin(scope, None)?;
    let there = pinned::snapshot(scope, None, &[])?;
    remove(scope, writer, &there, chosen)
}

/// The changes that a detach of what `chosen` picks would make now, in order. Changes nothing.
///
/// # Errors
/// When the pins cannot be read.
pub fn planned_detach(scope: &Scope, chosen: impl Fn(&Attachment) -> bool) -> anyhow::Result<Vec<Change>> {
    let there = pinned::snapshot(scope, None, &[])?;
    Ok(without(&there, chosen).1)
}

/// Detaches everything of the namespace, whatever version pinned it. Returns the names that could be read.
///
/// # Errors
/// When a pin cannot be removed; the rest is removed nevertheless.
pub fn detach_all(scope: &Scope) -> anyhow::Result<Vec<String>> {
    if !scope.roots.bpffs_mounted() {
        return Ok(Vec::new());
    }
    scope.require_enterable()?;
    let writer = Writer::begin(scope, None)?;
    // Pins of another version cannot be read, but still removed.
    let there = pinned::snapshot(scope, None, &[]).unwrap_or_else(|_| pinned::unreadable(scope));
    remove(scope, writer, &there, |_| true)
}

/// Ends what steers the namespace and is not among its pins. Returns the names of what was attached there.
///
/// # Errors
/// When it cannot be told, or not be ended; the rest is ended nevertheless.
pub fn end_hidden(scope: &Scope) -> anyhow::Result<Vec<String>> {
    scope.require_enterable()?;
    match hidden::find(scope)? {
        Hidden::Nothing => Ok(Vec::new()),
        Hidden::Unknown(programs) => Err(anyhow!(
            "failed to end what steers this network namespace: programs {} may be bridge-user's, and this process may \
             not see that: run it as root",
            plan::list(programs)
        )),
        Hidden::Found(all) => {
            hidden::end(Some(&scope.namespace), &all)?;
            Ok(all.into_iter().flat_map(|generation| generation.attachments).collect())
        }
    }
}

/// The same for what the namespace attached inside containers.
///
/// # Errors
/// As [`end_hidden`].
pub fn end_hidden_inside(scope: &Scope) -> anyhow::Result<Vec<String>> {
    let (mut ended, mut failures) = (Vec::new(), Vec::new());
    for (namespace, generation) in hidden::find_owned(scope)? {
        match hidden::end(namespace.as_ref(), std::slice::from_ref(&generation)) {
            Ok(()) => ended.extend(generation.attachments),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    match failures.is_empty() {
        true => Ok(ended),
        false => Err(anyhow!(failures.join("; "))),
    }
}

/// The same as [`detach`], in a container.
///
/// # Errors
/// As [`detach`].
pub fn detach_owned(owned: &Owned, chosen: impl Fn(&Attachment) -> bool) -> anyhow::Result<Vec<String>> {
    if let Some(scope) = owned.scope() {
        return detach(&scope, chosen);
    }
    let writer = owned.write_from_outside()?;
    let there = pinned::of_gone(owned)?;
    remove(owned.owner(), writer, &there, chosen)
}

/// The same as [`detach_all`], in a container.
///
/// # Errors
/// As [`detach_all`].
pub fn detach_all_owned(owned: &Owned) -> anyhow::Result<Vec<String>> {
    let names = owned.attachments().unwrap_or_default().iter().map(Attachment::name).collect();
    match owned.namespace() {
        Some(namespace) => drop(detach_all(&owned.owner().inside(namespace.clone()))?),
        None => {
            let writer = owned.write_from_outside()?;
            let instance = Some(Pinned { is_gone: true, ..Pinned::default() });
            let there = Snapshot { dir: owned.path(), instance, ..Snapshot::default() };
            remove(owned.owner(), writer, &there, |_| true)?;
        }
    }
    Ok(names)
}

/// Stops relays of other processes, which `stop` names, and waits until they are drained.
///
/// # Errors
/// When one goes on; the others have ended then.
pub fn stop_relays(scope: &Scope, stop: Vec<Change>) -> anyhow::Result<()> {
    Executor::new(scope, scope, RelayOptions::default()).as_much_as_possible(stop)
}

fn remove(
    scope: &Scope,
    writer: Writer,
    there: &Snapshot,
    chosen: impl Fn(&Attachment) -> bool,
) -> anyhow::Result<Vec<String>> {
    let (names, changes) = without(there, chosen);
    let mut executor = Executor::new(scope, scope, RelayOptions::default());
    executor.lock(writer);
    executor.as_much_as_possible(changes)?;
    Ok(names)
}

/// The names of the attachments that `chosen` picks, and the changes after which only the others are there.
fn without(there: &Snapshot, chosen: impl Fn(&Attachment) -> bool) -> (Vec<String>, Vec<Change>) {
    let (gone, kept): (Vec<_>, Vec<_>) = there.attachments().cloned().partition(chosen);
    let steered = Some(Steered { asked: Vec::new(), kept });
    let changes = plan::diff(there, &Wanted { steered, ..Wanted::default() });
    (gone.iter().map(Attachment::name).collect(), changes)
}

/// Removes what earlier runs of a container left of these attachments. `scope`: where it is attached in from; `now`:
/// the namespace of its present run. Directories are not told by their path: the present run may have been given the
/// inode of an earlier one, whose directory has another name since.
fn forget_earlier(scope: &Scope, now: &Namespace, names: &[String]) -> anyhow::Result<()> {
    let is_left = |state: &Attachment| names.contains(&state.name());
    let failed = || format!("failed to remove {} of an earlier run", plan::list(names));
    let all = owned(scope).with_context(failed)?;
    let earlier = all.iter().filter(|other| !other.is_in(now));
    together(earlier.filter_map(|other| detach_owned(other, is_left).err()).collect()).with_context(failed)
}
