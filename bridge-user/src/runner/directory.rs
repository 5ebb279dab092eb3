//! Where relay processes have the sockets that others ask them by: `/run/bridge-user/relay/<namespace>-<process>`.
//!
//! Invariants: nothing in the directory is believed unless it belongs to root, or to this process's user, and nobody
//! else may search it; it is opened component by component without following links, so only root could put another in
//! its place. Whoever makes a socket, or removes a dead one, holds the directory's lock: a socket that is bound and
//! does not listen yet is never taken for a leftover. Names are bytes, and names that no relay makes are left alone.

use std::{
    io,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rustix::{
    fs::{
        AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, flock, fstat, mkdirat, open, openat, unlinkat,
    },
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt},
};

/// Where what processes need while they run is kept.
const RUN: &str = "/run";
/// The project's own directory in it, which others may search.
const OWN: &str = "bridge-user";
/// The directory of sockets in that, which they may not.
const RELAYS: &str = "relay";
/// How long to wait for another process that makes or removes a socket, which takes it a moment.
const LOCK_TIME: Duration = Duration::from_secs(5);
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// How long to wait where others wait to be accepted already. A relay accepts at once.
const REACH_TIME: Duration = Duration::from_secs(2);
/// Names tried for one socket. Another process has the first where both have their process id in namespaces of
/// their own.
const MAX_NAMES: u32 = 64;

/// The directory of sockets, opened and found to be private.
pub(super) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
    /// The project's own directory above it, where the daemon's socket is.
    own: PathBuf,
}

/// The name of a process's own socket, removed when dropped. To be dropped while the socket still listens, or somebody
/// else may have the name by then.
pub(super) struct Entry {
    path: PathBuf,
}

