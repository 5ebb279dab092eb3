//! Connecting to the target.
//!
//! Invariants: never blocks the worker; the socket is armed to reset before it connects (see
//! [`super::stream`]); every failure names the target, the cause and what to do.

use std::{io, net::SocketAddr, os::fd::OwnedFd, path::Path, time::Duration};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, ipproto, socket_with},
};
use thiserror::Error;
use tokio::time::{Instant, sleep, timeout_at};

use super::{stream::Stream, transport::Transport};
use crate::model::{backoff::Backoff, target::Target};

/// First wait of a UNIX connect whose listener's queue is full: nothing reports room in it.
const UNIX_RETRY: Duration = Duration::from_millis(5);

/// Why the target could not be reached.
#[derive(Debug, Error)]
#[error("failed to connect to {target}: {cause}: {next}", next = hint(.target, *.cause))]
pub(super) struct ConnectError {
    target: Target,
    cause: Errno,
}

impl ConnectError {
    /// The cause, as the key by which log lines are limited.
    pub(super) fn cause(&self) -> Errno {
        self.cause
    }
}

/// A connection to `target` before `deadline`.
///
/// # Errors
/// [`ConnectError`], with `ETIMEDOUT` when the deadline passed.
pub(super) async fn connect_to(
    target: &Target,
    transport: Transport,
    deadline: Instant,
) -> Result<Stream, ConnectError> {
    let connected = match target {
        Target::Tcp(address) => tcp(*address, transport, deadline).await,
        Target::Unix(path) => unix(path, deadline).await,
    };
    connected.map_err(|cause| ConnectError { target: target.clone(), cause })
}

async fn tcp(address: SocketAddr, transport: Transport, deadline: Instant) -> Result<Stream, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    transport.apply(&socket)?;
    let pending = match connect(&socket, &address) {
        Ok(()) => false,
        // On loopback the handshake is over by now; asking again tells, and saves a round through epoll.
        Err(Errno::INPROGRESS) => match connect(&socket, &address) {
            Ok(()) | Err(Errno::ISCONN) => false,
            Err(Errno::ALREADY) => true,
            Err(error) => return Err(error),
        },
        Err(error) => return Err(error),
    };
    let stream = registered(socket, true)?;
    if pending {
        let established = timeout_at(deadline, std::future::poll_fn(|cx| stream.poll_write_event(cx))).await;
        established.map_err(|_| Errno::TIMEDOUT)?.map_err(|_| Errno::IO)?;
        stream.take_error()?;
    }
    Ok(stream)
}

async fn unix(path: &Path, deadline: Instant) -> Result<Stream, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let mut backoff = Backoff::new(UNIX_RETRY, UNIX_RETRY * 16);
    loop {
        match connect(&socket, &address) {
            Ok(()) => return registered(socket, false),
            Err(Errno::AGAIN) => {}
            Err(error) => return Err(error),
        }
        let pause = backoff.pause();
        if Instant::now() + pause >= deadline {
            return Err(Errno::TIMEDOUT);
        }
        sleep(pause).await;
    }
}

fn registered(socket: OwnedFd, tcp: bool) -> Result<Stream, Errno> {
    Stream::new(socket, tcp).map_err(|error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

fn hint(target: &Target, cause: Errno) -> String {
    let unix = matches!(target, Target::Unix(_));
    let text = match cause {
        Errno::CONNREFUSED if unix => {
            "the socket file is a leftover, nobody listens on it: start the service"
        }
        Errno::CONNREFUSED => "nothing listens there: start the service, or attach the port it listens on",
        Errno::NOENT => "there is no socket at this path: start the service, or correct the path",
        Errno::ACCESS | Errno::PERM if unix => {
            return format!(
                "user {} may not use it: grant write on the socket and search (x) on its directories",
                nix::unistd::geteuid()
            );
        }
        Errno::PROTOTYPE => "it is no stream socket: give the path of the service's stream socket",
        Errno::TIMEDOUT => "the service does not accept (its queue is full): look at why it is stuck",
        Errno::MFILE | Errno::NFILE => {
            "out of file descriptors: raise the limit (LimitNOFILE=) or lower max-connections"
        }
        Errno::ADDRNOTAVAIL => {
            "out of local ports: widen net.ipv4.ip_local_port_range or lower the connection rate"
        }
        _ => "see the service's own log",
    };
    text.to_owned()
}
