//! The connections of one network namespace, asked for one by one by sock_diag(7).
//!
//! Invariant: the netlink sockets are opened in the namespace once, so that a process that gave up its rights meanwhile
//! can still ask. They keep the namespace, not what runs in it.

use std::{
    io,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use netlink_packet_core::{Emitable, Parseable};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, SOCK_DIAG_BY_FAMILY, TCP_LISTEN,
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags},
};
use netlink_sys::{
    Socket,
    protocols::{NETLINK_ROUTE, NETLINK_SOCK_DIAG},
};

use super::{
    links::{IFINFO_INDEX, IFINFO_LEN},
    namespace::Namespace,
    netlink::{ask, ask_for_all, open, u32_at},
};

/// `INET_DIAG_NOCOOKIE`: whichever socket it is.
const ANY_COOKIE: [u8; 8] = [0xff; 8];

/// How many interfaces of a namespace are tried. Whoever made more of them there could keep those busy that ask.
const MAX_INTERFACES: usize = 64;

/// The sockets of a namespace.
#[derive(Debug)]
pub struct Clients(Mutex<Questions>);

#[derive(Debug)]
struct Questions {
    sockets: Socket,
    interfaces: Socket,
}

impl Clients {
    /// Those of a namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn of(namespace: &Namespace) -> io::Result<Self> {
        let (sockets, interfaces) = (open(namespace, NETLINK_SOCK_DIAG)?, open(namespace, NETLINK_ROUTE)?);
        Ok(Self(Mutex::new(Questions { sockets, interfaces })))
    }

    /// Whether one of them is connected from `from` to `to`.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn have(&self, from: SocketAddr, to: SocketAddr) -> io::Result<bool> {
        let (from, to) = (canonical(from), canonical(to));
        let questions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if questions.have(from, to, 0)? {
            return Ok(true);
        }
        // The kernel finds a socket that is bound to an interface (SO_BINDTODEVICE) by that one only.
        for interface in questions.interfaces()? {
            if questions.have(from, to, interface)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Questions {
    /// Whether a socket is connected so that is bound to no interface, or to this one.
    fn have(&self, from: SocketAddr, to: SocketAddr, interface: u32) -> io::Result<bool> {
        let request = InetRequest {
            family: if from.is_ipv4() { AF_INET } else { AF_INET6 },
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all(),
            socket_id: SocketId {
                source_address: from.ip(),
                source_port: from.port(),
                destination_address: to.ip(),
                destination_port: to.port(),
                interface_id: interface,
                cookie: ANY_COOKIE,
            },
        };
        let mut body = vec![0; request.buffer_len()];
        request.emit(&mut body);
        match ask(&self.sockets, SOCK_DIAG_BY_FAMILY, &body) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            // Without a connection the kernel goes on to listeners.
            answers => Ok(answers?.iter().any(|payload| is_connected(payload))),
        }
    }

    /// The namespace's interfaces, by index.
    fn interfaces(&self) -> io::Result<Vec<u32>> {
        let all = ask_for_all(&self.interfaces, libc::RTM_GETLINK, &[0; IFINFO_LEN])?;
        Ok(all.iter().filter_map(|link| u32_at(link, IFINFO_INDEX)).take(MAX_INTERFACES).collect())
    }
}

fn is_connected(payload: &[u8]) -> bool {
    InetResponse::parse(payload).is_ok_and(|response| response.header.state != TCP_LISTEN)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use nix::sys::socket::sockopt::BindToDevice;
    use rustix::net::{AddressFamily, SocketType, connect, socket};

    use super::*;

    fn connect_on_loopback(to: SocketAddr) -> TcpStream {
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = socket(family, SocketType::STREAM, None).unwrap();
        nix::sys::socket::setsockopt(&socket, BindToDevice, &"lo".into()).unwrap();
        connect(&socket, &to).unwrap();
        socket.into()
    }

    #[test]
    fn a_connection_is_there_and_another_one_or_a_listener_is_not() {
        let clients = Clients::of(&Namespace::current().unwrap()).unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let to = listener.local_addr().unwrap();
            let stream = TcpStream::connect(to).unwrap();
            let from = stream.local_addr().unwrap();
            assert!(clients.have(from, to).unwrap(), "{from} to {to}");
            let bound = connect_on_loopback(to);
            assert!(clients.have(bound.local_addr().unwrap(), to).unwrap(), "to {to}, bound to lo");
            let other = SocketAddr::new(from.ip(), 1);
            assert!(!clients.have(other, to).unwrap(), "{other} to {to}");
            assert!(!clients.have(to, other).unwrap(), "{to} listens, and is not connected to {other}");
        }
    }
}
