//! Which targets are tracked: let the tracking program note who listens there, and forget it again.
//!
//! Invariants: an address is tracked before anybody looks for its listeners, so that none is missed; it is forgotten
//! before its listeners are removed, so that none is added meanwhile.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    os::fd::AsFd as _,
};

use anyhow::Context as _;
use bridge_common::{
    maps::{self as abi, LISTENER_SLOTS, TargetKey, listener_share},
    steer,
};

use super::{
    State,
    register::{forget_mptcp, register},
    transparent,
    write::unless_gone,
};
use crate::{kernel::sys, net::namespace::Namespace};

impl State {
    /// Lets the tracking program note who listens on these targets from now on, those that are new (`true`), and
    /// registers who does already in the namespace.
    ///
    /// # Errors
    /// When a map cannot be written, or a listener not be registered.
    pub fn track(&mut self, targets: &[(SocketAddr, bool)], namespace: &Namespace) -> anyhow::Result<()> {
        let wanted: HashSet<TargetKey> = targets.iter().flat_map(|(target, _)| keys_of(*target)).collect();
        let new: Vec<SocketAddr> =
            targets.iter().filter(|(_, is_new)| *is_new).map(|(target, _)| *target).collect();
        let result = self.write_targets(&new).and_then(|()| register(&mut self.maps, &wanted, namespace));
        if result.is_err() {
            for target in new {
                self.untrack(target, namespace)?;
            }
        }
        result
    }

    fn write_targets(&mut self, new: &[SocketAddr]) -> anyhow::Result<()> {
        let there = self.maps.targets.iter().collect::<Result<HashMap<_, _>, _>>();
        let mut shares = there.context("failed to read map TARGETS")?;
        let mut given: u32 = shares.values().sum();
        for key in new.iter().flat_map(|target| keys_of(*target)) {
            if shares.contains_key(&key) {
                continue;
            }
            let share = listener_share(given, u32::try_from(shares.len())?);
            self.maps.targets.insert(key, share, 0).context("failed to write map TARGETS")?;
            shares.insert(key, share);
            given += share;
        }
        Ok(())
    }

    /// Forgets a target and its listeners, as far as no attachment wants them.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub fn untrack(&mut self, target: SocketAddr, namespace: &Namespace) -> anyhow::Result<()> {
        let wanted = match self.wanted.take() {
            Some(wanted) => wanted,
            None => keys_of_all(&self.live()?),
        };
        let unwanted: Vec<_> = keys_of(target).into_iter().filter(|key| !wanted.contains(key)).collect();
        self.wanted = Some(wanted);
        self.forget(&unwanted, namespace)
    }

    /// Takes back that MPTCP listeners are transparent.
    ///
    /// # Errors
    /// When a listener cannot be reached, or the map not be written.
    pub fn release(&mut self, namespace: &Namespace) -> anyhow::Result<()> {
        let keys: Result<Vec<_>, _> = self.maps.mptcp_prepared.keys().collect();
        let keys = keys.context("failed to read map MPTCP_PREPARED")?;
        transparent::release(&mut self.maps, &keys, namespace)
    }

    /// Forgets addresses: first that they are tracked, then the listeners that were registered until then, and what was
    /// done to them.
    pub(super) fn forget(&mut self, keys: &[TargetKey], namespace: &Namespace) -> anyhow::Result<()> {
        for key in keys {
            unless_gone(self.maps.targets.remove(key)).context("failed to clean map TARGETS")?;
        }
        let noted = |key: &&TargetKey| self.maps.mptcp_targets.get(key, 0).is_ok();
        let mptcp: Vec<_> = keys.iter().filter(noted).copied().collect();
        forget_mptcp(&mut self.maps, &mptcp)?;
        let map = self.maps.listeners.fd().as_fd();
        for key in keys.iter().flat_map(|key| (0..LISTENER_SLOTS).map(|slot| key.slot(slot))) {
            if sys::sockhash_cookie(map, &key).is_err() {
                continue;
            }
            match sys::map_delete(map, &key) {
                // The listener closed meanwhile; the kernel removed it.
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
                    return Err(error).context("failed to clean map LISTENERS");
                }
                _ => {}
            }
        }
        transparent::release(&mut self.maps, keys, namespace)
    }
}

/// Where a listener can be bound that serves a target.
fn keys_of(target: SocketAddr) -> [TargetKey; 3] {
    steer::candidates(target.ip().into(), target.port())
}

/// The same, of every attachment's target.
pub(super) fn keys_of_all(attachments: &HashMap<u32, abi::Attachment>) -> HashSet<TargetKey> {
    attachments.values().flat_map(|one| steer::candidates(one.target, one.target_port)).collect()
}
