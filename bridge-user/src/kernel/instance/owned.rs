//! Instances of other network namespaces that one attached from outside: those of containers.
//!
//! Invariants: they are told by `Meta::owner`, the owner's namespace. What changes one happens inside its
//! namespace, by the same code as there. A namespace without a process is gone: nothing is steered there any more, and
//! nothing but pins remains of it, which stay until its attachments are made again elsewhere or detached. The lock is
//! one for all namespaces, so nothing here may be called with it held.

use std::path::PathBuf;

use anyhow::Context as _;

use super::{pins::PinDir, writer::Writer};
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
    let mine =
        dirs.into_iter().filter(|dir| dir.origin().owner.is_some_and(|owner| owner.is(scope.namespace.id())));
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

    /// Its owner's namespace and roots.
    pub fn owner(&self) -> &Scope {
        &self.owner
    }

    /// Its namespace, unless that is gone; with an instance or not.
    pub fn namespace(&self) -> Option<&Namespace> {
        self.namespace.as_ref()
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

    /// Takes the lock to remove it, or parts of it, when its namespace is gone: nothing can be made there.
    ///
    /// # Errors
    /// When the lock cannot be taken.
    pub(crate) fn write_from_outside(&self) -> anyhow::Result<Writer> {
        Writer::begin_in(&self.owner, self.dir.clone())
    }

    /// Its attachments.
    ///
    /// # Errors
    /// As [`Owned::state`].
    pub fn attachments(&self) -> anyhow::Result<Vec<Attachment>> {
        let Some(state) = self.state()? else { return Ok(Vec::new()) };
        Ok(state.list()?.into_iter().map(|(_, attachment)| attachment).collect())
    }
}
