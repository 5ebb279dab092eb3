//! Which process owns a socket, a short-lived duplicate of that socket, and which namespace a socket is in.
//!
//! Invariants: `unsafe` is confined to three system calls without safe wrappers; a duplicate handed out is
//! proved (SO_COOKIE) to be the socket asked for, whatever happened to the process since it was looked up; a
//! process that ends or changes during the scan is skipped, never an error.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::sys::stat::{SFlag, fstat};
use rustix::net::sockopt::{socket_acceptconn, socket_cookie, socket_protocol};
use rustix::net::{getsockname, ipproto};

/// `SO_NETNS_COOKIE` (Linux 5.14).
const SO_NETNS_COOKIE: libc::c_int = 71;

/// A process that holds a socket open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Process id, in the caller's PID namespace.
    pub pid: i32,
    /// The descriptor's number in that process.
    pub fd: i32,
    /// The process's name from /proc/PID/comm, at most 15 bytes; empty if it could not be read.
    pub comm: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.comm, self.pid)
    }
}

/// The first process, in order of /proc, that holds each of these socket inodes open.
///
/// Reads /proc/PID/fd once, links only, and stops as soon as all are found. Inodes that nobody visible holds
/// are absent: other users' descriptors need CAP_SYS_PTRACE (or root), processes outside the caller's PID
/// namespace are never visible, and kernel sockets have no owner.
pub fn owners_of(inodes: &HashSet<u64>) -> HashMap<u64, Owner> {
    let mut owners = HashMap::with_capacity(inodes.len());
    let Ok(processes) = fs::read_dir("/proc") else {
        return owners;
    };
    for process in processes.flatten() {
        if owners.len() == inodes.len() {
            break;
        }
        if let Some(pid) = number(process.file_name().to_str()) {
            scan_process(pid, &process.path(), inodes, &mut owners);
        }
    }
    owners
}

/// Adds what `pid` owns of `inodes` and nobody owned so far.
fn scan_process(pid: i32, directory: &Path, inodes: &HashSet<u64>, owners: &mut HashMap<u64, Owner>) {
    // A process that is gone, or that we may not look into, owns nothing we could use.
    let Ok(descriptors) = fs::read_dir(directory.join("fd")) else {
        return;
    };
    for descriptor in descriptors.flatten() {
        let Some(fd) = number(descriptor.file_name().to_str()) else { continue };
        let Some(inode) = socket_inode(&descriptor.path()) else { continue };
        if inodes.contains(&inode) && !owners.contains_key(&inode) {
            owners.insert(inode, Owner { pid, fd, comm: comm(directory) });
            if owners.len() == inodes.len() {
                return;
            }
        }
    }
}

fn number(name: Option<&str>) -> Option<i32> {
    name?.parse().ok()
}

/// The inode of a `socket:[12345]` link.
fn socket_inode(link: &Path) -> Option<u64> {
    let target = fs::read_link(link).ok()?;
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn comm(directory: &Path) -> String {
    let name = fs::read(directory.join("comm")).unwrap_or_default();
    String::from_utf8_lossy(&name).trim_end().to_owned()
}

/// A duplicate of the owner's socket, close-on-exec, proved to be the one with this cookie, which no other socket ever
/// has: inodes have 32 bits, and are given out again.
///
/// **Drop it at once** after handing it to the kernel (a SOCKHASH entry needs no open descriptor): while a
/// duplicate is open the port stays busy after the service stops, and connections to it are accepted into a
/// queue that nobody serves.
///
/// # Errors
/// `NotFound` if that descriptor is no longer this socket (the service closed it or ended: look the owner up
/// again); `PermissionDenied` without CAP_SYS_PTRACE over the process (pidfd_getfd(2) asks for ptrace rights);
/// `Unsupported` before Linux 5.6.
pub fn duplicate(owner: &Owner, cookie: u64) -> io::Result<OwnedFd> {
    duplicate_if(owner, |socket, _| Ok(socket_cookie(socket)? == cookie))
}

/// The same of an MPTCP listener, whose cookie nobody tells: proved to be an MPTCP socket with this inode that listens
/// on `address`.
///
/// # Errors
/// As [`duplicate`].
pub fn duplicate_mptcp(owner: &Owner, inode: u64, address: SocketAddr) -> io::Result<OwnedFd> {
    duplicate_if(owner, |socket, found| {
        let is_it = found == inode
            && socket_protocol(socket)? == Some(ipproto::MPTCP)
            && socket_acceptconn(socket)?
            && SocketAddr::try_from(getsockname(socket)?).is_ok_and(|own| own == address);
        Ok(is_it)
    })
}

/// A duplicate of a socket that `is_it` says is the one, given the inode.
fn duplicate_if(owner: &Owner, is_it: impl FnOnce(&OwnedFd, u64) -> io::Result<bool>) -> io::Result<OwnedFd> {
    let pidfd = pidfd_open(owner.pid).map_err(|error| explain(owner, error))?;
    let duplicate = pidfd_getfd(&pidfd, owner.fd).map_err(|error| explain(owner, error))?;
    let stat = fstat(&duplicate)?;
    let is_socket = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFSOCK;
    if is_socket && is_it(&duplicate, stat.st_ino)? {
        return Ok(duplicate);
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!(
            "failed to duplicate a socket of {} (pid {}): its descriptor {} is another file now, inode {}: the service \
             was restarted, look it up again",
            owner.comm, owner.pid, owner.fd, stat.st_ino
        ),
    ))
}

