//! An in-process TCP service that echoes, and records whom the kernel says it talks to.
//!
//! Invariants: one thread owns the listener and every connection, so [`Service::stop`] closes all
//! of them before it returns; after a client's half-close the service still answers with the rest
//! of the echo and [`TRAILER`], then closes.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};

use super::netns::Netns;

/// Sent after the echo once the client has shut down its sending side.
pub(crate) const TRAILER: &[u8] = b"<end>";
/// Echo bytes held for a client that does not read; reading stops above it.
const HELD: usize = 256 * 1024;

/// One accepted connection as `getpeername` and `getsockname` describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) remote: SocketAddr,
    pub(crate) local: SocketAddr,
}

/// A running service; dropping it closes everything it holds.
pub(crate) struct Service {
    peers: Arc<Mutex<Vec<Peer>>>,
    waker: UnixStream,
    thread: Option<JoinHandle<()>>,
}

/// Whether a listener shares its port with others of its group.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Port {
    Exclusive,
    Shared,
}

/// Opens a listener inside a namespace, with `SO_REUSEADDR` as real services have it.
pub(crate) fn listener(netns: &Netns, address: SocketAddr, port: Port) -> Result<TcpListener> {
    netns.run(|| open_listener(address, port)).with_context(|| format!("failed to listen on {address}"))
}

fn open_listener(address: SocketAddr, port: Port) -> Result<TcpListener> {
    let fd = open_socket(address, port)?;
    listen(&fd, Backlog::MAXCONN)?;
    Ok(TcpListener::from(fd))
}

/// A bound socket that does not listen yet, in the calling thread's namespace.
pub(crate) fn bound_socket(address: SocketAddr) -> Result<OwnedFd> {
    open_socket(address, Port::Exclusive)
}

fn open_socket(address: SocketAddr, port: Port) -> Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::ReusePort, &(port == Port::Shared))?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(fd)
}

impl Service {
    /// Listens on `address` inside `netns` and serves.
    pub(crate) fn start(netns: &Netns, address: impl Into<SocketAddr>) -> Result<Self> {
        Self::serve(listener(netns, address.into(), Port::Exclusive)?)
    }

    /// Like [`Service::start`], as one member of a `SO_REUSEPORT` group.
    pub(crate) fn start_shared(netns: &Netns, address: impl Into<SocketAddr>) -> Result<Self> {
        Self::serve(listener(netns, address.into(), Port::Shared)?)
    }

    /// Serves on an existing listener.
    pub(crate) fn serve(listener: TcpListener) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let (waker, wake) = UnixStream::pair()?;
        let peers = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&peers);
        let thread = std::thread::spawn(move || Loop { listener, wake, seen, connections: Vec::new() }.run());
        Ok(Self { peers, waker, thread: Some(thread) })
    }

    /// Every connection accepted so far.
    pub(crate) fn peers(&self) -> Vec<Peer> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Closes the listener and all connections, and returns once they are closed.
    pub(crate) fn stop(self) {
        drop(self);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Closing our end makes the loop's end readable; a loop that already ended needs no waking.
        drop(self.waker.shutdown(std::net::Shutdown::Both));
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("suite: a service thread panicked");
        }
    }
}

struct Loop {
    listener: TcpListener,
    wake: UnixStream,
    seen: Arc<Mutex<Vec<Peer>>>,
    connections: Vec<Connection>,
}

impl Loop {
    fn run(mut self) {
        loop {
            let ready = self.wait();
            if ready[0] {
                return;
            }
            let mut flags = ready[2..].iter();
            self.connections
                .retain_mut(|connection| !flags.next().is_some_and(|ready| *ready) || connection.pump());
            if ready[1] {
                self.accept();
            }
        }
    }

    /// Blocks until something is ready: waker, listener, then one flag per connection.
    fn wait(&self) -> Vec<bool> {
        let mut fds = vec![
            PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(self.connections.iter().map(|c| PollFd::new(c.stream.as_fd(), c.interest())));
        poll(&mut fds, PollTimeout::NONE).expect("poll on open descriptors works");
        fds.iter().map(|fd| fd.any().unwrap_or(true)).collect()
    }

    fn accept(&mut self) {
        while let Ok((stream, remote)) = self.listener.accept() {
            // A client that reset already has no names to record and nothing to echo.
            let (Ok(named), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else { continue };
            assert_eq!(named, remote, "accept(2) and getpeername(2) agree");
            stream.set_nonblocking(true).expect("a socket can be made non-blocking");
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(Peer { remote, local });
            self.connections.push(Connection { stream, held: Vec::new(), ended: false });
        }
    }
}

struct Connection {
    stream: TcpStream,
    held: Vec<u8>,
    ended: bool,
}

impl Connection {
    fn interest(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, !self.ended && self.held.len() < HELD);
        flags.set(PollFlags::POLLOUT, !self.held.is_empty());
        flags
    }

    /// Moves what can be moved; `false` when the connection is finished or broken.
    fn pump(&mut self) -> bool {
        self.receive().and_then(|()| self.send()).is_ok() && !(self.ended && self.held.is_empty())
    }

    fn receive(&mut self) -> std::io::Result<()> {
        let mut chunk = [0u8; 64 * 1024];
        while !self.ended && self.held.len() < HELD {
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    self.ended = true;
                    self.held.extend_from_slice(TRAILER);
                }
                Ok(length) => self.held.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn send(&mut self) -> std::io::Result<()> {
        while !self.held.is_empty() {
            match self.stream.write(&self.held) {
                Ok(length) => drop(self.held.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
