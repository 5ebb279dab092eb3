//! Other network namespaces: finding one by its inode, and running something inside it.
//!
//! Invariant: only a thread that ends afterwards enters another namespace; the caller's thread stays where it is. Mounts
//! and process ids stay the caller's, so bpffs, /proc and programs are found as ever.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    thread,
};

use anyhow::{Context as _, anyhow};
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
pub fn find(inode: u64) -> Option<File> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| of_process(pid).ok())
        .find(|namespace| inode_of(namespace).is_ok_and(|found| found == inode))
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
        assert_eq!(find(inode).map(|found| inode_of(&found).unwrap()), Some(inode));
        assert!(find(0).is_none());
    }
}
