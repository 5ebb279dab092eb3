//! A UNIX target: which socket it is, and that it is still the service's when a client comes.
//!
//! Invariants: the path is resolved once, at the start; from then on no component of it may be a symbolic link. What is
//! connected to is the very socket that was looked at (an `O_PATH` descriptor), and belongs to the user that the
//! service's socket belonged to at the start. If nothing was there, the first one must be root's, or that of the user
//! who has the directory. Who listens must be that user or root, unless root made the socket. So a service may restart,
//! with a new socket and even a new directory, and nobody else can put something in its place: sockets are made by
//! their owner, and given away by root only.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2},
    io::Errno,
    net::sockopt::socket_peercred,
};
use thiserror::Error;

use super::user::User;

/// Where the service's socket is expected, and whose it is.
#[derive(Debug)]
pub(super) struct UnixTarget {
    /// As it was asked for.
    path: PathBuf,
    directory: PathBuf,
    name: OsString,
    /// The owner at the start, if the socket was there.
    owner: Option<u32>,
}

/// What is at a path now, and may be connected to.
pub(super) struct Found {
    /// Opened with `O_PATH`.
    file: OwnedFd,
    owner: u32,
}

/// Why there is nothing to connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum UnixError {
    /// The kernel's refusal.
    #[error("{0}")]
    Failed(#[from] Errno),
    /// A component of the path is a symbolic link.
    #[error("its path leads over a symbolic link now")]
    Link,
    /// Another user's.
    #[error("the socket there is user {found}'s now, expected {}", expected(.wanted))]
    Owner {
        /// Whose it is.
        found: u32,
        /// Whose it was, or may be.
        wanted: Wanted,
    },
    /// Another user has it open.
    #[error("user {0} listens there, expected the socket's owner or root")]
    Listener(u32),
}

/// Whose a socket is expected to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// That of the service at the start.
    Owner(u32),
    /// Root's, or that of the user who has the directory.
    RootOr(u32),
}

fn expected(wanted: &Wanted) -> String {
    match wanted {
        Wanted::Owner(uid) => format!("user {uid}'s as at the start"),
        Wanted::RootOr(uid) => format!("root's or that of user {uid}, who has the directory"),
    }
}

impl UnixError {
    /// Whether something is there that is not the service's.
    pub(super) fn is_foreign(self) -> bool {
        !matches!(self, Self::Failed(_))
    }
}

impl UnixTarget {
    /// Looks where the path leads now, and whose the socket is.
    pub(super) fn find(path: &Path) -> Self {
        let resolved = fs::canonicalize(path).unwrap_or_else(|_| resolve_existing(path));
        let directory = resolved.parent().unwrap_or(Path::new("/")).to_owned();
        let name = resolved.file_name().unwrap_or(OsStr::new(".")).to_owned();
        let mut target = Self { path: path.to_owned(), directory, name, owner: None };
        target.owner = target.look().ok().map(|(_, owner, _)| owner);
        target
    }

    /// As it was asked for.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Who may connect to it with the least rights. While the service is down: who has the directory, which is mostly
    /// the service's user, or else nobody.
    pub(super) fn user(&self) -> User {
        let path = self.directory.join(&self.name);
        if let Some(stat) = fs::symlink_metadata(&path).ok().filter(|_| self.owner.is_some()) {
            let group = User { gid: stat.gid(), ..User::NOBODY };
            let owner = User { uid: stat.uid(), gid: stat.gid() };
            return User::first_that_may(Access::WRITE_OK, &path, &[User::NOBODY, group, owner]);
        }
        let Ok(stat) = fs::metadata(&self.directory) else { return User::NOBODY };
        let owner = User { uid: stat.uid(), gid: stat.gid() };
        let candidates = if owner.uid == 0 { [User::NOBODY, owner] } else { [owner, User::NOBODY] };
        User::first_that_may(Access::EXEC_OK, &self.directory, &candidates)
    }

    /// Opens what is there now, if that is the service's.
    ///
    /// # Errors
    /// [`UnixError`]
    pub(super) fn open(&self) -> Result<Found, UnixError> {
        let (file, owner, directory_owner) = self.look()?;
        let wanted = self.owner.map_or(Wanted::RootOr(directory_owner), Wanted::Owner);
        let is_expected = match wanted {
            Wanted::Owner(uid) => owner == uid,
            Wanted::RootOr(uid) => owner == 0 || owner == uid,
        };
        if is_expected { Ok(Found { file, owner }) } else { Err(UnixError::Owner { found: owner, wanted }) }
    }

    /// The socket that is there, its owner, and the directory's.
    fn look(&self) -> Result<(OwnedFd, u32, u32), UnixError> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let directory = openat2(
            CWD,
            &self.directory,
            flags | OFlags::DIRECTORY,
            Mode::empty(),
            ResolveFlags::NO_SYMLINKS,
        );
        let directory =
            directory.map_err(|error| if error == Errno::LOOP { UnixError::Link } else { error.into() })?;
        let file = openat(&directory, &self.name, flags | OFlags::NOFOLLOW, Mode::empty())?;
        let stat = fstat(&file)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => Err(UnixError::Link),
            FileType::Socket => Ok((file, stat.st_uid, fstat(&directory)?.st_uid)),
            _ => Err(Errno::NOTSOCK.into()),
        }
    }
}

impl Found {
    /// A path that leads to this very socket, whatever is at its own by now.
    pub(super) fn address(&self) -> String {
        format!("/proc/self/fd/{}", self.file.as_raw_fd())
    }

    /// Whether who accepts there may: the owner of the socket, root, or whoever root gave it to.
    ///
    /// # Errors
    /// [`UnixError::Listener`] if not.
    pub(super) fn require_listener(&self, connected: impl AsFd) -> Result<(), UnixError> {
        let listener = socket_peercred(connected)?.uid.as_raw();
        let may = self.owner == 0 || listener == 0 || listener == self.owner;
        if may { Ok(()) } else { Err(UnixError::Listener(listener)) }
    }
}

/// Resolves as much of a path as exists.
fn resolve_existing(path: &Path) -> PathBuf {
    let resolved = path.ancestors().skip(1).find_map(|ancestor| {
        let rest = path.strip_prefix(ancestor).ok()?;
        Some(fs::canonicalize(ancestor).ok()?.join(rest))
    });
    resolved.unwrap_or_else(|| path.to_owned())
}

#[cfg(test)]
#[path = "unix_tests.rs"]
mod tests;
