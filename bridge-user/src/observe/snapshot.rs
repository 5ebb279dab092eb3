//! What the kernel holds: the attachments of a namespace, and of the containers it attached in. Changes nothing.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    readiness::{self, Snapshot},
    report::{AttachmentReport, ListenerTracking, Report},
};
use crate::{
    kernel::{
        Instance,
        instance::owned::{Owned, owned},
    },
    model::{JSON_VERSION, attachment::Attachment},
    net::{
        NetError,
        links::{addresses, link_by_index},
        listeners::tcp_listeners,
        namespace::Namespace,
    },
    scope::Scope,
};

/// The attachments the kernel holds for the namespace, there and inside its containers, and what became of listeners in
/// the namespace itself.
///
/// # Errors
/// When the state cannot be read, or a container's namespace not be entered.
pub(crate) fn steered(scope: &Scope) -> anyhow::Result<Report> {
    let mut report = of_namespace(scope)?;
    for container in owned(scope)? {
        report.attachments.extend(match container.scope() {
            Some(inside) => inside.run(|| of_namespace(&inside))?.attachments,
            None => of_gone(&container)?,
        });
    }
    Ok(report)
}

/// The attachments of a container that was stopped or restarted.
fn of_gone(container: &Owned) -> anyhow::Result<Vec<AttachmentReport>> {
    let Some(state) = container.state()? else { return Ok(Vec::new()) };
    let facts = Snapshot::default();
    let entry = |(id, attachment): (u32, Attachment)| {
        let judgement = readiness::container_gone(&attachment);
        Ok(AttachmentReport::of_steered(&attachment, &state.stats(id)?, &facts, judgement))
    };
    state.list()?.into_iter().map(entry).collect()
}

/// The attachments of a namespace, without those of its containers.
fn of_namespace(scope: &Scope) -> anyhow::Result<Report> {
    let mut report = Report {
        version: JSON_VERSION,
        attachments: Vec::new(),
        findings: Vec::new(),
        listener_tracking: None,
    };
    let Some(instance) = Instance::open(scope)? else { return Ok(report) };
    let state = &instance.state;
    let snapshot = Snapshot {
        listeners: tcp_listeners(&scope.namespace)?,
        registered: state.listeners()?.into_iter().map(|(_, cookie)| cookie).collect(),
        mptcp_bridges: instance.mptcp()?.bridges(),
    };
    for (id, attachment) in state.list()? {
        let there = bridge_is_there(&scope.namespace, &attachment)?;
        let judgement = readiness::judge(&attachment, there, &snapshot);
        let stats = state.stats(id)?;
        report.attachments.push(AttachmentReport::of_steered(&attachment, &stats, &snapshot, judgement));
    }
    report.listener_tracking = Some(ListenerTracking(state.track_stats()?));
    Ok(report)
}

/// Whether the interface an attachment was made for is still there, with the gateway addresses.
///
/// # Errors
/// [`NetError::Netlink`] when the interfaces cannot be read.
pub(crate) fn bridge_is_there(namespace: &Namespace, attachment: &Attachment) -> Result<bool, NetError> {
    let Some(link) = link_by_index(namespace, attachment.ifindex)? else { return Ok(false) };
    let present: BTreeSet<IpAddr> =
        addresses(namespace, link.index)?.into_iter().map(|net| net.addr()).collect();
    Ok(link.name == attachment.bridge && attachment.gateways.is_subset(&present))
}
