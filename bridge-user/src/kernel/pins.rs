//! The pin directory of one network namespace, `/sys/fs/bpf/bridge-user/<netns inode>/`.
//!
//! Invariants: the pin of the steering link is the commit point. It is made last, when everything else is in place, and
//! removed first; a link without a pin ends with its process. So whatever moment a process is killed at, either the
//! steering link is pinned and all of the instance is there, or nothing is steered and what lies in the directory is
//! garbage, which the next verb that takes the lock removes. Pins are made and removed under the lock only.
//!
//! An instance that was attached from another namespace (`Meta::owner`; see [`super::owned`]) is kept when its namespace
//! is gone, for the owner to see. Inodes are given out again, to the next container as a rule: a directory in the way of a
//! new namespace's is then renamed to `<netns inode>-<netns cookie>`.

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

use super::{
    host,
    maps::{self, Origin},
    sys, tc,
};
use crate::net::netns;

/// The directory all namespaces' directories are in.
pub const ROOT: &str = "/sys/fs/bpf/bridge-user";

/// The pin directory of one namespace.
#[derive(Clone)]
pub struct PinDir {
    root: PathBuf,
    inode: u64,
    /// Its name was taken by a new namespace; the cookie of the old one is in its new name.
    aside: Option<u64>,
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
        Ok(Self::of(host::netns_inode()?, None))
    }

    fn of(inode: u64, aside: Option<u64>) -> Self {
        Self { root: PathBuf::from(ROOT), inode, aside }
    }

    fn named(name: &str) -> Option<Self> {
        let (inode, aside) = match name.split_once('-') {
            Some((inode, cookie)) => (inode, Some(cookie.parse().ok()?)),
            None => (name, None),
        };
        Some(Self::of(inode.parse().ok()?, aside))
    }

    /// The inode of the namespace it is for.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// The namespace it is for, if that exists still and a process is in it.
    pub(super) fn namespace(&self) -> anyhow::Result<Option<File>> {
        if self.aside.is_some() {
            return Ok(None);
        }
        let Some(namespace) = netns::find(self.inode)? else { return Ok(None) };
        let is_it = || match netns::run_in(&namespace, || Ok(host::netns_cookie())) {
            Ok(Some(cookie)) => cookie == self.origin().netns_cookie,
            // A kernel that does not tell, or no right to go there.
            Ok(None) | Err(_) => true,
        };
        Ok((self.is_alive() || is_it()).then_some(namespace))
    }

    /// What the instance says of where it comes from.
    pub(super) fn origin(&self) -> Origin {
        maps::read_origin(&self.path())
    }

    /// Whether its namespace still exists: the kernel detaches the link of one that is gone. The inode may belong to a
    /// new namespace then.
    pub(super) fn is_alive(&self) -> bool {
        self.aside.is_none() && link_inode(&self.commit_pin()).is_ok_and(|inode| inode == self.inode)
    }

    /// Where published objects are.
    pub fn path(&self) -> PathBuf {
        match self.aside {
            Some(cookie) => self.root.join(format!("{}-{cookie}", self.inode)),
            None => self.root.join(self.inode.to_string()),
        }
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
        for dir in Self::all()?.into_iter().filter(Self::is_garbage) {
            if dir.path() == self.path() {
                self.make_way()?;
            } else {
                dir.remove_from_outside()?;
            }
        }
        Ok(())
    }

    /// Removes this namespace's own garbage, or puts aside what a namespace with the same inode left for its owner.
    fn make_way(&self) -> anyhow::Result<()> {
        let Origin { netns_cookie, owner } = self.origin();
        let is_other = host::netns_cookie().is_some_and(|own| own != netns_cookie);
        if owner == 0 || !is_other || !self.is_published()? {
            return remove_tree(&self.path());
        }
        let (from, to) = (self.path(), Self::of(self.inode, Some(netns_cookie)).path());
        fs::rename(&from, &to)
            .with_context(|| format!("failed to rename {} to {}", from.display(), to.display()))
    }

    /// Every namespace's directory.
    pub(super) fn all() -> io::Result<Vec<Self>> {
        let entries = match fs::read_dir(ROOT) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            found.extend(entry?.file_name().to_str().and_then(Self::named));
        }
        Ok(found)
    }

    /// True for an instance that was never finished, and for one whose namespace no longer exists.
    fn is_garbage(&self) -> bool {
        match link_inode(&self.commit_pin()) {
            Ok(inode) => inode != self.inode || self.aside.is_some(),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// Removes garbage of another namespace, as far as it can be undone from here and nobody is to see it any more.
    fn remove_from_outside(&self) -> anyhow::Result<()> {
        let path = self.path();
        let owner = self.origin().owner;
        let is_seen = || owner == host::netns_inode().unwrap_or(0) || !matches!(netns::find(owner), Ok(None));
        if owner != 0 && self.is_published()? && is_seen() {
            return Ok(());
        }
        if !tc::has_marks(&path) {
            return remove_tree(&path);
        }
        match self.namespace() {
            // What marks stand for can be undone from there only. If this process may not go there, somebody else will.
            Ok(Some(namespace)) => {
                let _ = netns::run_in(&namespace, || remove_tree(&path));
                Ok(())
            }
            // No process is in a container's namespace once it is gone. Others may be kept by name.
            Ok(None) if owner != 0 || self.has_ended() => remove_pins(&path),
            Ok(None) | Err(_) => Ok(()),
        }
    }

    /// Whether the namespace is gone for certain: the kernel took the steering program off (`netns_bpf_pernet_pre_exit`,
    /// kernel/bpf/net_namespace.c), and the link tells of no namespace any more.
    fn has_ended(&self) -> bool {
        link_inode(&self.commit_pin()).is_ok_and(|inode| inode == 0)
    }

    /// Removes everything that is pinned for a namespace that is gone. Needs the lock.
    ///
    /// # Errors
    /// When a pin cannot be removed; the others still are.
    pub(super) fn forget(&self, _lock: &Lock) -> anyhow::Result<()> {
        if self.path().try_exists()? { remove_pins(&self.path()) } else { Ok(()) }
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

/// The inode of the namespace a pinned link is attached to; 0 once that is gone.
fn link_inode(pin: &Path) -> io::Result<u64> {
    Ok(sys::link_facts(sys::obj_get(pin)?.as_fd())?.netns_inode.into())
}

/// Removes a directory of pins, and what its marks stand for.
fn remove_tree(path: &Path) -> anyhow::Result<()> {
    tc::sweep(path, &BTreeSet::new())?;
    remove_pins(path)
}

/// Removes a directory of pins. Goes on after an error, and reports the first.
fn remove_pins(path: &Path) -> anyhow::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_named_after_the_inode_and_put_aside_with_the_cookie() {
        for (name, inode, aside) in
            [("4026532254", 4_026_532_254, None), ("4026532254-17", 4_026_532_254, Some(17))]
        {
            let dir = PinDir::named(name).unwrap();
            assert_eq!((dir.inode, dir.aside), (inode, aside));
            assert_eq!(dir.path(), Path::new(ROOT).join(name));
        }
        for other in ["", "-", "17-", "x", "17-x", "17-1-2"] {
            assert!(PinDir::named(other).is_none(), "{other}");
        }
    }
}
