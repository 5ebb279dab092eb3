//! Registers listeners that were there before their attachment; later ones register themselves through sock_ops.
//!
//! Invariant: the duplicate of a service's socket lives only for the one map update. A kept duplicate would keep the
//! port busy after the service has gone, and swallow connections.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::{AsFd as _, BorrowedFd},
};

use anyhow::Context as _;
use bridge_common::maps::{LISTENER_SLOTS, TargetKey, overflow_slot};

use super::{maps::Maps, transparent, write::unless_gone};
use crate::{
    kernel::sys,
    net::{
        listeners::{Listener, tcp_listeners},
        namespace::Namespace,
        proc_fd,
    },
};

/// `BPF_ANY`.
const BPF_ANY: u64 = 0;
/// `BPF_NOEXIST`.
const BPF_NOEXIST: u64 = 1;

/// Registers every listener of the namespace that is bound to one of these addresses and is not registered yet. MPTCP
/// listeners, which a SOCKMAP refuses, are noted by address and cookie, and made transparent; an address that has none
/// any more is forgotten. Those bound to an interface are left out.
///
/// # Errors
/// When listeners cannot be listed, or one cannot be registered.
pub(super) fn register(
    maps: &mut Maps,
    wanted: &HashSet<TargetKey>,
    namespace: &Namespace,
) -> anyhow::Result<()> {
    let known: HashSet<u64> = maps.registered()?.into_iter().map(|(_, cookie)| cookie).collect();
    let mut listeners = wanted_listeners(wanted, namespace)?;
    let mut noted = noted(maps, wanted)?;
    let keys = mptcp_keys(&listeners);
    let stale: Vec<_> = noted.keys().filter(|key| !keys.contains(key)).copied().collect();
    if !stale.is_empty() {
        forget_mptcp(maps, &stale)?;
        // One that began to listen meanwhile may have been noted in the kernel, and forgotten here.
        listeners = wanted_listeners(wanted, namespace)?;
        noted.retain(|key, _| !stale.contains(key));
    }
    note_mptcp(maps, &listeners, noted)?;
    let mut missing: Vec<Listener> = listeners
        .into_iter()
        .filter(|listener| !listener.mptcp && !known.contains(&listener.cookie))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    // Oldest first, as the kernel's own tracking would have seen them.
    missing.sort_by_key(|listener| listener.cookie);
    let owners = proc_fd::owners_of(&missing.iter().map(|listener| listener.inode).collect());
    for listener in missing {
        // A listener nobody holds any more is closing; its successor registers itself.
        let Some(owner) = owners.get(&listener.inode) else { continue };
        register_one(maps, &listener.key(), &listener, owner)?;
    }
    Ok(())
}

fn wanted_listeners(wanted: &HashSet<TargetKey>, namespace: &Namespace) -> anyhow::Result<Vec<Listener>> {
    let mut listeners = tcp_listeners(namespace)?;
    listeners.retain(|listener| listener.device == 0 && wanted.contains(&listener.key()));
    Ok(listeners)
}

/// Notes which MPTCP listener is the newest on its address, and makes all of them transparent. One that begins to
/// listen meanwhile is noted in the kernel, as newer than those that were made transparent.
fn note_mptcp(
    maps: &mut Maps,
    listeners: &[Listener],
    mut noted: HashMap<TargetKey, u64>,
) -> anyhow::Result<()> {
    let mptcp: Vec<Listener> = listeners.iter().filter(|listener| listener.mptcp).cloned().collect();
    for listener in &mptcp {
        let key = listener.key();
        let is_there = |cookie: &u64| mptcp.iter().any(|one| one.key() == key && one.cookie == *cookie);
        if !noted.get(&key).is_some_and(is_there) {
            maps.mptcp_targets
                .insert(key, listener.cookie, 0)
                .context("failed to write map MPTCP_TARGETS")?;
            noted.insert(key, listener.cookie);
        }
    }
    // The one that is noted comes last: its note says that all of its address are done.
    let (newest, others): (Vec<_>, Vec<_>) =
        mptcp.into_iter().partition(|listener| noted.get(&listener.key()) == Some(&listener.cookie));
    transparent::prepare(maps, &[others, newest].concat())
}

fn mptcp_keys(listeners: &[Listener]) -> HashSet<TargetKey> {
    listeners.iter().filter(|listener| listener.mptcp).map(Listener::key).collect()
}

/// Those of the wanted addresses that are noted to have an MPTCP listener, with the newest one's cookie.
fn noted(maps: &Maps, wanted: &HashSet<TargetKey>) -> anyhow::Result<HashMap<TargetKey, u64>> {
    let mut found = HashMap::new();
    for entry in maps.mptcp_targets.iter() {
        let (key, cookie) = entry.context("failed to read map MPTCP_TARGETS")?;
        found.extend(wanted.contains(&key).then_some((key, cookie)));
    }
    Ok(found)
}

/// Forgets that addresses had an MPTCP listener.
///
/// # Errors
/// When the map cannot be written.
pub(super) fn forget_mptcp(maps: &mut Maps, stale: &[TargetKey]) -> anyhow::Result<()> {
    for key in stale {
        // A plain listener may have come there meanwhile: then the tracking program removed it.
        unless_gone(maps.mptcp_targets.remove(key)).context("failed to clean map MPTCP_TARGETS")?;
    }
    Ok(())
}

/// Whether a listener stopped meanwhile; its successor registers itself.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

fn register_one(
    maps: &Maps,
    key: &TargetKey,
    listener: &Listener,
    owner: &proc_fd::Owner,
) -> anyhow::Result<()> {
    let socket = match proc_fd::duplicate(owner, listener.cookie) {
        Ok(socket) => socket,
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => {
            return Err(error)
                .with_context(|| format!("failed to register the listener on {}", listener.addr));
        }
    };
    let slots = maps.targets.get(key, 0).context("failed to read map TARGETS")?;
    let map = maps.listeners.fd().as_fd();
    insert(map, key, slots, socket.as_fd(), listener.cookie).with_context(|| {
        format!("failed to register the listener of {} (pid {}) on {}", owner.comm, owner.pid, listener.addr)
    })?;
    Ok(())
}

fn insert(
    map: BorrowedFd<'_>,
    key: &TargetKey,
    slots: u32,
    socket: BorrowedFd<'_>,
    cookie: u64,
) -> io::Result<()> {
    for slot in (0..LISTENER_SLOTS).take_while(|slot| u32::from(*slot) < slots) {
        match sys::sockhash_insert(map, &key.slot(slot), socket, BPF_NOEXIST) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            result => return result,
        }
    }
    sys::sockhash_insert(map, &key.slot(overflow_slot(cookie, slots)), socket, BPF_ANY)
}
