//! What the kernel holds: the attachments of a namespace, and of the containers it attached in. Changes nothing.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    io,
};

use super::{
    checks::steering,
    readiness::{self, Snapshot},
    report::{AttachmentReport, ListenerTracking, Report},
    stages,
    surroundings::Surroundings,
};
use crate::{
    kernel::{
        Instance,
        instance::{
            hidden,
            owned::{Owned, owned},
            pins::PinDir,
        },
    },
    model::{
        JSON_VERSION,
        attachment::Attachment,
        source::{NamedContainer, Source},
    },
    net::{links::bridge_by_index, listeners::tcp_listeners, namespace::Namespace},
    scope::Scope,
};

/// How often what is there is read while others attach and detach.
const MAX_READS: usize = 5;

/// The attachments the kernel holds for the namespace, there and inside its containers, and what became of listeners in
/// the namespace itself.
///
/// # Errors
/// When the state cannot be read, or a container's namespace not be entered.
pub(crate) fn steered(scope: &Scope) -> anyhow::Result<Report> {
    let mut tries = 1..MAX_READS;
    loop {
        match read(scope) {
            Err(error) if has_vanished(&error) && tries.next().is_some() => {}
            report => return report,
        }
    }
}

/// Whether something went while it was read.
fn has_vanished(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|cause| cause.kind() == io::ErrorKind::NotFound)
}

fn read(scope: &Scope) -> anyhow::Result<Report> {
    let mut report = of_namespace(scope)?;
    for container in owned(scope)? {
        match container.scope() {
            Some(inside) => {
                let there = inside.run(|| of_namespace(&inside))?;
                report.attachments.extend(there.attachments);
                report.findings.extend(there.findings);
            }
            None => report.attachments.extend(of_gone(&container)?),
        }
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
    let beside = hidden::find(scope)?;
    report.findings = steering::beside_pins(&beside, &scope.namespace, &PinDir::of(scope).path());
    let Some(instance) = Instance::open(scope)? else { return Ok(report) };
    let state = &instance.state;
    let attachments = state.list()?;
    let listeners = tcp_listeners(&scope.namespace)?;
    let targets: Vec<_> = attachments.iter().filter_map(|(_, attachment)| attachment.target.tcp()).collect();
    let snapshot = Snapshot {
        around: Surroundings::of(&scope.namespace, &targets, &listeners)?,
        listeners,
        registered: state.listeners()?.into_iter().map(|(_, cookie)| cookie).collect(),
        tc_bridges: instance.tc_bridges()?,
        prepared: state.prepared(&state.mptcp_targets()?)?,
        ended: ended(&attachments),
    };
    let counted = stages::read(state, &attachments)?;
    let mut bridges = HashMap::new();
    for (id, attachment) in attachments {
        let bridge = match bridges.entry(attachment.ifindex) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(bridge_by_index(&scope.namespace, attachment.ifindex)?),
        };
        let stats = counted.get(&id).copied().unwrap_or_default();
        let judgement = readiness::judge(&attachment, bridge.as_ref(), &snapshot)
            .with_stopped(stages::findings(&attachment, &snapshot, &stats));
        let entry = AttachmentReport::of_steered(&attachment, &stats, &snapshot, judgement);
        report.attachments.push(entry.own_first(bridge.as_ref()));
    }
    report.listener_tracking = Some(ListenerTracking(state.track_stats()?));
    Ok(report)
}

/// The named containers whose run is over. Who may not look into other processes' namespaces finds none.
fn ended(attachments: &[(u32, Attachment)]) -> BTreeSet<u64> {
    let allowed = attachments.iter().flat_map(|(_, attachment)| &attachment.allow);
    let named: Vec<_> = allowed.filter_map(Source::container).collect();
    if named.is_empty() {
        return BTreeSet::new();
    }
    let Ok(present) = Namespace::find_all(&named.iter().map(|container| container.inode).collect()) else {
        return BTreeSet::new();
    };
    let is_there = |container: &&NamedContainer| {
        present.iter().any(|namespace| container.namespace().is(namespace.id()))
    };
    named.into_iter().filter(|one| !is_there(one)).filter_map(|container| container.cookie).collect()
}