/// The cookie of the network namespace that a socket belongs to.
///
/// # Errors
/// `ENOPROTOOPT` below Linux 5.14.
pub(crate) fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: both pointers are to live locals, and `length` is the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Keeps the kind of a system call's error and says what to do about it.
fn explain(owner: &Owner, error: io::Error) -> io::Error {
    let (kind, next) = match error.raw_os_error() {
        Some(libc::ESRCH | libc::EBADF) => {
            (io::ErrorKind::NotFound, "the service stopped or closed it, look it up again")
        }
        Some(libc::EPERM | libc::EACCES) => (
            io::ErrorKind::PermissionDenied,
            "run as root or with CAP_SYS_PTRACE; where kernel.yama.ptrace_scope is 3 or a security module forbids it \
                 to root too, stop the service, attach, and start it",
        ),
        Some(libc::ENOSYS) => (io::ErrorKind::Unsupported, "Linux 5.6 or newer has pidfd_getfd"),
        _ => (error.kind(), "try again"),
    };
    let Owner { pid, fd, comm } = owner;
    io::Error::new(
        kind,
        format!("failed to duplicate descriptor {fd} of {comm} (pid {pid}): {error}: {next}"),
    )
}

fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    owned(result)
}

fn pidfd_getfd(pidfd: &OwnedFd, fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_getfd takes three integers and touches no memory of ours; `pidfd` is open for the call.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) };
    owned(result)
}

/// The descriptor a system call returned. Both calls above set close-on-exec on it.
fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(result) {
        // SAFETY: the kernel has just returned this descriptor to us, so it is open and nothing else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// System calls that tests of this directory need and nix does not offer.
#[cfg(test)]
pub(super) mod testing {
    use super::{OwnedFd, io, owned};

    /// A new IPv4 stream socket of protocol IPPROTO_MPTCP.
    pub(in super::super) fn mptcp_socket() -> io::Result<OwnedFd> {
        // SAFETY: socket(2) takes three integers and touches no memory of ours.
        owned(
            unsafe {
                libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_MPTCP)
            }
            .into(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    struct Holder(Child);

    impl Drop for Holder {
        fn drop(&mut self) {
            self.0.kill().expect("kill the child");
            self.0.wait().expect("reap the child");
        }
    }

    /// Waits for what other tests can delay: their forks hold copies of our descriptors until they exec.
    fn soon(condition: impl Fn() -> bool) -> bool {
        (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            condition()
        })
    }

    /// A child process that holds the only descriptor of a listener, as its standard input.
    fn holder() -> (Holder, u64, u64, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let inode = fstat(&listener).expect("fstat").st_ino;
        let cookie = socket_cookie(&listener).expect("a cookie");
        let stdin = Stdio::from(OwnedFd::from(listener));
        let child = Command::new("sleep").arg("60").stdin(stdin).spawn().expect("sleep");
        let wanted = HashSet::from([inode]);
        let only_ours = || owners_of(&wanted).get(&inode).is_some_and(|owner| owner.comm == "sleep");
        assert!(soon(only_ours), "the child owns the listener");
        (Holder(child), inode, cookie, address)
    }

    #[test]
    fn a_childs_listener_is_found_and_duplicated() {
        let (child, inode, cookie, address) = holder();
        let owners = owners_of(&HashSet::from([inode, u64::MAX]));
        assert_eq!(owners.len(), 1, "nobody owns inode u64::MAX");
        let owner = &owners[&inode];
        assert_eq!((i64::from(owner.pid), owner.fd), (i64::from(child.0.id()), 0));
        assert_eq!(owner.comm, "sleep");

        let copy = duplicate(owner, cookie).expect("a duplicate");
        let flags = nix::fcntl::fcntl(&copy, nix::fcntl::FcntlArg::F_GETFD).expect("F_GETFD");
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        drop(child);
        assert!(TcpStream::connect(address).is_ok(), "a kept duplicate keeps the port open");
        drop(copy);
        assert!(soon(|| TcpStream::connect(address).is_err()), "dropping it closes the port");
    }

    #[test]
    fn another_socket_or_a_closed_descriptor_is_refused() {
        let (child, inode, cookie, _) = holder();
        let owner = owners_of(&HashSet::from([inode])).remove(&inode).expect("the owner");
        let error = duplicate(&owner, cookie + 1).expect_err("another socket of the same inode");
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
        let closed = Owner { fd: 99, ..owner.clone() };
        assert_eq!(duplicate(&closed, cookie).expect_err("closed").kind(), io::ErrorKind::NotFound);
        drop(child);
        let error = duplicate(&owner, cookie).expect_err("the process is gone");
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
        assert!(error.to_string().contains("look it up again"), "{error}");
    }

    #[test]
    fn no_inodes_means_no_scan() {
        let start = Instant::now();
        assert!(owners_of(&HashSet::new()).is_empty());
        assert!(start.elapsed().as_millis() < 50);
    }

    #[test]
    fn only_socket_links_have_a_socket_inode() {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, target, expected) in [
            ("a", "socket:[42]", Some(42)),
            ("b", "pipe:[42]", None),
            ("c", "socket:[x]", None),
            ("d", "/dev/null", None),
        ] {
            let link = directory.path().join(name);
            std::os::unix::fs::symlink(target, &link).expect("a link");
            assert_eq!(socket_inode(&link), expected, "{target}");
        }
        assert_eq!(socket_inode(&directory.path().join("absent")), None);
    }
}
