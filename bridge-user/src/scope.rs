//! Where a verb works: in which network namespace, below which bpffs, and with which cgroups. Found once, and passed
//! down.
//!
//! Invariant: nothing learns these from the thread or process it runs in but [`Scope::of_this_thread`]; so a process
//! can serve many namespaces at once, each with pins of its own if it likes.

mod mounts;

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use nix::sys::statvfs::{FsFlags, statvfs};

use crate::net::namespace::Namespace;

/// Where bpffs is expected, and mounted if it is missing.
const BPFFS: &str = "/sys/fs/bpf";
/// The directory below bpffs that all namespaces' pin directories are in.
const PINS: &str = "bridge-user";
/// `BPF_FS_MAGIC`.
pub(crate) const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// The inode of the root of the cgroup v2 hierarchy. A cgroup namespace shows another cgroup as if it were the root.
const CGROUP_ROOT: u64 = 1;

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
        const MOUNTS: &str = "/proc/self/mountinfo";
        let mounts = fs::read(MOUNTS).with_context(|| format!("failed to read {MOUNTS}"))?;
        let is_root = |at: &PathBuf| fs::metadata(at).is_ok_and(|dir| dir.ino() == CGROUP_ROOT);
        let cgroup = mounts::whole(&mounts, "cgroup2").into_iter().find(is_root);
        Ok(Self { bpffs: PathBuf::from(BPFFS), cgroup })
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
            "failed to find cgroup v2: no cgroup2 file system is mounted that shows the root of the hierarchy, and \
             listeners are tracked through it: mount it with `mount -t cgroup2 none /sys/fs/cgroup/unified`, outside \
             of containers",
        )?;
        File::open(path).with_context(|| format!("failed to open cgroup v2 at {}", path.display()))
    }

    /// True when bpffs is mounted where it should be.
    pub(crate) fn bpffs_mounted(&self) -> bool {
        rustix::fs::statfs(&self.bpffs).is_ok_and(|fs| fs.f_type == BPF_FS_MAGIC)
    }

    /// True when bpffs is mounted, and nothing can be changed there.
    pub(crate) fn bpffs_is_read_only(&self) -> bool {
        self.bpffs_mounted() && statvfs(&self.bpffs).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_RDONLY))
    }

    /// Requires that pins can be made and removed.
    ///
    /// # Errors
    /// When bpffs is read-only: names who does that, and the way.
    pub(crate) fn require_writable(&self) -> anyhow::Result<()> {
        if !self.bpffs_is_read_only() {
            return Ok(());
        }
        let at = self.bpffs.display();
        bail!(
            "failed to change what is pinned: bpffs is mounted read-only at {at}, as systemd does it for a unit with \
             ProtectKernelTunables= or ReadOnlyPaths=: set ProtectKernelTunables=no in the unit (ReadWritePaths= does \
             not undo that), or run it outside of the unit, or `mount -o remount,rw {at}`"
        )
    }

    /// Requires that what is pinned stays, and others see it: that bpffs is not, and would not be, this mount
    /// namespace's own. Who may not ask is believed.
    ///
    /// # Errors
    /// When it is; names the way.
    pub(crate) fn require_shared(&self) -> anyhow::Result<()> {
        let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt"));
        let (Ok(own), Ok(first)) = (namespace("thread-self"), namespace("1")) else { return Ok(()) };
        let device = |path: &Path| fs::metadata(path).map(|dir| dir.dev());
        let theirs = Path::new("/proc/1/root").join(self.bpffs.strip_prefix("/").unwrap_or(&self.bpffs));
        let is_shared = || match (device(&self.bpffs), device(&theirs)) {
            (Ok(own), Ok(first)) => self.bpffs_mounted() && own == first,
            (_, Err(error)) => error.kind() == std::io::ErrorKind::PermissionDenied,
            (Err(_), _) => false,
        };
        if own == first || is_shared() {
            return Ok(());
        }
        let at = self.bpffs.display();
        bail!(
            "failed to find the host's bpffs: {at} is another one in this mount namespace, and what is pinned there \
             ends with it, unseen by everybody else: use the host's mount namespace (for a network namespace by name, \
             `nsenter --net=/run/netns/NAME bridge-user …` instead of `ip netns exec`; in a systemd unit, \
             BindPaths={at})"
        )
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
