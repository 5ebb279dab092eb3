//! TCP listeners of a namespace, by sock_diag(7): who listens where, and which of them is MPTCP.
//!
//! Invariants: only sockets in state LISTEN are returned, each once per address it is bound to; a
//! SO_REUSEPORT group appears with all its members. The [`Listener::cookie`] is that of the TCP socket in the
//! kernel's hash tables, the one BPF programs see.
//!
//! MPTCP: the application's MPTCP socket is in no TCP table. What a TCP dump shows is its first subflow, a
//! kernel socket with the "mptcp" upper-layer protocol and the inode number of the application's socket. The
//! dump says so in INET_DIAG_ULP_INFO, which accompanies INET_DIAG_INFO and so has to be asked for with that
//! extension bit, to callers with CAP_NET_ADMIN (newer kernels tell everybody). Dumping protocol
//! IPPROTO_MPTCP itself is not used: it needs the module mptcp_diag, and lists no listeners on older kernels.

use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use netlink_packet_core::{Emitable, Nla as _, Parseable};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_packet_sock_diag::{AF_INET, AF_INET6, IPPROTO_TCP, SOCK_DIAG_BY_FAMILY, TCP_LISTEN};

use super::{
    NetError,
    namespace::Namespace,
    netlink::{attribute, dump},
};
pub use crate::model::listener::Listener;

/// `INET_DIAG_ULP_INFO` of linux/inet_diag.h, which netlink-packet-sock-diag does not decode.
const INET_DIAG_ULP_INFO: u16 = 19;
/// `INET_ULP_INFO_NAME`, the first attribute nested in it: the name of the upper-layer protocol.
const INET_ULP_INFO_NAME: u16 = 1;

/// Whether a stream socket is bound to `path`: the file alone stays when its service is killed. Nobody is connected to.
pub fn is_bound(path: &Path) -> bool {
    // A datagram socket is told about the other's type before anything else (`unix_find_bsd`, net/unix/af_unix.c).
    UnixDatagram::unbound()
        .and_then(|socket| socket.connect(path))
        .is_err_and(|error| error.raw_os_error() == Some(libc::EPROTOTYPE))
}

/// Every TCP listener of the network namespace, IPv4 first.
///
/// Takes well under a millisecond for a hundred listeners; needs no privilege except for
/// [`Listener::mptcp`].
///
/// # Errors
/// [`NetError::Netlink`] if the kernel cannot be asked. A kernel without IPv6 simply has no IPv6 listeners.
pub fn tcp_listeners(namespace: &Namespace) -> Result<Vec<Listener>, NetError> {
    let failed = |cause: io::Error| NetError::Netlink { action: "list TCP listeners", cause };
    let mut listeners = Vec::new();
    for family in [AF_INET, AF_INET6] {
        for payload in dump_family(namespace, family, StateFlags::LISTEN)? {
            listeners.extend(parse(&payload).map_err(failed)?);
        }
    }
    Ok(listeners)
}

/// Whether a socket of the namespace is the end at `local` of the connection to `remote`, accepted or not yet.
///
/// # Errors
/// [`NetError::Netlink`] if the kernel cannot be asked.
pub fn has_connection(
    namespace: &Namespace,
    local: SocketAddr,
    remote: SocketAddr,
) -> Result<bool, NetError> {
    let canonical = |address: SocketAddr| (address.ip().to_canonical(), address.port());
    let is_its = |payload: &Vec<u8>| {
        let own_and_other = ends(payload).map(|(own, other)| (canonical(own), canonical(other)));
        own_and_other == Some((canonical(local), canonical(remote)))
    };
    for family in [AF_INET, AF_INET6] {
        if dump_family(namespace, family, StateFlags::all() - StateFlags::LISTEN)?.iter().any(is_its) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Every established connection of the namespace: its own end, and the other.
///
/// # Errors
/// [`NetError::Netlink`] if the kernel cannot be asked.
pub fn connections(namespace: &Namespace) -> Result<Vec<(SocketAddr, SocketAddr)>, NetError> {
    let mut connections = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let payloads = dump_family(namespace, family, StateFlags::ESTABLISHED)?;
        connections.extend(payloads.iter().filter_map(|payload| ends(payload)));
    }
    Ok(connections)
}

/// A connection's own end, and the other.
fn ends(payload: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let id = InetResponse::parse(payload).ok()?.header.socket_id;
    Some((
        SocketAddr::new(id.source_address, id.source_port),
        SocketAddr::new(id.destination_address, id.destination_port),
    ))
}

fn dump_family(namespace: &Namespace, family: u8, states: StateFlags) -> Result<Vec<Vec<u8>>, NetError> {
    let request = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::INFO,
        states,
        socket_id: if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() },
    };
    let mut body = vec![0; request.buffer_len()];
    request.emit(&mut body);
    dump(namespace, netlink_sys::protocols::NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, &body)
        .map_err(|cause| NetError::Netlink { action: "list TCP sockets", cause })
}

fn parse(payload: &[u8]) -> io::Result<Option<Listener>> {
    let response = InetResponse::parse(payload).map_err(io::Error::other)?;
    let header = &response.header;
    if header.state != TCP_LISTEN {
        return Ok(None);
    }
    let v6only = (header.family == AF_INET6)
        .then(|| response.nlas.iter().any(|attribute| matches!(attribute, Nla::SkV6Only(true))));
    Ok(Some(Listener {
        addr: SocketAddr::new(header.socket_id.source_address, header.socket_id.source_port),
        inode: u64::from(header.inode),
        cookie: cookie(header.socket_id.cookie),
        v6only,
        mptcp: response.nlas.iter().any(is_mptcp),
        device: header.socket_id.interface_id,
        uid: header.uid,
        // Of a listener: how many connections wait, and how many may.
        is_full: header.recv_queue > header.send_queue,
    }))
}

/// sock_diag sends the cookie as two native u32, low half first.
fn cookie(halves: [u8; 8]) -> u64 {
    let [a, b, c, d, e, f, g, h] = halves;
    let (low, high) = (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]));
    u64::from(high) << 32 | u64::from(low)
}

fn is_mptcp(info: &Nla) -> bool {
    if info.kind() & !NLA_F_NESTED != INET_DIAG_ULP_INFO {
        return false;
    }
    let mut nested = vec![0; info.value_len()];
    info.emit_value(&mut nested);
    attribute(&nested, INET_ULP_INFO_NAME) == Some(b"mptcp\0")
}

/// `NLA_F_NESTED` of linux/netlink.h: a flag in the type of attributes that hold others.
const NLA_F_NESTED: u16 = 1 << 15;

#[cfg(test)]
#[path = "listeners_tests.rs"]
mod tests;
