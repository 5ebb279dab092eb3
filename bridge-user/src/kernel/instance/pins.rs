//! The pin directory of one network namespace, `/sys/fs/bpf/bridge-user/<netns inode>/`, or below another bpffs.
//!
//! Invariants: the pin of the steering link is the commit point. It is made last, when everything else is in place, and
//! removed first; a link without a pin ends with its process. So whatever moment a process is killed at, either the
//! steering link is pinned and all of the instance is there, or nothing is steered and what lies in the directory is
//! garbage, which the next verb that takes the lock removes. Pins are made and removed under the lock only.
//!
//! An instance that was attached from another namespace (`Meta::owner`; see [`super::owned`]) is kept when its
//! namespace is gone, for the owner to see. Inodes are given out again, to the next container as a rule: a directory in
//! the way of a new namespace's is then renamed to `<netns inode>-<netns cookie>`.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use bridge_common::names;
use nix::fcntl::{Flock, FlockArg};

use super::root;
use crate::{
    kernel::{
        programs::{link_name, tc},
        state::maps::{self, Origin},
        sys,
    },
    model::instance::NamespaceId,
    net::namespace::Namespace,
    scope::Scope,
};

/// The pin directory of one namespace.
#[derive(Clone)]
pub struct PinDir {
    /// What all namespaces' directories are in.
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

impl PinDir {
    /// The directory for the namespace that is served. Touches nothing.
    pub fn of(scope: &Scope) -> Self {
        Self { root: scope.roots.pins(), inode: scope.namespace.inode(), aside: None }
    }

    fn named(root: &Path, name: &str) -> Option<Self> {
        let (inode, aside) = match name.split_once('-') {
            Some((inode, cookie)) => (inode, Some(cookie.parse().ok()?)),
            None => (name, None),
        };
        Some(Self { root: root.to_owned(), inode: inode.parse().ok()?, aside })
    }

    /// The inode of the namespace it is for.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// The namespace it is for, if that exists still and a process is in it.
    pub(crate) fn namespace(&self) -> anyhow::Result<Option<Namespace>> {
        if self.aside.is_some() {
            return Ok(None);
        }
        let Some(namespace) = Namespace::find(self.inode)? else { return Ok(None) };
        // Where the kernel does not tell the cookie, or this process may not ask, the inode has to do.
        let is_it =
            self.is_alive() || namespace.cookie().is_none_or(|cookie| cookie == self.origin().netns_cookie);
        Ok(is_it.then_some(namespace))
    }

    /// What the instance says of where it comes from.
    pub(crate) fn origin(&self) -> Origin {
        maps::read_origin(&self.path())
    }

    /// Whether its namespace still exists: the kernel detaches the link of one that is gone. The inode may belong to a
    /// new namespace then.
    pub(crate) fn is_alive(&self) -> bool {
        self.aside.is_none() && link_inode(&self.commit_pin()).is_ok_and(|inode| inode == self.inode)
    }

    /// The id of the program that steers, if it is pinned here and attached to the namespace.
    pub(super) fn steering_program(&self) -> Option<u32> {
        let link = sys::obj_get(&self.commit_pin()).ok()?;
        let facts = sys::link_facts(link.as_fd()).ok()?;
        (u64::from(facts.netns_inode) == self.inode).then_some(facts.program_id)
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

    /// Removes the garbage of the namespace itself, or puts aside what one with the same inode left for its owner.
    fn make_way(&self, namespace: &Namespace) -> anyhow::Result<()> {
        let Origin { netns_cookie, owner } = self.origin();
        let is_other = namespace.cookie().is_some_and(|own| own != netns_cookie);
        if owner.is_none() || !is_other || !self.is_published()? {
            return remove_tree(&self.path(), namespace);
        }
        let aside = Self { aside: Some(netns_cookie), ..self.clone() };
        let (from, to) = (self.path(), aside.path());
        fs::rename(&from, &to)
            .with_context(|| format!("failed to rename {} to {}", from.display(), to.display()))
    }

    /// Every namespace's directory below a root.
    pub(crate) fn all(root: &Path) -> io::Result<Vec<Self>> {
        let dir = match root::open(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            dir => dir?,
        };
        let mut found = Vec::new();
        for entry in fs::read_dir(root::path_of(&dir))? {
            let entry = entry?;
            // A symbolic link is none of ours.
            if entry.file_type()?.is_dir() {
                found.extend(entry.file_name().to_str().and_then(|name| Self::named(root, name)));
            }
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

    /// Removes garbage of another namespace than `own`, as far as it can be undone and nobody is to see it any more.
    fn remove_from_outside(&self, own: &Namespace) -> anyhow::Result<()> {
        let path = self.path();
        let owner = self.origin().owner;
        if let Some(owner) = owner
            && self.is_published()?
            && (owner.is(own.id()) || may_exist(owner))
        {
            // The owner is to see it.
            return Ok(());
        }
        if !tc::has_marks(&path) {
            return remove_pins(&path);
        }
        match self.namespace() {
            // What marks stand for can be undone from there only. If this process may not go there, somebody else will.
            Ok(Some(namespace)) => {
                let _ = remove_tree(&path, &namespace);
                Ok(())
            }
            // No process is in a container's namespace once it is gone. Others may be kept by name.
            Ok(None) if owner.is_some() || self.has_ended() => remove_pins(&path),
            Ok(None) | Err(_) => Ok(()),
        }
    }

    /// Whether the namespace is gone for certain: the kernel took the steering program off
    /// (`netns_bpf_pernet_pre_exit`, kernel/bpf/net_namespace.c), and the link tells of no namespace any more.
    fn has_ended(&self) -> bool {
        link_inode(&self.commit_pin()).is_ok_and(|inode| inode == 0)
    }

    /// Makes the directory, empty. Needs the lock.
    ///
    /// # Errors
    /// When bpffs refuses, or something has the name.
    pub(super) fn create(&self, _lock: &Lock) -> anyhow::Result<()> {
        let path = self.path();
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("failed to create {}", path.display()))
    }

    /// Detaches the program that steers and removes its pin: from then on nothing is steered, and readers take the
    /// instance for that of a namespace that is gone. That it is not there is no error. Needs the lock.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn withdraw(&self, _lock: &Lock) -> anyhow::Result<()> {
        detach_and_remove(&self.commit_pin())
    }

    /// Removes the directory and the pins in it. That it is not there is no error. Needs the lock.
    ///
    /// # Errors
    /// When a pin cannot be removed; the others still are.
    pub(super) fn remove(&self, _lock: &Lock) -> anyhow::Result<()> {
        if self.path().try_exists()? { remove_pins(&self.path()) } else { Ok(()) }
    }
}

/// Detaches the program of a pinned link and removes the pin. No pin is no error.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn detach_and_remove(pin: &Path) -> anyhow::Result<()> {
    sys::detach_pinned(pin).with_context(|| format!("failed to detach {}", pin.display()))?;
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {}", pin.display()))
        }
        _ => Ok(()),
    }
}

