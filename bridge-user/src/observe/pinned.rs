//! What is pinned for a namespace before an attach changes it, for the plan that is shown.

use std::path::PathBuf;

use super::prepare::{Prepared, owner_name};
use crate::{
    kernel::{Instance, instance::pins::PinDir},
    model::event_level::EventLevel,
    plan::show::{DryRun, Pinned, Surroundings},
    scope::Scope,
};

/// The steps a prepared attach would take.
///
/// # Errors
/// When the present state cannot be read.
pub fn dry_run(prepared: &Prepared) -> anyhow::Result<DryRun> {
    let Prepared { intent, scope, container } = prepared;
    let pinned = prepared.inside(scope.run(|| read(scope, intent.event_level)))?;
    let earlier: Vec<(PathBuf, Vec<String>)> = match container {
        Some(container) => container.earlier(&intent.steered)?,
        None => Vec::new(),
    };
    let to_mount = (!scope.roots.bpffs_mounted()).then(|| scope.roots.bpffs().to_owned());
    let there = Surroundings {
        container: container.as_ref().map(ToString::to_string),
        earlier,
        dir: PinDir::of(scope).path(),
        to_mount,
        pinned,
    };
    Ok(DryRun::new(intent, &there, owner_name))
}

fn read(scope: &Scope, level: Option<EventLevel>) -> anyhow::Result<Option<Pinned>> {
    let Some(instance) = Instance::open(scope)? else { return Ok(None) };
    let state = &instance.state;
    Ok(Some(Pinned {
        outdated: state.is_outdated(level)?,
        attachments: state.list()?.into_iter().map(|(_, attachment)| attachment).collect(),
        mptcp: instance.mptcp()?,
        tells_identities: instance.tells_identities(),
        registered: state.listeners()?.into_iter().map(|(_, cookie)| cookie).collect(),
    }))
}
