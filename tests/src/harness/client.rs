//! The client side: connections out of a namespace, and what must come of them.
//!
//! Invariant: "refused" means the peer's kernel answered with a reset. A timeout is neither
//! served nor refused and always fails the trial.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::sockopt::BindToDevice;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket};

use super::netns::Netns;
use super::service::{Service, TRAILER};
use super::transcript::note;
use super::wait::patience;

/// Exchanges of a connection that is not a short one.
const MANY: usize = 30;

/// Opens one connection from inside `netns`.
pub(crate) fn connect(netns: &Netns, to: impl Into<SocketAddr>) -> Result<TcpStream> {
    let to = to.into();
    let stream = netns.run(|| dial(to)).with_context(|| format!("failed to connect to {to}"))?;
    Ok(stream)
}

/// Connects from the calling thread's namespace, with deadlines on everything after.
pub(crate) fn dial(to: SocketAddr) -> std::io::Result<TcpStream> {
    with_deadlines(TcpStream::connect_timeout(&to, patience(5))?)
}

/// [`dial`] from an address of the namespace.
pub(crate) fn dial_from(source: Ipv4Addr, to: SocketAddrV4) -> Result<TcpStream> {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(source, 0)))
        .with_context(|| format!("failed to bind to {source}"))?;
    socket::connect(socket.as_raw_fd(), &SockaddrIn::from(to))
        .with_context(|| format!("failed to connect to {to} from {source}"))?;
    Ok(with_deadlines(socket.into())?)
}

/// [`dial`] with a socket that is bound to an interface, as some clients' are.
pub(crate) fn dial_on(interface: &str, to: SocketAddrV4) -> Result<TcpStream> {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, BindToDevice, &interface.into())
        .with_context(|| format!("failed to bind to {interface}"))?;
    socket::connect(socket.as_raw_fd(), &SockaddrIn::from(to))
        .with_context(|| format!("failed to connect to {to} on {interface}"))?;
    Ok(with_deadlines(socket.into())?)
}

/// A stream that waits for nothing for ever, and sends at once.
pub(crate) fn with_deadlines(stream: TcpStream) -> std::io::Result<TcpStream> {
    stream.set_read_timeout(Some(patience(10)))?;
    stream.set_write_timeout(Some(patience(10)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends `text` and expects exactly it back.
pub(crate) fn exchange(stream: &mut TcpStream, text: &[u8]) -> Result<()> {
    stream.write_all(text).context("failed to send")?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).context("failed to receive the echo")?;
    ensure!(answer == text, "the echo differs from what was sent");
    Ok(())
}

/// One whole connection: connect, exchange, half-close, and the service's orderly end.
/// Returns the client's own address, to compare with what the service saw.
pub(crate) fn answers(netns: &Netns, to: impl Into<SocketAddr>) -> Result<SocketAddr> {
    let to = to.into();
    let outcome = netns.run(|| round(to));
    note(format!(
        "connect to {to}: {}",
        outcome.as_ref().map_or_else(|e| format!("{e:#}"), |_| "served".to_owned())
    ));
    outcome
}

/// [`answers`] in the calling thread's namespace.
pub(crate) fn round(to: SocketAddr) -> Result<SocketAddr> {
    let mut stream = dial(to).with_context(|| format!("failed to connect to {to}"))?;
    let from = stream.local_addr()?;
    exchange(&mut stream, b"ping through the bridge")?;
    finish(stream)?;
    Ok(from)
}

/// One whole connection with as many exchanges as it takes for a relay by sockmap to leave it to the kernel.
pub(crate) fn many_rounds(to: SocketAddr) -> Result<()> {
    let mut stream = dial(to).with_context(|| format!("failed to connect to {to}"))?;
    for _ in 0..MANY {
        exchange(&mut stream, b"ping through the bridge")?;
    }
    finish(stream)
}

/// Half-closes and expects the service's trailer and then the end of the stream.
pub(crate) fn finish(mut stream: TcpStream) -> Result<()> {
    stream.shutdown(Shutdown::Write)?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).context("failed to read to the end after half-closing")?;
    ensure!(rest == TRAILER, "after half-close the service sent {:?}", String::from_utf8_lossy(&rest));
    Ok(())
}

/// One connection that has exchanged something and stays open, for [`ended_by_service`].
pub(crate) fn hold(netns: &Netns, to: impl Into<SocketAddr>) -> Result<TcpStream> {
    let mut stream = connect(netns, to)?;
    exchange(&mut stream, b"ping through the bridge")?;
    Ok(stream)
}

/// Stops the service, which ends the connections before their clients do, so that its side keeps them in TIME_WAIT.
///
/// For connections that began with a SYN cookie: an ACK that comes after its connection has ended without a TIME_WAIT
/// opens it again, because the cookie is still good. That is so for every listener, without a program of ours: a
/// recorded ACK that was sent again to a bound listener opened a connection on Linux 6.18. The service then waits for
/// a client that is gone, and at its end the kernel sends its FIN for some two minutes more, and keeps the namespace
/// and its programs as long.
pub(crate) fn ended_by_service(service: Service, held: Vec<TcpStream>) -> Result<()> {
    service.stop();
    held.into_iter().try_for_each(|mut stream| {
        let more = stream.read(&mut [0]).context("failed to read to the end")?;
        ensure!(more == 0, "the service sent something more before it ended the connection");
        Ok(())
    })
}

/// Expects a reset in answer to the SYN.
pub(crate) fn refused(netns: &Netns, to: impl Into<SocketAddr>) -> Result<()> {
    let to = to.into();
    let outcome = netns.run(|| dial(to));
    note(format!("connect to {to}, expecting refusal: {:?}", outcome.as_ref().map(|_| "connected")));
    match outcome {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => {
            Err(error).with_context(|| format!("connection to {to} was to be refused, not to fail otherwise"))
        }
        Ok(_) => bail!("connection to {to} was to be refused and was accepted"),
    }
}

/// Keeps making whole connections while `body` runs; every one must be served.
/// Returns the body's value and how many connections there were, at least `minimum`.
pub(crate) fn while_connecting<T: Send>(
    netns: &Netns,
    to: impl Into<SocketAddr>,
    minimum: u64,
    body: impl FnOnce() -> Result<T> + Send,
) -> Result<(T, u64)> {
    let to = to.into();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            netns.run(|| -> Result<u64> {
                let mut served = 0;
                while served < minimum || !stop.load(Ordering::Relaxed) {
                    round(to).with_context(|| format!("connection {} of the loop", served + 1))?;
                    served += 1;
                }
                Ok(served)
            })
        });
        let value = body();
        stop.store(true, Ordering::Relaxed);
        let served = traffic.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        note(format!("connection loop to {to}: {:?}", served.as_ref().map_err(|error| format!("{error:#}"))));
        Ok((value?, served?))
    })
}
