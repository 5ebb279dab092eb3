//! The pin directory of one network namespace, `/sys/fs/bpf/bridge-user/<netns inode>/`.
//!
//! Invariants: the pin of the steering link is the commit point. It is made last, when everything else is in place, and
//! removed first; a link without a pin ends with its process. So whatever moment a process is killed at, either the
//! steering link is pinned and all of the instance is there, or nothing is steered and what lies in the directory is
//! garbage, which the next verb that takes the lock removes. Pins are made and removed under the lock only.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::{
        fd::AsFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use aya::programs::links::FdLink;
use bridge_common::names;
use nix::fcntl::{Flock, FlockArg};

use super::{host, sys, tc};

/// The directory all namespaces' directories are in.
pub const ROOT: &str = "/sys/fs/bpf/bridge-user";

/// The pin directory of one namespace.
pub struct PinDir {
    root: PathBuf,
    inode: u64,
}

/// Held while state is changed; released on drop.
pub struct Lock {
    #[expect(dead_code, reason = "held for its Drop")]
    dir: Flock<File>,
    root: PathBuf,
}

/// The pin name of an attached program's link.
pub fn link_name(program: &str) -> String {
    format!("link_{program}")
}

impl PinDir {
    /// The directory for the calling thread's namespace. Touches nothing.
    ///
    /// # Errors
    /// When the namespace cannot be told.
    pub fn current() -> anyhow::Result<Self> {
        Ok(Self { root: PathBuf::from(ROOT), inode: host::netns_inode()? })
    }

    /// Where published objects are.
    pub fn path(&self) -> PathBuf {
        self.root.join(self.inode.to_string())
    }

    /// Whether an instance is published here.
    ///
    /// # Errors
    /// When bpffs cannot be read, usually for lack of privileges.
    pub fn is_published(&self) -> io::Result<bool> {
        self.commit_pin().try_exists()
    }

    /// The pin that makes an instance public.
    pub fn commit_pin(&self) -> PathBuf {
        self.path().join(link_name(names::PROG_STEER))
    }

    /// Takes the lock that serialises changes, and removes what killed processes and vanished namespaces left.
    ///
    /// # Errors
    /// When bpffs is not mounted or not writable.
    pub fn lock(&self) -> anyhow::Result<Lock> {
        let lock = self.lock_root().with_context(|| format!("failed to lock {}", self.root.display()))?;
        self.remove_leftovers()?;
        Ok(lock)
    }

    /// Locks the root directory itself. Whoever removes the last instance removes the root too, so a lock only counts
    /// when the locked directory is still the one at the path.
    fn lock_root(&self) -> anyhow::Result<Lock> {
        loop {
            match fs::DirBuilder::new().mode(0o700).create(&self.root) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
                _ => {}
            }
            let dir = match File::open(&self.root) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                dir => dir?,
            };
            let dir =
                Flock::lock(dir, FlockArg::LockExclusive).map_err(|(_, errno)| io::Error::from(errno))?;
            let locked = dir.metadata()?;
            if fs::metadata(&self.root).is_ok_and(|now| now.ino() == locked.ino()) {
                require_private(&locked)?;
                return Ok(Lock { dir, root: self.root.clone() });
            }
        }
    }

    fn remove_leftovers(&self) -> anyhow::Result<()> {
        for entry in fs::read_dir(&self.root)? {
            let path = entry?.path();
            let ours = path == self.path();
            // What other namespaces' marks stand for can be undone from there only.
            if is_garbage(&path) && (ours || !tc::has_marks(&path)) {
                remove_tree(&path)?;
            }
        }
        Ok(())
    }

    /// Makes the directory, empty; it is removed again on drop unless published. Needs the lock.
    ///
    /// # Errors
    /// When bpffs refuses.
    pub fn build(&self, _lock: &Lock) -> anyhow::Result<Building> {
        let path = self.path();
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("failed to create {}", path.display()))?;
        Ok(Building { path, published: false })
    }

    /// Removes everything that is published. Nothing published is not an error. Needs the lock.
    ///
    /// # Errors
    /// When an object cannot be removed; the rest still is.
    pub fn remove(&self, _lock: &Lock) -> anyhow::Result<()> {
        let commit = self.commit_pin();
        // From here on nothing is steered, and readers take the instance for that of a namespace that is gone.
        sys::detach_pinned(&commit).with_context(|| format!("failed to detach {}", commit.display()))?;
        match fs::remove_file(&commit) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("failed to remove {}", commit.display()));
            }
            _ => {}
        }
        if self.path().try_exists()? { remove_tree(&self.path()) } else { Ok(()) }
    }
}

/// A directory under construction.
pub struct Building {
    path: PathBuf,
    published: bool,
}

impl Building {
    /// Where to pin.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the instance public by pinning the steering link, in one step.
    ///
    /// # Errors
    /// When the pin fails.
    pub fn publish(mut self, steering: FdLink) -> anyhow::Result<()> {
        let path = self.path.join(link_name(names::PROG_STEER));
        steering.pin(&path).with_context(|| format!("failed to pin {}", path.display()))?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        if !self.published {
            // A leftover is removed by the next verb; there is nobody to tell from here.
            let _ = remove_tree(&self.path);
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Only succeeds when it is empty; whoever waits for the lock makes a new one.
        let _ = fs::remove_dir(&self.root);
    }
}

/// On a bpffs that everybody may write to, somebody else could have made the directory and could swap what is in it.
fn require_private(root: &fs::Metadata) -> anyhow::Result<()> {
    let ours = nix::unistd::geteuid().as_raw();
    ensure!(
        root.uid() == ours && root.mode() & 0o022 == 0,
        "it belongs to user {} with mode {:o}, expected user {ours} and nobody else to write: remove it, and mount bpffs \
         with mode=0700",
        root.uid(),
        root.mode() & 0o7777
    );
    Ok(())
}

/// True for an instance that was never finished, and for one whose namespace no longer exists: the kernel has then
/// detached its link.
fn is_garbage(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy());
    let Some(inode) = name.and_then(|name| name.parse::<u64>().ok()) else { return false };
    match sys::obj_get(&path.join(link_name(names::PROG_STEER))) {
        Ok(link) => sys::link_facts(link.as_fd()).is_ok_and(|facts| u64::from(facts.netns_inode) != inode),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Removes a directory of pins, and what its marks stand for. Goes on after an error, and reports the first.
fn remove_tree(path: &Path) -> anyhow::Result<()> {
    tc::sweep(path, &BTreeSet::new())?;
    let mut first_error = None;
    for entry in fs::read_dir(path).with_context(|| format!("failed to read {}", path.display()))? {
        let file = entry?.path();
        if let Err(error) = fs::remove_file(&file) {
            first_error.get_or_insert((file, error));
        }
    }
    match first_error {
        Some((file, error)) => Err(error).with_context(|| format!("failed to remove {}", file.display())),
        None => fs::remove_dir(path).with_context(|| format!("failed to remove {}", path.display())),
    }
}
