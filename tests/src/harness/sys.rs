//! The only `unsafe` of the suite: system calls that no safe wrapper offers.
//!
//! Covers bpf(2) object listing and the keys of a map, other processes' limits, the capability bounding set, traced
//! calls, MPTCP sockets and signals of children. Invariant: every function is a thin shim over one kind of call and
//! returns owned, checked values.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::ptrace;
use nix::sys::signal::SigSet;
use nix::sys::socket::{Backlog, SockaddrStorage, bind, connect, listen, setsockopt, sockopt};
use nix::unistd::Pid;

/// A kind of kernel BPF object that can be listed by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum BpfKind {
    Program,
    Map,
    Link,
}

impl BpfKind {
    /// Every kind, for listings.
    pub(crate) const ALL: [Self; 3] = [Self::Program, Self::Map, Self::Link];

    fn next_id_command(self) -> libc::c_long {
        match self {
            Self::Program => 11,
            Self::Map => 12,
            Self::Link => 31,
        }
    }

    fn fd_by_id_command(self) -> libc::c_long {
        match self {
            Self::Program => 13,
            Self::Map => 14,
            Self::Link => 30,
        }
    }

    /// Offset of the 16-byte name in the kernel's info struct, where the kind has a name.
    fn name_offset(self) -> Option<usize> {
        match self {
            Self::Program => Some(64),
            Self::Map => Some(24),
            Self::Link => None,
        }
    }
}

const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;

/// `union bpf_attr` as plain words: larger than any command used here, zero where unused.
type Attr = [u32; 28];

fn bpf(command: libc::c_long, attr: &mut Attr) -> io::Result<libc::c_long> {
    // SAFETY: attr is a live, zero-initialised buffer of the size given, larger than the fields of
    // the commands used here; the one pointer ever stored in it is documented at its caller.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of::<Attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The smallest id of `kind` above `after`, or `None` at the end of the kernel's list.
pub(crate) fn next_bpf_id(kind: BpfKind, after: u32) -> io::Result<Option<u32>> {
    let mut attr: Attr = [0; 28];
    attr[0] = after;
    match bpf(kind.next_id_command(), &mut attr) {
        Ok(_) => Ok(Some(attr[1])),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The kernel's name of an object, if it still exists and its kind has names.
pub(crate) fn bpf_name(kind: BpfKind, id: u32) -> Option<String> {
    let offset = kind.name_offset()?;
    let info = bpf_info(kind, id)?;
    let name = info[offset..offset + 16].split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(name).into_owned())
}

/// How many instructions the verifier walked through to accept a program (Linux 5.16).
pub(crate) fn verified_instructions(program: u32) -> Option<u32> {
    let info = bpf_info(BpfKind::Program, program)?;
    let count = info[VERIFIED_INSNS_OFFSET..VERIFIED_INSNS_OFFSET + 4].try_into().ok()?;
    Some(u32::from_ne_bytes(count)).filter(|count| *count > 0)
}

/// Offset of `verified_insns` in `struct bpf_prog_info`.
const VERIFIED_INSNS_OFFSET: usize = 216;
/// Size of `struct bpf_prog_info`, the largest of the info structs, as of Linux 6.18; older kernels fill less of it.
const INFO_SIZE: usize = 232;

/// The kernel's info struct of an object, if it still exists.
fn bpf_info(kind: BpfKind, id: u32) -> Option<[u8; INFO_SIZE]> {
    let mut attr: Attr = [0; 28];
    attr[0] = id;
    let fd = open(kind.fd_by_id_command(), &mut attr).ok()?;
    let mut info = [0u8; INFO_SIZE];
    let mut attr = of_descriptor(&fd).ok()?;
    attr[1] = u32::try_from(INFO_SIZE).ok()?;
    [attr[2], attr[3]] = words(info.as_mut_ptr() as u64);
    // The pointer stored is to `info`, which outlives the call; the kernel writes at most its size.
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr).ok()?;
    Some(info)
}

/// Runs a command that returns a descriptor.
fn open(command: libc::c_long, attr: &mut Attr) -> io::Result<OwnedFd> {
    let fd = i32::try_from(bpf(command, attr)?).map_err(io::Error::other)?;
    // SAFETY: the kernel just returned this descriptor to us and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The beginning of a command on an object.
fn of_descriptor(fd: &OwnedFd) -> io::Result<Attr> {
    let mut attr: Attr = [0; 28];
    attr[0] = u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)?;
    Ok(attr)
}

/// A pointer, as it lies in two words.
fn words(pointer: u64) -> [u32; 2] {
    let bytes = pointer.to_ne_bytes();
    [&bytes[..4], &bytes[4..]].map(|half| u32::from_ne_bytes(std::array::from_fn(|at| half[at])))
}

const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
/// Offset of `key_size` in `struct bpf_map_info`.
const KEY_SIZE_OFFSET: usize = 8;

/// How many keys a map has, or `None` if it is gone. Keys that come or go meanwhile may be missed.
pub(crate) fn map_keys(map: u32) -> io::Result<Option<usize>> {
    let Some(info) = bpf_info(BpfKind::Map, map) else { return Ok(None) };
    let size: [u8; 4] = std::array::from_fn(|at| info[KEY_SIZE_OFFSET + at]);
    let mut attr: Attr = [0; 28];
    attr[0] = map;
    let fd = open(BpfKind::Map.fd_by_id_command(), &mut attr)?;
    let mut key = vec![0u8; u32::from_ne_bytes(size) as usize];
    let (mut count, mut started) = (0, false);
    loop {
        let mut attr = of_descriptor(&fd)?;
        let mut next = key.clone();
        // Without a key the kernel gives the first one.
        [attr[2], attr[3]] = if started { words(key.as_mut_ptr() as u64) } else { [0, 0] };
        [attr[4], attr[5]] = words(next.as_mut_ptr() as u64);
        // The pointers stored are to `key` and `next`, which outlive the call and have the map's key size.
        match bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) {
            Ok(_) => (count, started, key) = (count + 1, true, next),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Some(count)),
            Err(error) => return Err(error),
        }
    }
}

