//! What changes depend on, in one namespace: what is pinned and attached, who listens. Changes nothing.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
};

use bridge_common::{maps::TargetKey, steer};

use super::{container::ContainerRun, prepare::Prepared};
use crate::{
    kernel::{
        Instance,
        instance::{meta, owned::Owned, pins::PinDir},
        programs::{identity, tc},
        state::State,
    },
    model::{attachment::Attachment, bridge::Interface, features::Features, listener::Listener},
    net::{links::link_by_index, listeners::tcp_listeners, namespace::Namespace, proc_fd},
    plan::{self, HeldListener, Pinned, Snapshot, TcState, show::DryRun},
    scope::Scope,
};

/// The changes a prepared attach would make.
///
/// # Errors
/// When the present state cannot be read.
pub fn dry_run(prepared: &Prepared) -> anyhow::Result<DryRun> {
    let there = before(prepared)?;
    let owner = prepared.container.as_ref().map(ContainerRun::owner);
    let wanted = prepared.intent.over(&there, owner);
    let container = prepared.container.as_ref().map(ToString::to_string);
    Ok(DryRun::new(&prepared.intent, container, plan::diff(&there, &wanted)))
}

/// What is there before a prepared attach changes it.
///
/// # Errors
/// When the present state cannot be read.
pub(crate) fn before(prepared: &Prepared) -> anyhow::Result<Snapshot> {
    let intent = &prepared.intent;
    let scope = &prepared.scope;
    let there = prepared.inside(scope.run(|| snapshot(scope, intent.features, &intent.steered)))?;
    let earlier = match &prepared.container {
        Some(container) => container.earlier(&intent.steered)?,
        None => Vec::new(),
    };
    Ok(Snapshot { earlier, ..there })
}

/// What is there. `features`: what the kernel can do, where something is to be made for `asked`.
///
/// # Errors
/// When the kernel does not tell, or the pins were written by a version with another map layout.
pub(crate) fn snapshot(
    scope: &Scope,
    features: Option<Features>,
    asked: &[Attachment],
) -> anyhow::Result<Snapshot> {
    let instance = match Instance::open(scope)? {
        Some(instance) => Some(pinned(&instance)?),
        None => None,
    };
    let mut there = Snapshot {
        dir: PinDir::of(scope).path(),
        to_mount: (!scope.roots.bpffs_mounted()).then(|| scope.roots.bpffs().to_owned()),
        features,
        instance,
        ..Snapshot::default()
    };
    if features.is_some() {
        let targets = there.attachments().chain(asked).filter_map(|state| state.target.tcp()).collect();
        let nothing = Pinned::default();
        let pinned = there.instance.as_ref().unwrap_or(&nothing);
        there.listeners = listeners(&scope.namespace, &targets, pinned)?;
    }
    Ok(there)
}

/// What is pinned for a namespace, whatever version pinned it: enough to remove all of it.
pub(crate) fn unreadable(scope: &Scope) -> Snapshot {
    let dir = PinDir::of(scope).path();
    let mut pinned = Pinned::default();
    for index in tc::attached(&dir).unwrap_or_default() {
        let interface = Interface { index, name: None };
        pinned.tc.insert(index, TcState { interface, hook: tc::hook(&dir, index), is_attached: true });
    }
    Snapshot { dir, instance: Some(pinned), ..Snapshot::default() }
}

/// What is pinned of a namespace that is gone; `None` if it was never finished.
///
/// # Errors
/// When the pins cannot be read.
pub(crate) fn of_gone(owned: &Owned) -> anyhow::Result<Snapshot> {
    let instance = match owned.state()? {
        Some(state) => Some(Pinned { is_gone: true, ..read_maps(&state)? }),
        None => None,
    };
    Ok(Snapshot { dir: owned.path(), instance, ..Snapshot::default() })
}

fn pinned(instance: &Instance) -> anyhow::Result<Pinned> {
    let dir = instance.path();
    let namespace = instance.namespace();
    let really = instance.tc_bridges()?;
    let mut on_interfaces = BTreeMap::new();
    for index in tc::attached(&dir)? {
        let name = link_by_index(namespace, index)?.map(|link| link.name);
        let state = TcState {
            interface: Interface { index, name },
            hook: tc::hook(&dir, index),
            is_attached: really.contains(&index),
        };
        on_interfaces.insert(index, state);
    }
    Ok(Pinned { tc: on_interfaces, identity: identity::attached(&dir), ..read_maps(&instance.state)? })
}

fn read_maps(state: &State) -> anyhow::Result<Pinned> {
    let listeners: Vec<_> = state
        .listeners()?
        .into_iter()
        .map(|(key, cookie)| (TargetKey::new(key.addr, key.port), cookie))
        .collect();
    let noted = state.mptcp_targets()?;
    let says = state.meta()?;
    let all = Pinned {
        is_other_build: state.is_other_build()?,
        meta: meta::read(&says),
        next_id: says.next_id,
        attachments: state.list()?,
        targets: state.targets()?,
        prepared: state.prepared(&noted)?,
        mptcp_targets: noted.into_keys().collect(),
        has_leftovers: state.has_leftovers()?,
        ..Pinned::default()
    };
    Ok(all.without_leftovers(&listeners))
}

/// The listeners that could serve one of the targets, and who holds those that can be registered and are not.
fn listeners(
    namespace: &Namespace,
    targets: &HashSet<SocketAddr>,
    pinned: &Pinned,
) -> anyhow::Result<Vec<HeldListener>> {
    let keys: HashSet<TargetKey> =
        targets.iter().flat_map(|target| steer::candidates(target.ip().into(), target.port())).collect();
    let mut found = tcp_listeners(namespace)?;
    let ports: HashSet<u16> = targets.iter().map(SocketAddr::port).collect();
    found.retain(|listener| ports.contains(&listener.addr.port()));
    // Oldest first, as they are registered.
    found.sort_by_key(|listener| listener.cookie);
    let is_open = |listener: &&Listener| {
        let is_known = if listener.mptcp {
            pinned.prepared.contains(&listener.key())
        } else {
            pinned.registered.contains(&listener.cookie)
        };
        keys.contains(&listener.key()) && !is_known
    };
    let open: HashSet<u64> = found.iter().filter(is_open).map(|listener| listener.inode).collect();
    // All processes are looked through for it.
    let owners = if open.is_empty() { HashMap::new() } else { proc_fd::owners_of(&open) };
    let with_owner = |listener: Listener| {
        let owner = owners.get(&listener.inode).map(proc_fd::Owner::to_string);
        HeldListener { listener, owner }
    };
    Ok(found.into_iter().map(with_owner).collect())
}
