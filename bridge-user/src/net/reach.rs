//! What answers when this host itself connects somewhere: a socket of the namespace, or something that no list of
//! sockets shows, behind a NAT rule for example.
//!
//! Invariants: one connection, bounded in time, over which nothing is sent.

use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, connect, getsockname, ipproto, socket_with, sockopt},
};

use super::{NetError, listeners::has_connection, namespace::Namespace};

/// How long an answer is waited for. A host answers itself at once, and a container within milliseconds.
const LIMIT: Duration = Duration::from_secs(1);

/// What came of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A socket of the namespace took it, or holds it until its program does.
    Here,
    /// Something else took it.
    Elsewhere,
    /// Nothing did, within the limit.
    Nothing,
}

/// Connects once from the namespace itself, and tells what answers.
///
/// # Errors
/// When there is no socket to be had, or the kernel does not list its connections.
pub fn answer_at(namespace: &Namespace, target: SocketAddr) -> Result<Answer, NetError> {
    let failed = |cause: io::Error| NetError::Connect { target, cause };
    let connected = namespace.run(|| connected(target)).map_err(io::Error::other).and_then(|outcome| outcome);
    let Some(socket) = connected.map_err(failed)? else { return Ok(Answer::Nothing) };
    let own = getsockname(&socket).ok().and_then(|own| SocketAddr::try_from(own).ok());
    let own = own.ok_or_else(|| failed(io::Error::other("the socket has no address")))?;
    Ok(if has_connection(namespace, target, own)? { Answer::Here } else { Answer::Elsewhere })
}

/// A connection to `target` from this thread's namespace; `None` if there was no answer, or a refusal.
fn connected(target: SocketAddr) -> io::Result<Option<OwnedFd>> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    match connect(&socket, &target) {
        Ok(()) => return Ok(Some(socket)),
        Err(Errno::INPROGRESS) => {}
        Err(_) => return Ok(None),
    }
    let deadline = Instant::now() + LIMIT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let mut waited = [PollFd::new(std::os::fd::AsFd::as_fd(&socket), PollFlags::POLLOUT)];
        match poll(&mut waited, timeout) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(sockopt::socket_error(&socket)?.is_ok().then_some(socket))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listener_answers_here_though_nobody_accepts_and_a_closed_port_does_not() {
        let namespace = Namespace::current().expect("/proc");
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let target = listener.local_addr().expect("address");
        assert_eq!(answer_at(&namespace, target).expect("an answer"), Answer::Here);
        drop(listener);
        assert_eq!(answer_at(&namespace, target).expect("an answer"), Answer::Nothing);
    }
}
