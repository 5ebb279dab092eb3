//! Other network namespaces: finding one by its inode, and running something inside it.
//!
//! Invariant: only a thread that ends afterwards enters another namespace; the caller's thread stays where it is. Mounts
//! and process ids stay the caller's, so bpffs, /proc and programs are found as ever.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    thread,
};

use anyhow::{Context as _, anyhow, ensure};
use caps::{CapSet, Capability};
use nix::sched::{CloneFlags, setns};

/// Opens the network namespace of a process. The namespace lives at least as long as the file.
///
/// # Errors
/// When the process is gone, or may not be looked into.
pub fn of_process(pid: i32) -> anyhow::Result<File> {
    let path = format!("/proc/{pid}/ns/net");
    File::open(&path).with_context(|| {
        format!("failed to open {path}: is the process gone, or in another PID namespace than this one?")
    })
}

/// The inode that tells a namespace from the others that exist.
///
/// # Errors
/// When the file cannot be looked at.
pub fn inode_of(namespace: &File) -> anyhow::Result<u64> {
    Ok(namespace.metadata().context("failed to read a network namespace's inode")?.ino())
}

/// The namespace with this inode, if a process is in it.
///
/// # Errors
/// When it is not found, and processes of others may not be looked into.
pub fn find(inode: u64) -> anyhow::Result<Option<File>> {
    for process in fs::read_dir("/proc").context("failed to list processes: is /proc mounted?")?.flatten() {
        if process.file_name().to_str().is_none_or(|name| name.parse::<i32>().is_err()) {
            continue;
        }
        // It ended meanwhile, or the system hides it, as containers' processes are not.
        let Ok(namespace) = File::open(process.path().join("ns/net")) else { continue };
        if inode_of(&namespace)? == inode {
            return Ok(Some(namespace));
        }
    }
    ensure!(
        caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_PTRACE)?,
        "failed to look for a network namespace in every process: run as root, or with CAP_SYS_PTRACE"
    );
    Ok(None)
}

/// Runs `body` on a thread inside the namespace and waits for it.
///
/// # Errors
/// When the namespace cannot be entered, or what `body` returns.
pub fn run_in<T: Send>(
    namespace: &File,
    body: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    let enter_and_run = || {
        setns(namespace, CloneFlags::CLONE_NEWNET)
            .context("failed to enter a network namespace: run as root, or with CAP_SYS_ADMIN")?;
        body()
    };
    thread::scope(|scope| {
        scope
            .spawn(enter_and_run)
            .join()
            .map_err(|_| anyhow!("the thread in the network namespace panicked"))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_namespace_is_found_by_its_inode() {
        let own = of_process(nix::unistd::getpid().as_raw()).unwrap();
        let inode = inode_of(&own).unwrap();
        assert_eq!(find(inode).unwrap().map(|found| inode_of(&found).unwrap()), Some(inode));
        assert!(!matches!(find(0), Ok(Some(_))));
    }
}
