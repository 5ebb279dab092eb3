//! What is there, as far as changes depend on it. Pure data; `observe::pinned` takes it.
//!
//! Invariant: a snapshot is out of date when the lock is not held, so what is carried out comes of one that was taken
//! under the lock.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::PathBuf,
};

use bridge_common::{maps::TargetKey, steer};

use crate::model::{
    attachment::Attachment, bridge::Interface, features::Features, instance::InstanceMeta,
    listener::Listener, programs::TcHook,
};

/// What is there in one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Where the namespace's objects are pinned, or would be.
    pub dir: PathBuf,
    /// Where bpffs has to be mounted first.
    pub to_mount: Option<PathBuf>,
    /// What the kernel can do. `None` where it was not asked: then things are removed, and nothing is made or mended.
    pub features: Option<Features>,
    /// What is pinned.
    pub instance: Option<Pinned>,
    /// The listeners there are, as far as somebody wants them.
    pub listeners: Vec<HeldListener>,
    /// What earlier runs of the container left.
    pub earlier: Vec<Earlier>,
}

/// A listener and who holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldListener {
    /// The listener.
    pub listener: Listener,
    /// `redis-server (pid 812)`. `None` of a registered one, and of one that is closing.
    pub owner: Option<String>,
}

/// What is pinned for an earlier run of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Earlier {
    /// Where.
    pub dir: PathBuf,
    /// The attachments that are made again for this run.
    pub names: Vec<String>,
}

/// An instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pinned {
    /// Its namespace is gone: nothing is attached there any more.
    pub is_gone: bool,
    /// The programs are another build's.
    pub is_other_build: bool,
    /// What it says of itself.
    pub meta: InstanceMeta,
    /// The id of the next new attachment.
    pub next_id: u32,
    /// Its attachments by id.
    pub attachments: Vec<(u32, Attachment)>,
    /// The interfaces that the tc program is attached to, or that a pin says it was.
    pub tc: BTreeMap<u32, TcState>,
    /// The programs of the loopback identity that are attached.
    pub identity: BTreeSet<&'static str>,
    /// The addresses whose listeners are tracked for an attachment.
    pub targets: HashSet<TargetKey>,
    /// Those that are known to have an MPTCP listener.
    pub mptcp_targets: HashSet<TargetKey>,
    /// Those whose newest MPTCP listener is transparent.
    pub prepared: HashSet<TargetKey>,
    /// Cookies of the listeners that are registered for an attachment.
    pub registered: HashSet<u64>,
    /// Map entries without effect, which a killed process left.
    pub has_leftovers: bool,
}

/// The tc program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcState {
    /// Which.
    pub interface: Interface,
    /// How it is attached, or was.
    pub hook: TcHook,
    /// It really is: a filter, unlike a link, anybody can take off.
    pub is_attached: bool,
}

impl Pinned {
    /// The same without tracked addresses and listeners that no attachment wants, which a killed process left: they are
    /// removed before anything else is done, and to be made anew for who wants them then. `listeners`: the registered
    /// ones.
    pub fn without_leftovers(self, listeners: &[(TargetKey, u64)]) -> Self {
        let targets = self.attachments.iter().filter_map(|(_, state)| state.target.tcp());
        let wanted: HashSet<TargetKey> =
            targets.flat_map(|target| steer::candidates(target.ip().into(), target.port())).collect();
        let registered = listeners.iter().filter(|(key, _)| wanted.contains(key)).map(|(_, cookie)| *cookie);
        Self {
            targets: &self.targets & &wanted,
            mptcp_targets: &self.mptcp_targets & &wanted,
            prepared: &self.prepared & &wanted,
            registered: registered.collect(),
            ..self
        }
    }
}

impl Snapshot {
    /// The attachments.
    pub fn attachments(&self) -> impl Iterator<Item = &Attachment> {
        self.instance.iter().flat_map(|pinned| &pinned.attachments).map(|(_, attachment)| attachment)
    }
}
