//! Registers listeners that were there before their attachment; later ones register themselves through sock_ops.
//!
//! Invariant: the duplicate of a service's socket lives only for the one map update. A kept duplicate would keep the
//! port busy after the service has gone, and swallow connections.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd as _, BorrowedFd},
};

use anyhow::Context as _;
use aya::maps::MapError;
use bridge_common::maps::{LISTENER_SLOTS, TargetKey, overflow_slot};

use super::maps::Maps;
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

/// Registers every listener of the namespace that some attachment wants and that is not registered
/// yet. Of MPTCP listeners, which a SOCKMAP refuses, only the address is noted, and no address that has none any more; those
/// bound to an interface are left out.
///
/// # Errors
/// When listeners cannot be listed, or one cannot be registered.
pub(super) fn register_existing(maps: &mut Maps, namespace: &Namespace) -> anyhow::Result<()> {
    let wanted: HashSet<TargetKey> =
        maps.targets.keys().collect::<Result<_, _>>().context("failed to read map TARGETS")?;
    let known: HashSet<u64> = maps.registered()?.into_iter().map(|(_, cookie)| cookie).collect();
    let mut listeners = wanted_listeners(&wanted, namespace)?;
    if remove_mptcp_except(maps, &mptcp_keys(&listeners))? {
        // One that began to listen meanwhile may have been noted in the kernel, and forgotten here.
        listeners = wanted_listeners(&wanted, namespace)?;
    }
    for key in mptcp_keys(&listeners) {
        maps.mptcp_targets.insert(key, 1, 0).context("failed to write map MPTCP_TARGETS")?;
    }
    let mut missing: Vec<(TargetKey, Listener)> = listeners
        .into_iter()
        .filter(|(_, listener)| !listener.mptcp && !known.contains(&listener.cookie))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    // Oldest first, as the kernel's own tracking would have seen them.
    missing.sort_by_key(|(_, listener)| listener.cookie);
    let owners = proc_fd::owners_of(&missing.iter().map(|(_, listener)| listener.inode).collect());
    let map = maps.listeners.fd().as_fd();
    for (key, listener) in missing {
        // A listener nobody holds any more is closing; its successor registers itself.
        let Some(owner) = owners.get(&listener.inode) else { continue };
        register_one(map, &key, &listener, owner)?;
    }
    Ok(())
}

fn wanted_listeners(
    wanted: &HashSet<TargetKey>,
    namespace: &Namespace,
) -> anyhow::Result<Vec<(TargetKey, Listener)>> {
    let all = tcp_listeners(namespace)?
        .into_iter()
        .filter(|listener| listener.device == 0)
        .map(|listener| (TargetKey::new(listener.addr.ip().into(), listener.addr.port()), listener));
    Ok(all.filter(|(key, _)| wanted.contains(key)).collect())
}

fn mptcp_keys(listeners: &[(TargetKey, Listener)]) -> HashSet<TargetKey> {
    listeners.iter().filter(|(_, listener)| listener.mptcp).map(|(key, _)| *key).collect()
}

/// Removes the addresses that had an MPTCP listener, except those in `keep`; returns whether there were any.
///
/// # Errors
/// When the map cannot be read or written.
pub(super) fn remove_mptcp_except(maps: &mut Maps, keep: &HashSet<TargetKey>) -> anyhow::Result<bool> {
    let noted: Vec<_> = maps.mptcp_targets.keys().filter_map(Result::ok).collect();
    let stale: Vec<_> = noted.into_iter().filter(|key| !keep.contains(key)).collect();
    for key in &stale {
        match maps.mptcp_targets.remove(key) {
            // A plain listener came there meanwhile, and the tracking program removed it.
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {}
            result => result.context("failed to clean map MPTCP_TARGETS")?,
        }
    }
    Ok(!stale.is_empty())
}

fn register_one(
    map: BorrowedFd<'_>,
    key: &TargetKey,
    listener: &Listener,
    owner: &proc_fd::Owner,
) -> anyhow::Result<()> {
    let socket = match proc_fd::duplicate(owner, listener.inode) {
        Ok(socket) => socket,
        // It stopped meanwhile; its successor registers itself.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(error)
                .with_context(|| format!("failed to register the listener on {}", listener.addr));
        }
    };
    insert(map, key, socket.as_fd(), listener.cookie).with_context(|| {
        format!("failed to register the listener of {} (pid {}) on {}", owner.comm, owner.pid, listener.addr)
    })?;
    Ok(())
}

fn insert(map: BorrowedFd<'_>, key: &TargetKey, socket: BorrowedFd<'_>, cookie: u64) -> io::Result<()> {
    for slot in 0..LISTENER_SLOTS {
        match sys::sockhash_insert(map, &key.slot(slot), socket, BPF_NOEXIST) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            result => return result,
        }
    }
    sys::sockhash_insert(map, &key.slot(overflow_slot(cookie)), socket, BPF_ANY)
}
