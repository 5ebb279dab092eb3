//! One network namespace's set of pinned objects: finding, reading and changing it.

pub mod hidden;
pub mod meta;
pub mod owned;
pub mod pins;
mod root;
pub mod writer;

use std::{collections::BTreeSet, os::fd::AsFd as _, path::PathBuf};

use anyhow::Context as _;

use self::pins::PinDir;
use super::{
    programs::{identity, tc},
    state::State,
    sys,
};
use crate::{net::namespace::Namespace, scope::Scope};

/// An opened instance.
pub struct Instance {
    namespace: Namespace,
    dir: PinDir,
    /// Its attachments.
    pub state: State,
}

impl Instance {
    /// Opens the namespace's instance, if there is one.
    ///
    /// # Errors
    /// When the pins cannot be read, or were written by a version with another map layout.
    pub fn open(scope: &Scope) -> anyhow::Result<Option<Self>> {
        let dir = PinDir::of(scope);
        let pin = dir.commit_pin();
        let closed = || {
            format!("failed to read {}: root, or CAP_DAC_READ_SEARCH and CAP_BPF, is needed", pin.display())
        };
        if !dir.is_published().with_context(closed)? {
            return Ok(None);
        }
        // A directory named after this namespace's inode may be left from a namespace that is gone.
        let link = sys::obj_get(&pin).with_context(closed)?;
        if u64::from(sys::link_facts(link.as_fd())?.netns_inode) != scope.namespace.inode() {
            return Ok(None);
        }
        match State::open(&dir.path()) {
            // Its last attachment was detached meanwhile.
            Err(_) if !dir.is_published().with_context(closed)? => Ok(None),
            state => Ok(Some(Self { namespace: scope.namespace.clone(), dir, state: state? })),
        }
    }

    /// The interfaces with the program that counts what arrives, and steers to MPTCP listeners, as far as nobody took
    /// it off.
    ///
    /// # Errors
    /// When the pins cannot be read, or the kernel not be asked.
    pub fn tc_bridges(&self) -> anyhow::Result<BTreeSet<u32>> {
        let path = self.dir.path();
        let marked = tc::attached(&path).with_context(|| format!("failed to read {}", path.display()))?;
        let mut attached = BTreeSet::new();
        for ifindex in marked {
            if tc::is_attached(&self.namespace, &path, ifindex)? {
                attached.insert(ifindex);
            }
        }
        Ok(attached)
    }

    /// Where it is pinned.
    pub fn path(&self) -> PathBuf {
        self.dir.path()
    }

    /// The namespace it is of.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Whether services can be shown local clients.
    pub fn tells_identities(&self) -> bool {
        identity::is_attached(&self.dir.path())
    }

    /// Id of the program that steers.
    ///
    /// # Errors
    /// When the pinned link cannot be read.
    pub fn steer_program_id(&self) -> anyhow::Result<u32> {
        let path = self.dir.commit_pin();
        let link = sys::obj_get(&path).with_context(|| format!("failed to open {}", path.display()))?;
        Ok(sys::link_facts(link.as_fd())?.program_id)
    }
}
