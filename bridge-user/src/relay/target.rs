//! Connecting to the target.
//!
//! Invariants: never blocks the worker; the socket is armed to reset before it connects (see
//! [`super::stream`]); every failure names the target, the cause and what to do.

use std::{io, net::SocketAddr, os::fd::OwnedFd, time::Duration};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, ipproto, socket_with},
};
use thiserror::Error;
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    stream::Stream,
    transport::Transport,
    unix::{UnixError, UnixTarget},
    user::User,
};
use crate::model::{backoff::Backoff, target::Target};

/// First wait of a UNIX connect whose listener's queue is full: nothing reports room in it.
const UNIX_RETRY: Duration = Duration::from_millis(5);

/// A target as the relay found it at its start.
#[derive(Debug)]
pub(super) enum Endpoint {
    /// A TCP listener, whoever has it.
    Tcp(SocketAddr),
    /// A UNIX socket, of the service's user.
    Unix(UnixTarget),
}

impl Endpoint {
    /// Looks where the target is.
    pub(super) fn find(target: &Target) -> Self {
        match target {
            Target::Tcp(address) => Self::Tcp(*address),
            Target::Unix(path) => Self::Unix(UnixTarget::find(path)),
        }
    }

    /// Who the threads that connect to it are to be; `None`: to TCP, where that means nothing, as they are.
    pub(super) fn user(&self) -> Option<User> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(target) => Some(target.user()),
        }
    }

    fn target(&self) -> Target {
        match self {
            Self::Tcp(address) => Target::Tcp(*address),
            Self::Unix(target) => Target::Unix(target.path().to_owned()),
        }
    }
}

/// Why the target could not be reached.
#[derive(Debug, Error)]
#[error("failed to connect to {target}: {cause}: {next}", next = hint(.target, *.cause))]
pub(super) struct ConnectError {
    target: Target,
    cause: UnixError,
}

impl ConnectError {
    /// The system's number for the cause, as the key by which log lines are limited.
    pub(super) fn cause(&self) -> Errno {
        match self.cause {
            UnixError::Failed(cause) => cause,
            UnixError::Link => Errno::LOOP,
            UnixError::Owner { .. } | UnixError::Listener(_) => Errno::PERM,
        }
    }

    /// Whether something is there that is not the service's.
    pub(super) fn is_foreign(&self) -> bool {
        self.cause.is_foreign()
    }
}

/// A connection to `endpoint` before `deadline`.
///
/// # Errors
/// [`ConnectError`], with `ETIMEDOUT` when the deadline passed.
pub(super) async fn connect_to(
    endpoint: &Endpoint,
    transport: Transport,
    deadline: Instant,
) -> Result<Stream, ConnectError> {
    let connected = match endpoint {
        Endpoint::Tcp(address) => tcp(*address, transport, deadline).await.map_err(UnixError::Failed),
        Endpoint::Unix(target) => unix(target, deadline).await,
    };
    connected.map_err(|cause| ConnectError { target: endpoint.target(), cause })
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

async fn unix(target: &UnixTarget, deadline: Instant) -> Result<Stream, UnixError> {
    let found = target.open()?;
    let address = SocketAddrUnix::new(found.address())?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let mut backoff = Backoff::new(UNIX_RETRY, UNIX_RETRY * 16);
    loop {
        match connect(&socket, &address) {
            Ok(()) => {
                found.require_listener(&socket)?;
                return Ok(registered(socket, false)?);
            }
            Err(Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        let pause = backoff.pause();
        if Instant::now() + pause >= deadline {
            return Err(Errno::TIMEDOUT.into());
        }
        sleep(pause).await;
    }
}

fn registered(socket: OwnedFd, tcp: bool) -> Result<Stream, Errno> {
    Stream::new(socket, tcp).map_err(|error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

fn hint(target: &Target, cause: UnixError) -> String {
    let unix = matches!(target, Target::Unix(_));
    let UnixError::Failed(cause) = cause else {
        return "find out who changed it; if it is the service's, attach again while the service runs"
            .to_owned();
    };
    let text = match cause {
        Errno::CONNREFUSED if unix => {
            "the socket file is a leftover, nobody listens on it: start the service"
        }
        Errno::CONNREFUSED => "nothing listens there: start the service, or attach the port it listens on",
        Errno::NOENT => "there is no socket at this path: start the service, or correct the path",
        Errno::ACCESS | Errno::PERM if unix => {
            return format!(
                "user {} may not use it: attach again while the service runs, or grant write on the socket and search \
                 (x) on its directories",
                nix::unistd::geteuid()
            );
        }
        Errno::PROTOTYPE | Errno::NOTSOCK => {
            "it is no stream socket: give the path of the service's stream socket"
        }
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
