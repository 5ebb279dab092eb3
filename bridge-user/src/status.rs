//! The `status` verb: what is attached and whether it can serve. Changes nothing.

use std::collections::BTreeSet;

use anyhow::bail;

use crate::{
    attachment::AttachmentState,
    datapath::Datapath,
    kernel::{Instance, state::State},
    net::{
        links::{addresses, link_by_index},
        listeners::tcp_listeners,
    },
    plan,
    report::{self, Entry, Facts, JSON_VERSION, Report},
};

/// Reports the attachments that `names` mean, or all.
///
/// # Errors
/// When a name means nothing, or the state cannot be read (root is needed where bpffs is closed to others).
pub fn run(names: &[String]) -> anyhow::Result<Report> {
    let Some(instance) = Instance::open()? else {
        if let Some(name) = names.first() {
            bail!("failed to show {name}: nothing is attached in this network namespace");
        }
        return Ok(Report { version: JSON_VERSION, attachments: Vec::new(), listener_tracking: None });
    };
    let all = instance.state.list()?;
    let mut chosen = BTreeSet::new();
    for name in names {
        let matching = plan::select(name, &all);
        if matching.is_empty() {
            let known = plan::list(all.iter().map(|(_, state)| state.name()));
            bail!("failed to show {name}: no attachment or service has this name: attached: {known}");
        }
        chosen.extend(matching.into_iter().map(|(id, _)| *id));
    }
    let shown = all.iter().filter(|(id, _)| names.is_empty() || chosen.contains(id));
    report(&instance.state, shown)
}

/// Reports these attachments of an instance.
///
/// # Errors
/// When the state cannot be read.
pub fn report<'a>(
    state: &State,
    shown: impl IntoIterator<Item = &'a (u32, AttachmentState)>,
) -> anyhow::Result<Report> {
    let facts = Facts {
        listeners: tcp_listeners()?,
        registered: state.listeners()?.into_iter().map(|(_, cookie)| cookie).collect(),
    };
    let mut attachments = Vec::new();
    for (id, attachment) in shown {
        let judgement = report::judge(attachment, bridge_is_there(attachment)?, &facts);
        attachments.push(Entry::new(attachment, Datapath::Steer, &state.stats(*id)?, judgement));
    }
    Ok(Report { version: JSON_VERSION, attachments, listener_tracking: Some(state.track_stats()?.into()) })
}

fn bridge_is_there(attachment: &AttachmentState) -> anyhow::Result<bool> {
    let Some(link) = link_by_index(attachment.ifindex)? else { return Ok(false) };
    let present: BTreeSet<_> = addresses(link.index)?.into_iter().map(|net| net.addr()).collect();
    Ok(link.name == attachment.bridge && attachment.gateways.is_subset(&present))
}
