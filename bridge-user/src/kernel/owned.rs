//! Instances of other network namespaces that this one attached from outside: those of containers.
//!
//! Invariants: they are told by `Meta::owner`, the inode of this namespace. What changes one happens inside its
//! namespace, by the same code as here. A namespace without a process is gone: nothing is steered there any more, and
//! nothing but pins remains of it, which stay until its attachments are made again elsewhere or detached. The lock is one
//! for all namespaces, so nothing here may be called with it held.

use std::{fs::File, path::PathBuf};

use anyhow::Context as _;

use super::{
    host,
    instance::{Instance, Writer},
    pins::{PinDir, ROOT},
    state::State,
};
use crate::{attachment::AttachmentState, net::netns};

/// An instance in another namespace.
pub struct Owned {
    dir: PinDir,
    /// Its namespace, unless that is gone.
    namespace: Option<File>,
    /// Whether it is attached there; not if a detach was killed.
    alive: bool,
}

/// Every instance that this namespace owns, finished or not.
///
/// # Errors
/// When bpffs or other processes cannot be read, usually for lack of privileges.
pub fn owned() -> anyhow::Result<Vec<Owned>> {
    let own = host::netns_inode()?;
    let dirs = PinDir::all().with_context(|| format!("failed to read {ROOT}: root is needed"))?;
    let mine = dirs.into_iter().filter(|dir| dir.origin().owner == own);
    let open = |dir: PinDir| {
        let namespace = dir.namespace()?;
        Ok(Owned { alive: namespace.is_some() && dir.is_alive(), dir, namespace })
    };
    mine.map(open).collect()
}

impl Owned {
    /// Whether it is the one in the namespace with this inode.
    pub fn is_in(&self, inode: u64) -> bool {
        self.alive && self.dir.inode() == inode
    }

    /// Where it is pinned.
    pub fn path(&self) -> PathBuf {
        self.dir.path()
    }

    /// Its namespace, unless that is gone.
    pub fn namespace(&self) -> Option<&File> {
        self.namespace.as_ref().filter(|_| self.alive)
    }

    /// What its maps hold, in whatever state its namespace is. `None` if it was never finished.
    ///
    /// # Errors
    /// When the pins cannot be read, or were written by a version with another map layout.
    pub fn state(&self) -> anyhow::Result<Option<State>> {
        if !self.dir.is_published()? {
            return Ok(None);
        }
        Ok(Some(Instance::from_pins(self.dir.clone())?.state))
    }

    /// Its attachments.
    ///
    /// # Errors
    /// As [`Owned::state`].
    pub fn attachments(&self) -> anyhow::Result<Vec<AttachmentState>> {
        let Some(state) = self.state()? else { return Ok(Vec::new()) };
        Ok(state.list()?.into_iter().map(|(_, attachment)| attachment).collect())
    }

    /// Detaches what `chosen` picks, and with the last one everything. Returns the names.
    ///
    /// # Errors
    /// When a map cannot be written or a pin not be removed.
    pub fn detach(&self, chosen: impl Fn(&AttachmentState) -> bool + Sync) -> anyhow::Result<Vec<String>> {
        if let Some(namespace) = self.namespace() {
            return netns::run_in(namespace, || detach_here(&chosen));
        }
        let lock = PinDir::current()?.lock()?;
        let Some(mut state) = self.state()? else { return Ok(Vec::new()) };
        let all = state.list()?;
        let chosen: Vec<_> = all.iter().filter(|(_, attachment)| chosen(attachment)).collect();
        if chosen.len() == all.len() {
            drop(lock);
            return self.detach_all();
        }
        for (id, _) in &chosen {
            state.remove(*id)?;
        }
        Ok(chosen.into_iter().map(|(_, attachment)| attachment.name()).collect())
    }

    /// Detaches everything, whatever version pinned it. Returns the names that could be read.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn detach_all(&self) -> anyhow::Result<Vec<String>> {
        let attachments = self.attachments().unwrap_or_default();
        match &self.namespace {
            Some(namespace) => drop(netns::run_in(namespace, detach_all_here)?),
            None => self.dir.forget(&PinDir::current()?.lock()?)?,
        }
        Ok(attachments.iter().map(AttachmentState::name).collect())
    }
}

/// Detaches what `chosen` picks in the calling thread's namespace, and with the last one everything. Returns the names.
///
/// # Errors
/// When a map cannot be written or a pin not be removed.
pub fn detach_here(chosen: impl Fn(&AttachmentState) -> bool) -> anyhow::Result<Vec<String>> {
    let Some(writer) = Writer::begin_if_mounted()? else { return Ok(Vec::new()) };
    let Some(mut instance) = writer.open_existing()? else { return Ok(Vec::new()) };
    let all = instance.state.list()?;
    let chosen: Vec<_> = all.iter().filter(|(_, attachment)| chosen(attachment)).collect();
    if chosen.len() == all.len() {
        writer.remove_all()?;
    } else {
        for (id, _) in &chosen {
            instance.remove(*id)?;
        }
    }
    Ok(chosen.into_iter().map(|(_, attachment)| attachment.name()).collect())
}

/// Detaches everything of the calling thread's namespace, whatever version pinned it. Returns the names that could be
/// read.
///
/// # Errors
/// When a pin cannot be removed.
pub fn detach_all_here() -> anyhow::Result<Vec<String>> {
    let Some(writer) = Writer::begin_if_mounted()? else { return Ok(Vec::new()) };
    // Pins of another version cannot be listed, but still removed.
    let names = match writer.open_existing() {
        Ok(Some(instance)) => instance.state.list()?.into_iter().map(|(_, state)| state.name()).collect(),
        Ok(None) | Err(_) => Vec::new(),
    };
    writer.remove_all()?;
    Ok(names)
}
