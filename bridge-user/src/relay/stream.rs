//! A connected, non-blocking stream socket, TCP or UNIX, as the pump uses it: try the system call first, wait
//! only after it said EAGAIN.
//!
//! Invariants: a TCP socket of the relay is armed to reset (SO_LINGER with 0 s) from its first moment, and
//! only [`Stream::disarm_reset`] disarms it. So whatever ends a connection early — an error, a limit, the
//! drain deadline, a panic, `kill -9` — is a reset for both peers and never looks like a complete stream.
//!
//! Readiness is edge-triggered (epoll through tokio). Only a recv(2) that said EAGAIN proves that nothing is
//! left to read: a short read does not (it may have stopped at an urgent mark, or in a UNIX stream behind a message
//! that carried descriptors), nor does splice(2), which stops in front of urgent data for good and can answer 0 there.
//! [`Stream::short_read_is_all`] says where a short read does as well.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt},
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::net::sys::register;

/// A connected stream socket, registered with the worker's runtime.
pub(super) struct Stream {
    fd: AsyncFd<OwnedFd>,
    tcp: bool,
}

impl Stream {
    /// Registers a socket whose connect(2) was called already (epoll reports a hang-up for one that never
    /// was).
    pub(super) fn new(fd: OwnedFd, tcp: bool) -> io::Result<Self> {
        Ok(Self { fd: register(fd, Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY)?, tcp })
    }

    /// Reads what is there, up to the buffer's size; 0 is the end of the stream.
    pub(super) fn try_recv(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        retry(|| recv(self, &mut *buffer, RecvFlags::empty()).map(|(read, _)| read))
    }

    /// Writes as much as the socket takes.
    pub(super) fn try_send(&self, bytes: &[u8]) -> Result<usize, Errno> {
        retry(|| send(self, bytes, SendFlags::NOSIGNAL))
    }

    /// Whether epoll ever reported urgent data here, where reads stop short.
    pub(super) fn saw_urgent(&self) -> bool {
        self.fd.try_io(Interest::PRIORITY, |_| Ok(())).is_ok()
    }

    /// Whether a read that leaves room in its buffer took all there was, which saves the call that would say EAGAIN.
    pub(super) fn short_read_is_all(&self) -> bool {
        self.tcp && !self.saw_urgent()
    }

    /// Sends FIN after everything written so far.
    pub(super) fn shutdown_write(&self) -> Result<(), Errno> {
        shutdown(self, Shutdown::Write)
    }

    /// Ready if epoll reported something to read since [`Self::poll_readable`] last found nothing.
    pub(super) fn poll_read_event(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.fd.poll_read_ready(cx).map_ok(|_| ())
    }

    /// Ready if epoll reported room to write since [`Self::poll_writable`] last found none.
    pub(super) fn poll_write_event(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.fd.poll_write_ready(cx).map_ok(|_| ())
    }

    /// Waits for something to read, forgetting older events. To be called only after EAGAIN, or a
    /// short read that is all; the end of the stream, once reported, stays ready.
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.fd.poll_read_ready(cx))?.clear_ready();
        self.poll_read_event(cx)
    }

    /// Waits for room to write, forgetting older events. To be called only after EAGAIN.
    pub(super) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.fd.poll_write_ready(cx))?.clear_ready();
        self.poll_write_event(cx)
    }

    /// Asks to be woken when the peer resets, for a socket nobody reads at the moment. Ready once the
    /// connection is gone in both directions, with the peer's error if there was one.
    pub(super) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<Option<Errno>> {
        loop {
            let Ok(mut guard) = ready!(self.fd.poll_write_ready(cx)) else { return Poll::Ready(None) };
            if guard.ready().is_write_closed() {
                return Poll::Ready(sockopt::socket_error(self).ok().and_then(Result::err));
            }
            guard.clear_ready();
        }
    }

    /// The error a failed connect(2) left behind.
    pub(super) fn take_error(&self) -> Result<(), Errno> {
        sockopt::socket_error(self)?
    }

    /// After a complete exchange: when it is closed, what is still in the send queue reaches the peer.
    pub(super) fn disarm_reset(&self) {
        if self.tcp {
            // Fails only for what is no socket.
            let _ = sockopt::set_socket_linger(self, None);
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }
}

/// Arms a TCP socket to reset when closed.
pub(super) fn arm_reset(socket: impl AsFd) -> Result<(), Errno> {
    sockopt::set_socket_linger(socket, Some(Duration::ZERO))
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}
