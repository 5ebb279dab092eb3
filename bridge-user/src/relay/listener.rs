//! The relay's listeners: one per worker, all on one gateway address and port.
//!
//! Invariants: bound to the bridge interface (SO_BINDTODEVICE), so the kernel never delivers a packet that
//! arrived on another one; IPv6 listeners serve IPv6 only; the port is not shared with anybody else: the
//! first socket binds without SO_REUSEPORT, which fails if any other socket has the port, and only then opens
//! the group to the rest.
//!
//! Accepted sockets inherit keepalive and everything in [`Transport`] from the listener, so accepting costs
//! one system call.

use std::{
    collections::HashSet,
    ffi::OsString,
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::BindToDevice};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, ipproto, listen, socket_with, sockopt},
};
use thiserror::Error;

use super::transport::Transport;
use crate::net::{listeners::tcp_listeners, namespace::Namespace, proc_fd::owners_of};

/// Connections the kernel completes while a worker is busy; net.core.somaxconn caps it.
const BACKLOG: i32 = 4096;
/// Keepalive probes after the first, each this much later.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// How many listeners there are to be, and what accepted sockets inherit.
#[derive(Clone, Copy, Debug)]
pub(super) struct ListenOptions {
    /// Silence after which the kernel probes the client.
    pub(super) keepalive: Option<Duration>,
    /// The options of all the relay's sockets.
    pub(super) transport: Transport,
    /// How many listeners.
    pub(super) count: usize,
}

/// Why a relay cannot accept.
#[derive(Debug, Error)]
#[error(
    "failed to listen on {address} on {bridge}: {cause}: {next}",
    cause = describe(*.cause), next = hint(.namespace, *.address, .bridge, *.cause)
)]
pub(super) struct ListenError {
    namespace: Namespace,
    address: SocketAddr,
    bridge: String,
    cause: Errno,
}

/// Binds listeners to `address` on `bridge` of a namespace; the address says which port was taken if 0 was asked
/// for.
///
/// # Errors
/// [`ListenError`] with the owner of the port where another process has it.
pub(super) fn listen_group(
    namespace: &Namespace,
    address: SocketAddr,
    bridge: &str,
    options: ListenOptions,
) -> Result<(Vec<OwnedFd>, SocketAddr), ListenError> {
    let failed =
        |cause| ListenError { namespace: namespace.clone(), address, bridge: bridge.to_owned(), cause };
    let first = prepared(namespace, address, bridge, options).map_err(failed)?;
    bind(&first, &address).map_err(failed)?;
    sockopt::set_socket_reuseport(&first, true).map_err(failed)?;
    let bound = getsockname(&first).and_then(SocketAddr::try_from).map_err(failed)?;
    let mut group = vec![first];
    for _ in 1..options.count {
        let next = prepared(namespace, bound, bridge, options).map_err(failed)?;
        sockopt::set_socket_reuseport(&next, true).map_err(failed)?;
        bind(&next, &bound).map_err(failed)?;
        group.push(next);
    }
    for socket in &group {
        listen(socket, BACKLOG).map_err(failed)?;
    }
    Ok((group, bound))
}

fn prepared(
    namespace: &Namespace,
    address: SocketAddr,
    bridge: &str,
    options: ListenOptions,
) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = namespace
        .run(|| socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP)))
        .map_err(|error| Errno::from_raw_os_error(error.raw_os_error()))??;
    bind_to_device(&socket, bridge)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    // Old connections in TIME_WAIT do not keep a restarted relay from its port.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    options.transport.apply(&socket)?;
    if let Some(idle) = options.keepalive {
        sockopt::set_socket_keepalive(&socket, true)?;
        sockopt::set_tcp_keepidle(&socket, idle.max(Duration::from_secs(1)))?;
        sockopt::set_tcp_keepintvl(&socket, PROBE_INTERVAL)?;
    }
    Ok(socket)
}

fn bind_to_device(socket: impl AsFd, bridge: &str) -> Result<(), Errno> {
    setsockopt(&socket, BindToDevice, &OsString::from(bridge))
        .map_err(|error| Errno::from_raw_os_error(error as i32))
}

fn describe(cause: Errno) -> String {
    match cause {
        Errno::ADDRINUSE => "the port is in use".to_owned(),
        Errno::NODEV => "there is no such interface".to_owned(),
        Errno::ADDRNOTAVAIL => "the host does not have this address".to_owned(),
        other => io::Error::from(other).to_string(),
    }
}

fn hint(namespace: &Namespace, address: SocketAddr, bridge: &str, cause: Errno) -> String {
    match cause {
        Errno::ADDRINUSE => match owner_of(namespace, address) {
            Some(owner) => format!("{owner} has it: stop that, or choose another port"),
            None => "find its owner (ss -ltnp), stop it, or choose another port".to_owned(),
        },
        Errno::NODEV => format!("create the network, or correct the name (ip link show {bridge})"),
        Errno::ADDRNOTAVAIL => format!("use the gateway address of {bridge} (ip address show {bridge})"),
        Errno::ACCESS | Errno::PERM => {
            "run as root, or grant CAP_NET_BIND_SERVICE and CAP_NET_RAW".to_owned()
        }
        Errno::MFILE | Errno::NFILE => "out of file descriptors: raise the limit (LimitNOFILE=)".to_owned(),
        _ => format!("check the address and the interface (ip address show {bridge})"),
    }
}

/// `nginx (pid 7, bound to 0.0.0.0:80)`, as far as it can be found out.
fn owner_of(namespace: &Namespace, address: SocketAddr) -> Option<String> {
    let listeners = tcp_listeners(namespace).ok()?;
    let listener = listeners.iter().find(|listener| listener.serves(address))?;
    let owner = owners_of(&HashSet::from([listener.inode])).remove(&listener.inode);
    Some(match owner {
        Some(owner) => format!("{} (pid {}, bound to {})", owner.comm, owner.pid, listener.addr),
        None => format!("a process of user {} (bound to {})", listener.uid, listener.addr),
    })
}
