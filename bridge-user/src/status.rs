//! The `status` verb: what is attached and whether it can serve. Changes nothing.

use anyhow::anyhow;

use crate::{
    attachment::AttachmentState,
    kernel::{
        Instance,
        owned::{Owned, owned},
    },
    net::{links, listeners::tcp_listeners, netns},
    plan,
    report::{self, Entry, Facts, JSON_VERSION, ListenerTracking, Report},
    runner::control::{self, Answers},
};

/// Reports the attachments that `names` mean, or all, and which relay processes did not answer.
///
/// # Errors
/// When a name means nothing, or the state cannot be read (root is needed where bpffs is closed to others).
pub fn run(names: &[String]) -> anyhow::Result<(Report, Vec<anyhow::Error>)> {
    let Report { attachments: mut all, listener_tracking, .. } = steered()?;
    let Answers { relays, silent } = control::ask_all()?;
    all.extend(relays.into_iter().flat_map(|(_, entries)| entries));
    all.sort_by(|one, other| one.name.cmp(&other.name));
    for name in names {
        if !all.iter().any(|entry| entry.is_meant_by(name)) {
            let known = plan::known(all.iter().map(|entry| &entry.name));
            let error = anyhow!("failed to show {name}: no attachment or service has this name: {known}");
            return Err(silent.into_iter().next().unwrap_or(error));
        }
    }
    all.retain(|entry| names.is_empty() || names.iter().any(|name| entry.is_meant_by(name)));
    Ok((Report { version: JSON_VERSION, attachments: all, listener_tracking }, silent))
}

/// The attachments the kernel holds for this namespace, here and inside containers, and what became of listeners here.
///
/// # Errors
/// When the state cannot be read, or a container's namespace not be entered.
pub fn steered() -> anyhow::Result<Report> {
    let mut report = steered_here()?;
    for container in owned()? {
        report.attachments.extend(match container.namespace() {
            Some(namespace) => netns::run_in(namespace, steered_here)?.attachments,
            None => steered_before(&container)?,
        });
    }
    Ok(report)
}

/// The attachments of a container that was stopped or restarted.
fn steered_before(container: &Owned) -> anyhow::Result<Vec<Entry>> {
    let Some(state) = container.state()? else { return Ok(Vec::new()) };
    let facts = Facts::default();
    let entry = |(id, attachment): (u32, AttachmentState)| {
        let judgement = report::container_gone(&attachment);
        Ok(Entry::of_steered(&attachment, &state.stats(id)?, &facts, judgement))
    };
    state.list()?.into_iter().map(entry).collect()
}

/// The attachments the kernel holds for the calling thread's namespace.
fn steered_here() -> anyhow::Result<Report> {
    let mut report = Report { version: JSON_VERSION, attachments: Vec::new(), listener_tracking: None };
    let Some(instance) = Instance::open()? else { return Ok(report) };
    let state = &instance.state;
    let facts = Facts {
        listeners: tcp_listeners()?,
        registered: state.listeners()?.into_iter().map(|(_, cookie)| cookie).collect(),
        mptcp_bridges: instance.mptcp()?.bridges(),
    };
    for (id, attachment) in state.list()? {
        let judgement = report::judge(&attachment, links::is_there(&attachment)?, &facts);
        report.attachments.push(Entry::of_steered(&attachment, &state.stats(id)?, &facts, judgement));
    }
    report.listener_tracking = Some(ListenerTracking(state.track_stats()?));
    Ok(report)
}
