//! Instances of other network namespaces that one attached from outside: those of containers. And detaching, in
//! whatever namespace.
//!
//! Invariants: they are told by `Meta::owner`, the inode of the owner's namespace. What changes one happens inside its
//! namespace, by the same code as there. A namespace without a process is gone: nothing is steered there any more, and
//! nothing but pins remains of it, which stay until its attachments are made again elsewhere or detached. The lock is one
//! for all namespaces, so nothing here may be called with it held.

use std::path::PathBuf;

use anyhow::Context as _;

use super::{
    Writer,
    pins::{Lock, PinDir},
};
use crate::{kernel::state::State, model::attachment::Attachment, net::namespace::Namespace, scope::Scope};

/// An instance in another namespace.
pub struct Owned {
    dir: PinDir,
    /// That of its owner.
    owner: Scope,
    /// Its namespace, unless that is gone.
    namespace: Option<Namespace>,
    /// Whether it is attached there; not if a detach was killed.
    alive: bool,
}

/// Every instance that the namespace owns, finished or not.
///
/// # Errors
/// When bpffs or other processes cannot be read, usually for lack of privileges.
pub fn owned(scope: &Scope) -> anyhow::Result<Vec<Owned>> {
    let root = scope.roots.pins();
    let dirs =
        PinDir::all(&root).with_context(|| format!("failed to read {}: root is needed", root.display()))?;
    let mine = dirs.into_iter().filter(|dir| dir.origin().owner == Some(scope.namespace.inode()));
    let open = |dir: PinDir| {
        let namespace = dir.namespace()?;
        let alive = namespace.is_some() && dir.is_alive();
        Ok(Owned { dir, owner: scope.clone(), namespace, alive })
    };
    mine.map(open).collect()
}

impl Owned {
    /// Whether it is the one in this namespace.
    pub fn is_in(&self, namespace: &Namespace) -> bool {
        self.alive && self.dir.inode() == namespace.inode()
    }

    /// Where it is pinned.
    pub fn path(&self) -> PathBuf {
        self.dir.path()
    }

    /// Its namespace with the owner's roots, unless that is gone.
    pub fn scope(&self) -> Option<Scope> {
        let namespace = self.namespace.as_ref().filter(|_| self.alive)?;
        Some(self.owner.inside(namespace.clone()))
    }

    /// What its maps hold, in whatever state its namespace is. `None` if it was never finished.
    ///
    /// # Errors
    /// When the pins cannot be read, or were written by a version with another map layout.
    pub fn state(&self) -> anyhow::Result<Option<State>> {
        if !self.dir.is_published()? {
            return Ok(None);
        }
        State::open(&self.dir.path()).map(Some)
    }

    /// Its attachments.
    ///
    /// # Errors
    /// As [`Owned::state`].
    pub fn attachments(&self) -> anyhow::Result<Vec<Attachment>> {
        let Some(state) = self.state()? else { return Ok(Vec::new()) };
        Ok(state.list()?.into_iter().map(|(_, attachment)| attachment).collect())
    }

    /// Detaches what `chosen` picks, and with the last one everything. Returns the names.
    ///
    /// # Errors
    /// When a map cannot be written or a pin not be removed.
    pub fn detach(&self, chosen: impl Fn(&Attachment) -> bool + Sync) -> anyhow::Result<Vec<String>> {
        if let Some(scope) = self.scope() {
            return scope.run(|| detach(&scope, &chosen));
        }
        let lock = Lock::take(&self.owner)?;
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
            Some(namespace) => {
                let scope = self.owner.inside(namespace.clone());
                scope.run(|| detach_all(&scope))?;
            }
            None => self.dir.forget(&Lock::take(&self.owner)?)?,
        }
        Ok(attachments.iter().map(Attachment::name).collect())
    }
}

/// Detaches what `chosen` picks in the namespace, and with the last one everything. Returns the names.
///
/// # Errors
/// When a map cannot be written or a pin not be removed.
pub fn detach(scope: &Scope, chosen: impl Fn(&Attachment) -> bool) -> anyhow::Result<Vec<String>> {
    let Some(writer) = Writer::begin_if_mounted(scope)? else { return Ok(Vec::new()) };
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

/// Detaches everything of the namespace, whatever version pinned it. Returns the names that could be
/// read.
///
/// # Errors
/// When a pin cannot be removed.
pub fn detach_all(scope: &Scope) -> anyhow::Result<Vec<String>> {
    let Some(writer) = Writer::begin_if_mounted(scope)? else { return Ok(Vec::new()) };
    // Pins of another version cannot be listed, but still removed.
    let names = match writer.open_existing() {
        Ok(Some(instance)) => instance.state.list()?.into_iter().map(|(_, state)| state.name()).collect(),
        Ok(None) | Err(_) => Vec::new(),
    };
    writer.remove_all()?;
    Ok(names)
}
