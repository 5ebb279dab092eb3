//! The `detach` verb: removes attachments, and with the last one the whole instance; stops relays.

use anyhow::{Context as _, bail};

use crate::{
    kernel::instance::Writer,
    plan, preflight,
    report::Entry,
    runner::control::{self, Ask, Peer},
};

/// Detaches every attachment that one of `names` means. Returns their names.
///
/// # Errors
/// When a name means nothing (nothing is detached then), or the kernel refuses.
pub fn by_name(names: &[String]) -> anyhow::Result<Vec<String>> {
    preflight::may_detach()?;
    let relays = Relays::find()?;
    let writer = Writer::begin_if_mounted()?;
    let mut instance = writer.as_ref().map_or(Ok(None), Writer::open_existing)?;
    let all = instance.as_ref().map_or_else(|| Ok(Vec::new()), |instance| instance.state.list())?;
    for name in names {
        let steered = all.iter().any(|(_, state)| state.is_meant_by(name));
        if !steered && !relays.entries().any(|entry| entry.is_meant_by(name)) {
            let all: Vec<_> = all.iter().map(|(_, state)| state.name()).collect();
            let known = plan::known(all.iter().chain(relays.entries().map(|entry| &entry.name)));
            bail!("failed to detach {name}: no attachment or service has this name: {known}");
        }
    }
    let mut detached = relays.stop(|entry| names.iter().any(|name| entry.is_meant_by(name)))?;
    let chosen: Vec<_> =
        all.iter().filter(|(_, state)| names.iter().any(|name| state.is_meant_by(name))).collect();
    if let Some(writer) = writer.filter(|_| chosen.len() == all.len()) {
        writer.remove_all()?;
    } else if let Some(instance) = &mut instance {
        for (id, _) in &chosen {
            instance.remove(*id)?;
        }
    }
    detached.extend(chosen.into_iter().map(|(_, state)| state.name()));
    detached.sort();
    Ok(detached)
}

/// Detaches everything of this network namespace, whatever version pinned it. Returns the names that could be read.
///
/// # Errors
/// When a pin cannot be removed, or a relay process does not answer; the other is done nevertheless.
pub fn all() -> anyhow::Result<Vec<String>> {
    preflight::may_detach()?;
    let relayed = Relays::find().and_then(|relays| relays.stop(|_| true));
    let mut detached = all_steered()?;
    detached.extend(relayed?);
    detached.sort();
    Ok(detached)
}

fn all_steered() -> anyhow::Result<Vec<String>> {
    let Some(writer) = Writer::begin_if_mounted()? else { return Ok(Vec::new()) };
    // Pins of another version cannot be listed, but still removed.
    let names = match writer.open_existing() {
        Ok(Some(instance)) => instance.state.list()?.into_iter().map(|(_, state)| state.name()).collect(),
        Ok(None) | Err(_) => Vec::new(),
    };
    writer.remove_all()?;
    Ok(names)
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
