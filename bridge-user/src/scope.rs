//! Where a verb works: in which network namespace, below which bpffs, and with which cgroups. Found once, and passed
//! down.
//!
//! Invariant: nothing learns these from the thread or process it runs in but [`Scope::of_this_thread`]; so a process
//! can serve many namespaces at once, each with pins of its own if it likes.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::net::namespace::Namespace;

/// Where bpffs is expected, and mounted if it is missing.
const BPFFS: &str = "/sys/fs/bpf";
/// The directory below bpffs that all namespaces' pin directories are in.
const PINS: &str = "bridge-user";
/// `BPF_FS_MAGIC`.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// The network namespace that is served, and where what belongs to it is kept.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Where services listen and bridges are.
    pub namespace: Namespace,
    /// Where its programs are pinned, and which cgroup they see.
    pub roots: Roots,
}

/// The file systems that programs are pinned in and attached to.
#[derive(Clone, Debug)]
pub struct Roots {
    bpffs: PathBuf,
    /// None where cgroup v2 is not mounted.
    cgroup: Option<PathBuf>,
}

impl Scope {
    /// The calling thread's namespace, with the host's bpffs and cgroups.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn of_this_thread() -> anyhow::Result<Self> {
        Ok(Self { namespace: Namespace::current()?, roots: Roots::of_this_host()? })
    }

    /// Runs `body` on one thread in the namespace: whatever it does there needs no further one, and where the namespace
    /// cannot be entered, nothing of it is done.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or what `body` returns.
    pub(crate) fn run<T: Send>(&self, body: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        self.namespace.run(body)?
    }

    /// Requires that this process may enter the namespace, so that nothing there is begun that it cannot finish.
    ///
    /// # Errors
    /// When it may not.
    pub(crate) fn require_enterable(&self) -> anyhow::Result<()> {
        self.run(|| Ok(()))
    }

    /// The same roots for another namespace.
    pub(crate) fn inside(&self, namespace: Namespace) -> Self {
        Self { namespace, roots: self.roots.clone() }
    }
}

impl Roots {
    /// The host's: bpffs at its usual place, the root of the cgroup v2 hierarchy wherever it is mounted
    /// (`/sys/fs/cgroup`, or `…/unified` on a hybrid host).
    ///
    /// # Errors
    /// When /proc is not mounted. That cgroup v2 is not mounted is no error yet.
    pub fn of_this_host() -> anyhow::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("failed to read /proc/self/mounts")?;
        Ok(Self { bpffs: PathBuf::from(BPFFS), cgroup: cgroup2_mount(&mounts) })
    }

    /// A bpffs that is, or will be, mounted at `bpffs`, and a directory of the cgroup v2 hierarchy: only sockets of its
    /// processes, and of those below, are tracked.
    pub fn new(bpffs: impl Into<PathBuf>, cgroup: impl Into<PathBuf>) -> Self {
        Self { bpffs: bpffs.into(), cgroup: Some(cgroup.into()) }
    }

    /// Where bpffs is mounted, or would be.
    pub(crate) fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// The directory that all namespaces' pin directories are in.
    pub(crate) fn pins(&self) -> PathBuf {
        self.bpffs.join(PINS)
    }

    /// Opens the cgroup that listeners are tracked in.
    ///
    /// # Errors
    /// When cgroup v2 is not mounted.
    pub(crate) fn open_cgroup(&self) -> anyhow::Result<File> {
        let path = self.cgroup.as_ref().context(
            "failed to find cgroup v2: no cgroup2 file system is mounted, and listeners are tracked through it: mount \
             it with `mount -t cgroup2 none /sys/fs/cgroup/unified`",
        )?;
        File::open(path).with_context(|| format!("failed to open cgroup v2 at {}", path.display()))
    }

    /// True when bpffs is mounted where it should be.
    pub(crate) fn bpffs_mounted(&self) -> bool {
        nix::sys::statfs::statfs(&self.bpffs).is_ok_and(|fs| fs.filesystem_type().0 == BPF_FS_MAGIC)
    }

    /// Mounts bpffs if it is not there.
    ///
    /// # Errors
    /// When the mount fails, for example because the kernel has no bpffs.
    pub(crate) fn ensure_bpffs(&self) -> anyhow::Result<()> {
        if self.bpffs_mounted() {
            return Ok(());
        }
        let at = self.bpffs.as_path();
        nix::mount::mount(
            Some("bpf"),
            at,
            Some("bpf"),
            nix::mount::MsFlags::MS_NOSUID | nix::mount::MsFlags::MS_NODEV | nix::mount::MsFlags::MS_NOEXEC,
            Some("mode=0700"),
        )
        .with_context(|| {
            let at = at.display();
            format!("failed to mount bpffs at {at}: mount it with `mount -t bpf bpf {at}` and try again")
        })
    }
}

fn cgroup2_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_cgroup2_in_hybrid_and_unified_hosts() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(cgroup2_mount(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let unified = "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n";
        assert_eq!(cgroup2_mount(unified), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(cgroup2_mount("cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n"), None);
    }
}