/// Sets the soft limit on descriptors of a process and returns the one it had.
pub(crate) fn limit_files(pid: u32, soft: u64) -> io::Result<u64> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one rlimit to a live one and reads nothing.
    if unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut limit) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let before = std::mem::replace(&mut limit.rlim_cur, soft);
    // SAFETY: the kernel reads one live rlimit and writes nothing.
    let result = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(before) }
}

/// Removes one capability from the calling thread's bounding set, so programs it starts lack it.
pub(crate) fn drop_from_bounding_set(capability: u32) -> io::Result<()> {
    // SAFETY: PR_CAPBSET_DROP takes one integer and changes only the calling thread.
    let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets every signal reach the process `command` starts, which otherwise begins with the caller's blocked ones.
pub(crate) fn unblock_signals_in(command: &mut Command) {
    // SAFETY: between fork and exec the closure only calls pthread_sigmask(3), which is async-signal-safe, with a set
    // on its own stack.
    unsafe { command.pre_exec(|| Ok(SigSet::all().thread_unblock()?)) };
}

/// A system call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) number: libc::c_long,
    pub(crate) arguments: [u64; 6],
}

/// The system call a traced process is about to make. `None` at any other stop, such as a return from a call.
pub(crate) fn entered_call(pid: Pid) -> nix::Result<Option<Call>> {
    let info = ptrace::syscall_info(pid)?;
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return Ok(None);
    }
    // SAFETY: `op` says that the kernel filled in the `entry` member of the union.
    let entry = unsafe { info.u.entry };
    Ok(Some(Call { number: entry.nr.cast_signed(), arguments: entry.args }))
}

/// A listener of the kind Go ≥ 1.24 makes by default, in the calling thread's namespace.
pub(crate) fn mptcp_listener(address: SocketAddr) -> Result<TcpListener> {
    let fd = mptcp_socket(address)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address)).context("failed to bind the MPTCP socket")?;
    listen(&fd, Backlog::MAXCONN).context("failed to listen on the MPTCP socket")?;
    Ok(TcpListener::from(fd))
}

/// A listener on `[::]` that takes no IPv4, in the calling thread's namespace.
pub(crate) fn mptcp_v6only_listener(port: u16) -> Result<TcpListener> {
    let address = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
    let fd = mptcp_socket(address)?;
    setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address)).context("failed to bind the MPTCP socket")?;
    listen(&fd, Backlog::MAXCONN).context("failed to listen on the MPTCP socket")?;
    Ok(TcpListener::from(fd))
}

/// A connection that asks for MPTCP, from the calling thread's namespace.
pub(crate) fn mptcp_connect(address: SocketAddr) -> Result<TcpStream> {
    let fd = mptcp_socket(address)?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(address)).context("failed to connect with MPTCP")?;
    Ok(TcpStream::from(fd))
}

fn mptcp_socket(address: SocketAddr) -> Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: socket(2) takes three integers.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_MPTCP) };
    if fd < 0 {
        return Err(io::Error::last_os_error())
            .context("failed to open an MPTCP socket: the kernel lacks MPTCP");
    }
    // SAFETY: the kernel just returned this descriptor to us and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A socket that sends whole frames over an interface of the calling thread's namespace.
pub(crate) fn packet_socket(interface: &str) -> Result<OwnedFd> {
    let index =
        nix::net::if_::if_nametoindex(interface).with_context(|| format!("no interface {interface}"))?;
    // SAFETY: socket(2) takes three integers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("failed to open a packet socket");
    }
    // SAFETY: the kernel just returned this descriptor to us and nothing else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all zeroes is a valid address of this type.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = i32::try_from(index)?;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `address`, which is that large.
    let result = unsafe { libc::bind(fd, (&raw const address).cast(), length) };
    if result != 0 {
        return Err(io::Error::last_os_error()).context("failed to bind the packet socket");
    }
    Ok(socket)
}

/// Sets the options of every IPv4 header the socket sends.
pub(crate) fn ip_options(socket: &OwnedFd, options: &[u8]) -> Result<()> {
    header_option(socket, libc::SOL_IP, libc::IP_OPTIONS, options).context("failed to set IP options")
}

/// Gives every IPv6 packet the socket sends a destination options header.
pub(crate) fn destination_options(socket: &OwnedFd, header: &[u8]) -> Result<()> {
    let set = header_option(socket, libc::SOL_IPV6, libc::IPV6_DSTOPTS, header);
    set.context("failed to set IPv6 destination options")
}

fn header_option(socket: &OwnedFd, level: i32, name: i32, value: &[u8]) -> Result<()> {
    let length = libc::socklen_t::try_from(value.len())?;
    // SAFETY: the kernel reads `length` bytes of `value`.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    if result != 0 { Err(io::Error::last_os_error().into()) } else { Ok(()) }
}
