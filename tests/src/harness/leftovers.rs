//! The check after every trial: no child process, no pin directory and no BPF object may remain.
//!
//! Invariants: looks only at children of this process and at pin directories of namespaces this
//! suite made. BPF objects cannot be told apart by owner, so nothing else may load any while the
//! suite runs; waiting for them also lets the next trial start from a settled list.

use std::sync::{Mutex, PoisonError};

use anyhow::{Result, ensure};

use super::kernel_ids::KernelIds;
use super::netns::pin_traces;

static INODES: Mutex<Vec<u64>> = Mutex::new(Vec::new());

/// Remembers a namespace of the current trial, whose pins are to be gone in the end.
pub(crate) fn watch_pins(inode: u64) {
    INODES.lock().unwrap_or_else(PoisonError::into_inner).push(inode);
}

/// What existed before a trial.
pub(crate) struct Before(KernelIds);

impl Before {
    /// Looks around before a trial starts.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(KernelIds::take()?))
    }

    /// Fails when the trial that just ended left a process, a pin or a BPF object.
    pub(crate) fn check(&self) -> Result<()> {
        let inodes = std::mem::take(&mut *INODES.lock().unwrap_or_else(PoisonError::into_inner));
        let mut remaining = Vec::new();
        for inode in inodes {
            remaining.extend(pin_traces(inode)?);
        }
        let children = children()?;
        ensure!(children.is_empty(), "child processes {children:?}");
        ensure!(remaining.is_empty(), "pins {remaining:?}");
        self.0.wait_nothing_new()
    }
}

fn children() -> Result<Vec<String>> {
    let me = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        // Processes end while the list is read; one without a stat file is gone.
        let Ok(stat) = std::fs::read_to_string(entry?.path().join("stat")) else { continue };
        let Some((head, tail)) = stat.rsplit_once(')') else { continue };
        if tail.split_whitespace().nth(1) == Some(me.as_str()) {
            found.push(format!("{head})"));
        }
    }
    Ok(found)
}
