//! What the demo could leave behind, and the proof that it does not.
//!
//! Invariant: other programs may load BPF objects meanwhile, so only objects that bear bridge-user's names count.
//! Links have no names; each keeps its program alive, which has one.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use bridge_common::names;

use crate::harness::netns::{Netns, pin_traces};
use crate::harness::sys::{BpfKind, bpf_name, next_bpf_id};
use crate::harness::topology::Topology;
use crate::harness::wait::{patience, until};

/// What the kernel held before the demo.
pub(super) struct Traces {
    objects: BTreeSet<(BpfKind, u32)>,
}

impl Traces {
    /// Looks around before anything is made.
    pub(super) fn before() -> Result<Self> {
        Ok(Self { objects: objects()? })
    }

    /// Waits until no object is new, as the kernel frees them a little later; returns how many there are.
    pub(super) fn objects_as_before(&self) -> Result<usize> {
        until("bridge-user's programs and maps are gone from the kernel", patience(10), || {
            Ok(objects()?.is_subset(&self.objects).then_some(()))
        })?;
        Ok(self.objects.len())
    }
}

/// Programs and maps with a name of ours.
fn objects() -> Result<BTreeSet<(BpfKind, u32)>> {
    let mut found = BTreeSet::new();
    let kinds: [(_, &[&str]); 2] =
        [(BpfKind::Program, &names::ALL_PROGRAMS), (BpfKind::Map, &names::ALL_MAPS)];
    for (kind, ours) in kinds {
        let mut last = 0;
        while let Some(id) = next_bpf_id(kind, last).with_context(|| format!("failed to list {kind:?}s"))? {
            if bpf_name(kind, id).is_some_and(|name| ours.contains(&name.as_str())) {
                found.insert((kind, id));
            }
            last = id;
        }
    }
    Ok(found)
}

/// Inodes of every namespace of a topology.
pub(super) fn namespaces(net: &Topology) -> Vec<u64> {
    [&net.host, &net.a1, &net.a2, &net.b1, &net.outside].map(Netns::inode).to_vec()
}

/// Fails if a pin of one of these namespaces, a process in it or an open descriptor of it is left.
pub(super) fn gone(inodes: &[u64]) -> Result<()> {
    for &inode in inodes {
        let pins = pin_traces(inode)?;
        ensure!(pins.is_empty(), "pins are left: {pins:?}");
    }
    until("no process is in a namespace of the demo", patience(5), || {
        let occupied = occupied()?;
        Ok(inodes.iter().all(|inode| !occupied.contains(inode)).then_some(()))
    })
}

/// Network namespaces some process is in, and those this process holds open.
fn occupied() -> Result<BTreeSet<u64>> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir("/proc")? {
        // Processes end while the list is read.
        if let Ok(namespace) = std::fs::metadata(entry?.path().join("ns/net")) {
            found.insert(namespace.ino());
        }
    }
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Ok(target) = std::fs::read_link(entry?.path()) else { continue };
        let target = target.to_string_lossy();
        let inode = target.strip_prefix("net:[").and_then(|rest| rest.strip_suffix(']'));
        found.extend(inode.and_then(|inode| inode.parse::<u64>().ok()));
    }
    Ok(found)
}
