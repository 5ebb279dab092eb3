//! The check after every trial: no child process, no pin directory and no BPF object may remain.
//!
//! Invariants: looks only at children of this process and at pin directories, of whatever namespace,
//! that were not there before the trial. Nothing else may load BPF objects or run bridge-user while
//! the suite runs; waiting for the objects also lets the next trial start from a settled list.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::kernel_ids::KernelIds;
use super::netns::pin_directories;

/// What existed before a trial.
pub(crate) struct Before {
    ids: KernelIds,
    pins: BTreeSet<PathBuf>,
}

impl Before {
    /// Looks around before a trial starts.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { ids: KernelIds::take()?, pins: pin_directories()? })
    }

    /// Fails when the trial that just ended left a process, a pin or a BPF object.
    pub(crate) fn check(&self) -> Result<()> {
        let pins = pin_directories()?;
        let remaining: Vec<_> = pins.difference(&self.pins).collect();
        let children = children()?;
        ensure!(children.is_empty(), "child processes {children:?}");
        ensure!(remaining.is_empty(), "pins {remaining:?}");
        self.ids.wait_nothing_new()
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
