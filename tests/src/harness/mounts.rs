//! Mounts of a thread's own.
//!
//! Invariant: only short-lived threads leave the machine's mounts, so those never change.

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Gives the calling thread, and those it starts, mounts of their own.
pub(crate) fn leave_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("failed to create a mount namespace")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("failed to make mounts private")
}

/// Unmounts every filesystem of a type, as seen by the calling thread.
pub(crate) fn unmount_all(kind: &str) -> Result<usize> {
    let table = std::fs::read_to_string("/proc/thread-self/mounts")?;
    let rows = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let targets: Vec<_> =
        rows.filter(|row| row.get(2) == Some(&kind)).filter_map(|row| row.get(1).copied()).collect();
    for target in targets.iter().rev() {
        umount2(*target, MntFlags::MNT_DETACH).with_context(|| format!("failed to unmount {target}"))?;
    }
    Ok(targets.len())
}