impl Drop for Entry {
    fn drop(&mut self) {
        // A process that is another user by now may not: the next attach or detach does it.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Directory {
    /// Opens it; `None` if no relay was ever started since the system was.
    ///
    /// # Errors
    /// When it is not private, or this process may not search it.
    pub(super) fn open() -> anyhow::Result<Option<Self>> {
        Self::open_below(Path::new(RUN))
    }

    /// Opens it, and makes what is missing of it.
    ///
    /// # Errors
    /// As [`Self::open`]; when `/run` cannot be written to.
    pub(super) fn make() -> anyhow::Result<Self> {
        Self::make_below(Path::new(RUN))
    }

    fn open_below(run: &Path) -> anyhow::Result<Option<Self>> {
        let path = run.join(OWN).join(RELAYS);
        let opened = run_directory(run)
            .and_then(|fd| openat(fd, OWN, directory_flags(), Mode::empty()))
            .and_then(|own| Ok((openat(&own, RELAYS, directory_flags(), Mode::empty())?, own)));
        let (fd, own) = match opened {
            Ok(opened) => opened,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => {
                return Err(io::Error::from(error))
                    .with_context(|| format!("failed to open {}", path.display()));
            }
        };
        // Others may look for what else is there, as long as they cannot change it.
        require_private(&own, &run.join(OWN), Mode::WGRP | Mode::WOTH)?;
        require_private(&fd, &path, Mode::RWXG | Mode::RWXO)?;
        Ok(Some(Self { fd, path, own: run.join(OWN) }))
    }

    fn make_below(run: &Path) -> anyhow::Result<Self> {
        let path = run.join(OWN).join(RELAYS);
        let make = |fd: &OwnedFd, name: &str| match mkdirat(fd, name, Mode::RWXU) {
            Err(Errno::EXIST) => Ok(()),
            made => made,
        };
        let made = run_directory(run).and_then(|fd| {
            make(&fd, OWN)?;
            make(&openat(&fd, OWN, directory_flags(), Mode::empty())?, RELAYS)
        });
        let failed =
            || format!("failed to make {}: run as root, with {} writable", path.display(), run.display());
        made.map_err(io::Error::from).with_context(failed)?;
        Self::open_below(run)?.with_context(|| format!("{} was removed just now: try again", path.display()))
    }

    /// Binds this process's socket for the namespace with this inode, after removing those of dead processes.
    ///
    /// # Errors
    /// When another process keeps the directory locked, or the kernel refuses.
    pub(super) fn bind(&self, namespace: u64) -> anyhow::Result<(UnixListener, Entry)> {
        let _lock = self.wait_for_lock()?;
        self.remove_dead();
        let process = std::process::id();
        let names = (0..MAX_NAMES).map(|turn| match turn {
            0 => format!("{namespace}-{process}"),
            turn => format!("{namespace}-{process}.{turn}"),
        });
        for path in names.map(|name| self.path.join(name)) {
            match UnixListener::bind(&path) {
                Ok(listener) => return Ok((listener, Entry { path })),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("failed to listen on {}", path.display()));
                }
            }
        }
        bail!(
            "failed to listen in {}: {MAX_NAMES} names are taken: remove what is there",
            self.path.display()
        )
    }

    /// Binds the daemon's socket, by this name; root and its owner may connect to it.
    ///
    /// # Errors
    /// When a daemon listens there, another process keeps the directory locked, or the kernel refuses.
    pub(super) fn bind_daemon(&self, name: &str) -> anyhow::Result<(UnixListener, Entry)> {
        let _lock = self.wait_for_lock()?;
        let path = self.own.join(name);
        let failed = || format!("failed to listen on {}", path.display());
        match reach(&path) {
            Ok(_) => bail!(
                "failed to start the daemon: one answers on {} already: end it first (systemctl stop bridge-user, or \
                 see fuser {0})",
                path.display()
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(&path).with_context(failed)?;
            }
            Err(error) => return Err(error).with_context(failed),
        }
        let listener = UnixListener::bind(&path).with_context(failed)?;
        let only_owner = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, only_owner).with_context(failed)?;
        Ok((listener, Entry { path }))
    }

    /// The daemon's socket, by this name.
    pub(super) fn daemon(&self, name: &str) -> PathBuf {
        self.own.join(name)
    }

    /// Removes sockets of dead processes, unless another process is making or removing one: then the next does it.
    pub(super) fn sweep(&self) {
        if let Ok(Some(_lock)) = self.lock() {
            self.remove_dead();
        }
    }

    /// The sockets of the namespace with this inode, dead ones among them.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub(super) fn sockets_of(&self, namespace: u64) -> anyhow::Result<Vec<PathBuf>> {
        let names = self.names().with_context(|| format!("failed to list {}", self.path.display()))?;
        Ok(names
            .into_iter()
            .filter(|(_, inode)| *inode == namespace)
            .map(|(name, _)| self.path.join(name))
            .collect())
    }

    /// The names of sockets, sorted, each with its namespace's inode.
    fn names(&self) -> io::Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        for entry in Dir::read_from(&self.fd)? {
            let entry = entry?;
            let is_socket = matches!(entry.file_type(), FileType::Socket);
            let name = entry.file_name().to_str().ok().filter(|_| is_socket);
            found.extend(name.and_then(|name| Some((name.to_owned(), namespace_in(name)?))));
        }
        found.sort();
        Ok(found)
    }

    fn remove_dead(&self) {
        // What cannot be listed or removed now is removed another time.
        for (name, _) in self.names().unwrap_or_default() {
            let path = self.path.join(&name);
            let refused = reach(&path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
            if refused {
                let _ = unlinkat(&self.fd, name.as_str(), AtFlags::empty());
            }
        }
    }

    fn wait_for_lock(&self) -> anyhow::Result<OwnedFd> {
        let deadline = Instant::now() + LOCK_TIME;
        loop {
            match self.lock()? {
                Some(lock) => return Ok(lock),
                None if Instant::now() < deadline => thread::sleep(LOCK_PAUSE),
                None => bail!(
                    "failed to lock {}: another process holds it: find it (fuser {0}), end it, and try again",
                    self.path.display()
                ),
            }
        }
    }

    /// The lock, if nobody has it. Closing the descriptor releases it.
    fn lock(&self) -> anyhow::Result<Option<OwnedFd>> {
        let failed = || format!("failed to lock {}", self.path.display());
        // Locks belong to what was opened: a second one of this process must wait as well.
        let again = openat(&self.fd, ".", directory_flags(), Mode::empty()).map_err(io::Error::from);
        let again = again.with_context(failed)?;
        match flock(&again, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(again)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(io::Error::from(error)).with_context(failed),
        }
    }
}

/// Connects to a relay's socket, and waits for a limited time where it accepts nobody.
pub(super) fn reach(path: &Path) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(REACH_TIME))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

fn run_directory(run: &Path) -> Result<OwnedFd, Errno> {
    open(run, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Requires an owner that may be believed, and that others may do none of what `forbidden` says.
fn require_private(fd: &OwnedFd, path: &Path, forbidden: Mode) -> anyhow::Result<()> {
    let stat = fstat(fd)
        .map_err(io::Error::from)
        .with_context(|| format!("failed to look at {}", path.display()))?;
    let (owner, mode) = (stat.st_uid, Mode::from_raw_mode(stat.st_mode));
    let own = rustix::process::geteuid().as_raw();
    ensure!(
        (owner == 0 || owner == own) && !mode.intersects(forbidden),
        "failed to trust {}: user {owner} has it, mode {:04o}, expected root or user {own}, and no mode of {:04o}: \
         remove it, or correct owner and mode",
        path.display(),
        mode.as_raw_mode() & 0o7777,
        forbidden.as_raw_mode(),
    );
    Ok(())
}

/// The namespace's inode in `<namespace>-<process>`, where more may follow a dot; `None` for names of no relay.
fn namespace_in(name: &str) -> Option<u64> {
    let (namespace, process) = name.split_once('-')?;
    let process = process.split_once('.').map_or(process, |(process, _)| process);
    process.parse::<u32>().ok()?;
    namespace.parse().ok()
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
