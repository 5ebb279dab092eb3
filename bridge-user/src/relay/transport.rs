//! The TCP options every socket of the relay has, towards the client and towards the target.
//!
//! Invariants: decided once per relay by trying on a socket that goes nowhere, then only applied.
//!
//! - Armed to reset on close, see [`super::stream`]; TCP_NODELAY; urgent data inline.
//! - No pacing. Where net.ipv4.tcp_congestion_control is BBR, every socket paces its sending with timers.
//!   Between processes of one machine there is nothing to pace for, and it costs more than the relay itself:
//!   towards the client 10.4 → 22.5 Gb/s when the relay's own sockets stopped (medians of 5 alternating runs
//!   of 0.8 s on 2 busy cores, kernel 6.18, veth and bridge; spread 7.7–11.5 and 9.4–24). Elsewhere the
//!   host's default stays.
//! - A fixed receive buffer, where the relay may set it (CAP_NET_ADMIN). Left to itself the kernel lets it
//!   grow to net.ipv4.tcp_rmem's maximum, 6 or 32 MiB, and a reader that stalls in bulk fills all of it: 35
//!   MiB in the relay's two sockets of one connection (ss -tm), 6 MiB with the fixed one, at the same speed
//!   (put 21.2 and 21.4, get 19.7 and 20.8 Gb/s, medians of 9 alternating runs, spread 7–33 on a busy
//!   machine).

use std::os::fd::AsFd;

use nix::sys::socket::{
    setsockopt,
    sockopt::{RcvBufForce, SndBufForce},
};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt},
};

use super::ledger::Piece;
use crate::net::namespace::Namespace;

/// Bytes; the kernel doubles it for its bookkeeping. Far above what is in flight on a local hop.
const RECEIVE_BUFFER: usize = 1024 * 1024;

/// What this host needs and allows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Transport {
    /// Congestion control to set; `None` keeps the default.
    congestion: Option<&'static str>,
    fixed_buffer: bool,
}

impl Transport {
    /// Finds out for the sockets of a namespace.
    ///
    /// # Errors
    /// If no TCP socket can be made to try on.
    pub(super) fn of(namespace: &Namespace) -> Result<Self, Errno> {
        let probe = namespace
            .run(|| socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None))
            .map_err(|error| Errno::from_raw_os_error(error.raw_os_error()))??;
        let congestion = match sockopt::tcp_congestion(&probe) {
            // Cubic may need CAP_NET_ADMIN or a module; reno is in every kernel and open to everybody.
            Ok(default) if default.starts_with("bbr") => {
                ["cubic", "reno"].into_iter().find(|name| sockopt::set_tcp_congestion(&probe, name).is_ok())
            }
            _ => None,
        };
        let fixed_buffer = setsockopt(&probe, RcvBufForce, &RECEIVE_BUFFER).is_ok();
        Ok(Self { congestion, fixed_buffer })
    }

    /// Sets the options, before connect(2) or listen(2).
    pub(super) fn apply(&self, socket: impl AsFd) -> Result<(), Errno> {
        let socket = socket.as_fd();
        super::stream::arm_reset(socket)?;
        sockopt::set_tcp_nodelay(socket, true)?;
        sockopt::set_socket_oobinline(socket, true)?;
        if let Some(name) = self.congestion {
            sockopt::set_tcp_congestion(socket, name)?;
        }
        if self.fixed_buffer {
            setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER)
                .map_err(|error| Errno::from_raw_os_error(error as i32))?;
        }
        Ok(())
    }
}

/// Shrinks the buffers of a socket to a piece, where that is less than the usual. The kernel takes a smaller one than
/// `net.core.rmem_max` and `wmem_max` from anybody; larger ones it cuts to that for who has no CAP_NET_ADMIN.
pub(super) fn shrink(socket: impl AsFd, piece: Piece) {
    if piece == Piece::FULL {
        return;
    }
    let (socket, bytes) = (socket.as_fd(), piece.bytes());
    // Fails for what is no socket only.
    let _ = setsockopt(&socket, RcvBufForce, &bytes)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(socket, bytes).map_err(|_| nix::Error::EPERM));
    let _ = setsockopt(&socket, SndBufForce, &bytes)
        .or_else(|_| sockopt::set_socket_send_buffer_size(socket, bytes).map_err(|_| nix::Error::EPERM));
}
