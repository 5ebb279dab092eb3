//! The directory that all pin directories are in, opened so that it is the one it seems to be.
//!
//! Invariants: no symbolic link is followed; what is opened is a directory of a bpffs. Under the lock nobody else can
//! put another directory in its place, or anything into it: neither is writable by others, or the sticky bit keeps them
//! from renaming. So a path below it means the same thing until the lock is released.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use rustix::fs::fstatfs;

use crate::scope::BPF_FS_MAGIC;

/// Makes the directory, unless it is there, in a bpffs that nobody else can change.
///
/// # Errors
/// When the kernel refuses, or others may put something else in its place.
pub(super) fn make(root: &Path) -> anyhow::Result<()> {
    let bpffs = root.parent().context("it has no directory above it")?;
    let above = open(bpffs).with_context(|| format!("failed to open bpffs at {}", bpffs.display()))?;
    require_unchangeable(bpffs, &above.metadata()?)?;
    match fs::DirBuilder::new().mode(0o700).create(root) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error.into()),
        _ => Ok(()),
    }
}

/// Opens a directory of a bpffs.
///
/// # Errors
/// When it is a symbolic link, no directory, or of another file system.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let dir = opened.map_err(|error| match error.raw_os_error() {
        Some(libc::ENOTDIR | libc::ELOOP) => {
            io::Error::other(
                "it is no directory, or a symbolic link, which somebody made: see what it is (ls -l), and remove it",
            )
        }
        _ => error,
    })?;
    if fstatfs(&dir)?.f_type == BPF_FS_MAGIC {
        return Ok(dir);
    }
    Err(io::Error::other("it is not of a bpffs, as pins are: unmount or remove it, or mount bpffs there"))
}

/// A path to an opened directory, wherever it is by then.
pub(super) fn path_of(dir: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()))
}

/// Requires that nobody else may rename or replace what is in bpffs.
fn require_unchangeable(path: &Path, bpffs: &fs::Metadata) -> anyhow::Result<()> {
    let sticky = bpffs.mode() & libc::S_ISVTX != 0;
    ensure!(
        is_owner(bpffs) && (bpffs.mode() & 0o022 == 0 || sticky),
        "bpffs at {} belongs to user {} with mode {:o}, and others may change what is in it: mount it with mode=0700 \
         (`mount -o remount,mode=0700 {}`)",
        path.display(),
        bpffs.uid(),
        bpffs.mode() & 0o7777,
        path.display()
    );
    Ok(())
}

/// On a bpffs that everybody may write to, somebody else could have made the directory and could swap what is in it.
///
/// # Errors
/// When it belongs to another user, or others may write to it.
pub(super) fn require_private(root: &fs::Metadata) -> anyhow::Result<()> {
    let ours = nix::unistd::geteuid().as_raw();
    ensure!(
        root.uid() == ours && root.mode() & 0o022 == 0,
        "it belongs to user {} with mode {:o}, expected user {ours} and nobody else to write: remove it, and mount \
         bpffs with mode=0700",
        root.uid(),
        root.mode() & 0o7777
    );
    Ok(())
}

fn is_owner(file: &fs::Metadata) -> bool {
    [0, nix::unistd::geteuid().as_raw()].contains(&file.uid())
}
