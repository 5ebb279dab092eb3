//! The `status` verb: what is attached and whether it can serve. Changes nothing.

use anyhow::bail;

use crate::{
    kernel::Instance,
    net::{links, listeners::tcp_listeners},
    plan,
    report::{self, Entry, Facts, JSON_VERSION, Report},
    runner::control::{self, Ask},
};

/// Reports the attachments that `names` mean, or all.
///
/// # Errors
/// When a name means nothing, or the state cannot be read (root is needed where bpffs is closed to others).
pub fn run(names: &[String]) -> anyhow::Result<Report> {
    let Report { attachments: mut all, listener_tracking, .. } = steered()?;
    all.extend(relayed()?);
    all.sort_by(|one, other| one.name.cmp(&other.name));
    for name in names {
        if !all.iter().any(|entry| entry.is_meant_by(name)) {
            let known = plan::known(all.iter().map(|entry| &entry.name));
            bail!("failed to show {name}: no attachment or service has this name: {known}");
        }
    }
    all.retain(|entry| names.is_empty() || names.iter().any(|name| entry.is_meant_by(name)));
    Ok(Report { version: JSON_VERSION, attachments: all, listener_tracking })
}

/// The attachments the kernel holds, and what became of listeners.
///
/// # Errors
/// When the state cannot be read.
pub fn steered() -> anyhow::Result<Report> {
    let mut report = Report { version: JSON_VERSION, attachments: Vec::new(), listener_tracking: None };
    let Some(instance) = Instance::open()? else { return Ok(report) };
    let state = &instance.state;
    let facts = Facts {
        listeners: tcp_listeners()?,
        registered: state.listeners()?.into_iter().map(|(_, cookie)| cookie).collect(),
        mptcp_bridges: instance.mptcp_bridges()?,
    };
    for (id, attachment) in state.list()? {
        let judgement = report::judge(&attachment, links::is_there(&attachment)?, &facts);
        report.attachments.push(Entry::of_steered(&attachment, &state.stats(id)?, &facts, judgement));
    }
    report.listener_tracking = Some(state.track_stats()?.into());
    Ok(report)
}

/// The attachments of the relay processes in this network namespace.
fn relayed() -> anyhow::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for peer in control::peers()? {
        entries.extend(peer.ask(&Ask::Status)?.map(|answer| answer.entries).unwrap_or_default());
    }
    Ok(entries)
}
