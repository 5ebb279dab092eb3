//! Snapshots of the BPF objects the kernel holds, to prove that nothing leaks or is replaced.
//!
//! Invariant: the kernel frees objects asynchronously, so equality is awaited with a deadline.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};

use super::sys::{BpfKind, bpf_name, next_bpf_id};
use super::wait::{patience, until};

/// Ids of every BPF program, map and link in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KernelIds(BTreeSet<(BpfKind, u32)>);

impl KernelIds {
    /// Lists what exists now.
    pub(crate) fn take() -> Result<Self> {
        let mut found = BTreeSet::new();
        for kind in BpfKind::ALL {
            let mut last = 0;
            while let Some(id) =
                next_bpf_id(kind, last).with_context(|| format!("failed to list {kind:?}s"))?
            {
                found.insert((kind, id));
                last = id;
            }
        }
        Ok(Self(found))
    }

    /// The ids of programs called `name` that are here and not in `before`.
    pub(crate) fn new_programs(&self, before: &Self, name: &str) -> Vec<u32> {
        let new = self.0.difference(&before.0);
        let called = |id: &u32| bpf_name(BpfKind::Program, *id).as_deref() == Some(name);
        new.filter(|(kind, _)| *kind == BpfKind::Program).map(|(_, id)| *id).filter(called).collect()
    }

    /// Waits until the kernel holds exactly these objects again.
    pub(crate) fn wait_equal(&self) -> Result<()> {
        self.wait("equal to before", |now| now == self)
    }

    /// Waits until the kernel holds nothing that is not in this list.
    pub(crate) fn wait_nothing_new(&self) -> Result<()> {
        self.wait("free of new ones", |now| now.0.is_subset(&self.0))
    }

    fn wait(&self, what: &str, settled: impl Fn(&Self) -> bool) -> Result<()> {
        let mut now = Self::take()?;
        // A namespace holds its tc filters for as long as an MPTCP socket lingers there: 60 s (TCP_TIMEWAIT_LEN).
        let limit = patience(20).max(Duration::from_secs(90));
        let outcome = until("BPF objects settle", limit, || {
            now = Self::take()?;
            Ok(settled(&now).then_some(()))
        });
        outcome.with_context(|| {
            let extra: Vec<_> = now.0.difference(&self.0).map(describe).collect();
            let missing: Vec<_> = self.0.difference(&now.0).map(describe).collect();
            format!("the kernel's BPF objects are not {what}: new {extra:?}, gone {missing:?}")
        })
    }

    /// How many objects exist here that `earlier` did not hold.
    pub(crate) fn added_since(&self, earlier: &Self) -> usize {
        self.0.difference(&earlier.0).count()
    }
}

fn describe((kind, id): &(BpfKind, u32)) -> String {
    format!("{kind:?} {id} {}", bpf_name(*kind, *id).unwrap_or_default())
}