impl Lock {
    /// Takes the lock that serialises changes below these roots, and removes what killed processes and vanished
    /// namespaces left.
    ///
    /// # Errors
    /// When bpffs is not mounted or not writable.
    pub fn take(scope: &Scope) -> anyhow::Result<Self> {
        scope.roots.require_writable()?;
        let root = scope.roots.pins();
        let lock = Self::of(&root).with_context(|| format!("failed to lock {}", root.display()))?;
        lock.remove_leftovers(scope)?;
        Ok(lock)
    }

    /// Waits until nobody changes anything below these roots.
    pub(super) fn wait(scope: &Scope) {
        if let Ok(dir) = root::open(&scope.roots.pins()) {
            // Who does not get it goes on without.
            drop(Flock::lock(dir, FlockArg::LockShared));
        }
    }

    /// Locks the root directory itself. Whoever removes the last instance removes the root too, so a lock only counts
    /// when the locked directory is still the one at the path.
    fn of(root: &Path) -> anyhow::Result<Self> {
        loop {
            root::make(root)?;
            let dir = match root::open(root) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                dir => dir?,
            };
            let dir =
                Flock::lock(dir, FlockArg::LockExclusive).map_err(|(_, errno)| io::Error::from(errno))?;
            let locked = dir.metadata()?;
            if fs::symlink_metadata(root).is_ok_and(|now| now.ino() == locked.ino()) {
                root::require_private(&locked)?;
                return Ok(Self { dir, root: root.to_owned() });
            }
        }
    }

    fn remove_leftovers(&self, scope: &Scope) -> anyhow::Result<()> {
        let own = PinDir::of(scope);
        for dir in PinDir::all(&self.root)?.into_iter().filter(PinDir::is_garbage) {
            if dir.path() == own.path() {
                own.make_way(&scope.namespace)?;
            } else {
                dir.remove_from_outside(&scope.namespace)?;
            }
        }
        Ok(())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Only succeeds when it is empty; whoever waits for the lock makes a new one.
        let _ = fs::remove_dir(&self.root);
    }
}

/// Whether a process is in the namespace, as far as this process may tell.
fn may_exist(namespace: NamespaceId) -> bool {
    match Namespace::find(namespace.inode) {
        Ok(found) => found.is_some_and(|found| namespace.is(found.id())),
        Err(_) => true,
    }
}

/// The inode of the namespace a pinned link is attached to; 0 once that is gone.
fn link_inode(pin: &Path) -> io::Result<u64> {
    Ok(sys::link_facts(sys::obj_get(pin)?.as_fd())?.netns_inode.into())
}

/// Removes a directory of pins, and what its marks stand for in its namespace.
fn remove_tree(path: &Path, namespace: &Namespace) -> anyhow::Result<()> {
    tc::sweep(namespace, path)?;
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
            let root = Path::new("/sys/fs/bpf/bridge-user");
            let dir = PinDir::named(root, name).unwrap();
            assert_eq!((dir.inode, dir.aside), (inode, aside));
            assert_eq!(dir.path(), root.join(name));
        }
        for other in ["", "-", "17-", "x", "17-x", "17-1-2"] {
            assert!(PinDir::named(Path::new("/"), other).is_none(), "{other}");
        }
    }
}
