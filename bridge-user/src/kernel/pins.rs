//! The pin directory of one network namespace, `/sys/fs/bpf/bridge-user/<netns inode>/`.
//!
//! Invariants: the directory appears complete (built aside, then renamed into place) and disappears as a whole
//! (renamed away, then removed), so a kill at any moment leaves the old state or the new one. Leftovers of a killed
//! process carry `-new` or `-old` and are removed by the next verb that takes the lock. Names never contain a dot:
//! bpffs refuses them.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg};

use super::{host, sys};

/// The directory all namespaces' directories are in.
pub const ROOT: &str = "/sys/fs/bpf/bridge-user";

/// The pin directory of one namespace.
pub struct PinDir {
    root: PathBuf,
    inode: u64,
}

/// Held while state is changed; released on drop.
pub struct Lock(#[expect(dead_code, reason = "held for its Drop")] Flock<File>);

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

    fn staging(&self) -> PathBuf {
        self.root.join(format!("{}-new", self.inode))
    }

    fn retired(&self) -> PathBuf {
        self.root.join(format!("{}-old", self.inode))
    }

    /// Takes the lock that serialises changes, and removes what killed processes and vanished namespaces left.
    ///
    /// # Errors
    /// When bpffs is not mounted or not writable.
    pub fn lock(&self) -> anyhow::Result<Lock> {
        let failed = || format!("failed to lock {}", self.root.display());
        match fs::DirBuilder::new().mode(0o700).create(&self.root) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(failed);
            }
            _ => {}
        }
        let dir = File::open(&self.root).with_context(failed)?;
        let lock = Flock::lock(dir, FlockArg::LockExclusive)
            .map_err(|(_, errno)| io::Error::from(errno))
            .with_context(failed)?;
        self.remove_leftovers()?;
        Ok(Lock(lock))
    }

    fn remove_leftovers(&self) -> anyhow::Result<()> {
        for entry in fs::read_dir(&self.root)? {
            let path = entry?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let leftover = name.ends_with("-new") || name.ends_with("-old");
            if leftover || namespace_is_gone(&path, &name) {
                remove_tree(&path)?;
            }
        }
        Ok(())
    }

    /// Makes an empty staging directory; removed again on drop unless published.
    ///
    /// # Errors
    /// When bpffs refuses.
    pub fn stage(&self) -> anyhow::Result<Staging<'_>> {
        let path = self.staging();
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("failed to create {}", path.display()))?;
        Ok(Staging { dir: self, path, published: false })
    }

    /// Removes everything that is published. Nothing published is not an error.
    ///
    /// # Errors
    /// When an object cannot be removed; the rest still is.
    pub fn remove(&self) -> anyhow::Result<()> {
        let (path, retired) = (self.path(), self.retired());
        match fs::rename(&path, &retired) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result.with_context(|| format!("failed to retire {}", path.display()))?,
        }
        remove_tree(&retired)?;
        // Only succeeds when no other namespace has pins; the lock file is the directory itself.
        let _ = fs::remove_dir(&self.root);
        Ok(())
    }
}

/// A directory under construction.
pub struct Staging<'a> {
    dir: &'a PinDir,
    path: PathBuf,
    published: bool,
}

impl Staging<'_> {
    /// Where to pin.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it the namespace's directory, in one step.
    ///
    /// # Errors
    /// When the rename fails.
    pub fn publish(mut self) -> anyhow::Result<()> {
        let to = self.dir.path();
        fs::rename(&self.path, &to).with_context(|| format!("failed to publish {}", to.display()))?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        if !self.published {
            // A leftover is removed by the next verb; there is nobody to tell from here.
            let _ = remove_tree(&self.path);
        }
    }
}

/// True when `path` belongs to a namespace that no longer exists: the kernel has then detached its link.
fn namespace_is_gone(path: &Path, name: &str) -> bool {
    let Ok(inode) = name.parse::<u64>() else { return false };
    let Ok(link) = sys::obj_get(&path.join(link_name(bridge_common::names::PROG_STEER))) else {
        return false;
    };
    use std::os::fd::AsFd as _;
    sys::link_facts(link.as_fd()).is_ok_and(|facts| u64::from(facts.netns_inode) != inode)
}

/// Removes a directory of pins. Goes on after an error, and reports the first.
fn remove_tree(path: &Path) -> anyhow::Result<()> {
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
