//! The host facts attaching needs: the calling thread's network namespace, the root of cgroup v2, bpffs.

use std::{
    fs::{self, File},
    os::unix::{fs::MetadataExt as _, net::UnixDatagram},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::sys;

/// Where bpffs is expected, and mounted if it is missing.
pub const BPFFS: &str = "/sys/fs/bpf";
/// `BPF_FS_MAGIC`.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Opens the calling thread's network namespace.
///
/// # Errors
/// When /proc is not mounted.
pub fn netns() -> anyhow::Result<File> {
    File::open("/proc/thread-self/ns/net").context("failed to open this network namespace: is /proc mounted?")
}

/// The inode of the calling thread's network namespace, which names its pin directory.
///
/// # Errors
/// When /proc is not mounted.
pub fn netns_inode() -> anyhow::Result<u64> {
    Ok(netns()?.metadata()?.ino())
}

/// The cookie of the calling thread's network namespace, which is never given out twice, as its inode is. Unknown below
/// Linux 5.14.
pub fn netns_cookie() -> Option<u64> {
    sys::netns_cookie(UnixDatagram::unbound().ok()?).ok()
}

/// Opens the root of the cgroup v2 hierarchy, wherever it is mounted (`/sys/fs/cgroup`, or `…/unified` on a hybrid
/// host).
///
/// # Errors
/// When cgroup v2 is not mounted.
pub fn cgroup_root() -> anyhow::Result<File> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("failed to read /proc/self/mounts")?;
    let path = cgroup2_mount(&mounts).context(
        "failed to find cgroup v2: no cgroup2 file system is mounted, and listeners are tracked through it: mount it \
         with `mount -t cgroup2 none /sys/fs/cgroup/unified`",
    )?;
    File::open(&path).with_context(|| format!("failed to open cgroup v2 at {}", path.display()))
}

fn cgroup2_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    })
}

/// True when bpffs is mounted at [`BPFFS`].
pub fn bpffs_mounted() -> bool {
    nix::sys::statfs::statfs(BPFFS).is_ok_and(|fs| fs.filesystem_type().0 == BPF_FS_MAGIC)
}

/// Mounts bpffs at [`BPFFS`] if it is not there.
///
/// # Errors
/// When the mount fails, for example because the kernel has no bpffs.
pub fn ensure_bpffs() -> anyhow::Result<()> {
    if bpffs_mounted() {
        return Ok(());
    }
    nix::mount::mount(
        Some("bpf"),
        Path::new(BPFFS),
        Some("bpf"),
        nix::mount::MsFlags::MS_NOSUID | nix::mount::MsFlags::MS_NODEV | nix::mount::MsFlags::MS_NOEXEC,
        Some("mode=0700"),
    )
    .with_context(|| {
        format!("failed to mount bpffs at {BPFFS}: mount it with `mount -t bpf bpf {BPFFS}` and try again")
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
