//! The `detach` verb: removes attachments, and with the last one of a namespace its whole instance; stops relays.

use anyhow::{Context as _, bail};

use crate::{
    attachment::AttachmentState,
    kernel::{
        Instance,
        owned::{self, Owned, owned},
    },
    plan, preflight,
    report::Entry,
    runner::control::{self, Ask, Peer},
};

/// Detaches every attachment that one of `names` means. Returns their names.
///
/// # Errors
/// When a name means nothing, or the kernel refuses. What the other names mean is detached nevertheless: who wants several
/// closed shall not find them open because one was closed before.
pub fn by_name(names: &[String]) -> anyhow::Result<Vec<String>> {
    preflight::may_detach()?;
    let relays = Relays::find()?;
    let containers = owned()?;
    let own = Instance::open()?.map_or_else(|| Ok(Vec::new()), |instance| instance.state.list())?;
    let mut steered: Vec<_> = own.into_iter().map(|(_, state)| state).collect();
    for container in &containers {
        steered.extend(container.attachments()?);
    }
    let is_there = |name: &&String| {
        steered.iter().any(|state| state.is_meant_by(name))
            || relays.entries().any(|entry| entry.is_meant_by(name))
    };
    let unknown: Vec<_> = names.iter().filter(|name| !is_there(name)).collect();
    let all: Vec<_> = steered
        .iter()
        .map(AttachmentState::name)
        .chain(relays.entries().map(|entry| entry.name.clone()))
        .collect();
    let mut detached = relays.stop(|entry| names.iter().any(|name| entry.is_meant_by(name)))?;
    let meant = |state: &AttachmentState| names.iter().any(|name| state.is_meant_by(name));
    detached.extend(owned::detach_here(meant)?);
    for container in containers {
        detached.extend(container.detach(meant)?);
    }
    detached.sort();
    if !unknown.is_empty() {
        let known = plan::known(all.iter().filter(|name| !detached.contains(name)));
        let done = if detached.is_empty() {
            String::new()
        } else {
            format!("; {} is detached", plan::list(&detached))
        };
        bail!(
            "failed to detach {}: no attachment or service has this name: {known}{done}",
            plan::list(unknown)
        );
    }
    Ok(detached)
}

/// Detaches everything of this network namespace, and what it attached inside containers, whatever version pinned it.
/// Returns the names that could be read.
///
/// # Errors
/// When a pin cannot be removed, or a relay process does not answer; the rest is done nevertheless.
pub fn all() -> anyhow::Result<Vec<String>> {
    preflight::may_detach()?;
    let relayed = Relays::find().and_then(|relays| relays.stop(|_| true));
    let in_containers: Vec<_> = owned()?.iter().map(Owned::detach_all).collect();
    let mut detached = owned::detach_all_here()?;
    for names in in_containers.into_iter().chain([relayed]) {
        detached.extend(names?);
    }
    detached.sort();
    Ok(detached)
}

/// The relay processes of this network namespace and what they run.
struct Relays(Vec<(Peer, Vec<Entry>)>);

impl Relays {
    fn find() -> anyhow::Result<Self> {
        let mut found = Vec::new();
        for peer in control::peers()? {
            if let Some(answer) = peer.ask(&Ask::Status)? {
                found.push((peer, answer.entries));
            }
        }
        Ok(Self(found))
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.0.iter().flat_map(|(_, entries)| entries)
    }

    /// Stops those that `chosen` picks and waits until they are drained. Returns their names.
    fn stop(&self, chosen: impl Fn(&Entry) -> bool) -> anyhow::Result<Vec<String>> {
        let mut stopped = Vec::new();
        for (peer, entries) in &self.0 {
            let names: Vec<_> =
                entries.iter().filter(|e| chosen(e)).map(|entry| entry.name.clone()).collect();
            if !names.is_empty() {
                let question = Ask::Stop(names.clone());
                peer.ask(&question).with_context(|| format!("failed to stop {}", plan::list(&names)))?;
                stopped.extend(names);
            }
        }
        Ok(stopped)
    }
}
