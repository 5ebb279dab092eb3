//! Waiting for the links and addresses of a namespace to change.
//!
//! Invariant: a change is only a reason to look; what was missed because too much happened at once is one, too.

use std::{io, os::fd::OwnedFd};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink, recv,
        socket_with,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{namespace::Namespace, sys::register};

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR` of linux/rtnetlink.h.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;
/// What is read at once; the messages themselves are not looked at.
const BUFFER: usize = 32 * 1024;

/// The kernel's messages about one namespace.
pub(crate) struct LinkChanges {
    /// None once the kernel tells nothing any more.
    socket: Option<AsyncFd<OwnedFd>>,
}

impl LinkChanges {
    /// From now on. Needs a runtime.
    ///
    /// # Errors
    /// When no socket can be had in the namespace.
    pub(crate) fn of(namespace: &Namespace) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // The protocol of number 0, which is `NETLINK_ROUTE`.
        let open = || socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None);
        let socket = namespace.run(open)??;
        bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        Ok(Self { socket: Some(register(socket, Interest::READABLE)?) })
    }

    /// Ends when something has changed since the last call; never, once the kernel tells nothing any more.
    pub(crate) async fn changed(&mut self) {
        if let Some(socket) = &mut self.socket {
            match drain(socket).await {
                Ok(()) => return,
                Err(_) => self.socket = None,
            }
        }
        std::future::pending().await
    }
}

async fn drain(socket: &mut AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut ready = socket.readable_mut().await?;
    let mut buffer = [0u8; BUFFER];
    loop {
        match recv(ready.get_inner(), &mut buffer[..], RecvFlags::empty()) {
            // More came than the socket holds, or some of it.
            Ok(_) | Err(Errno::NOBUFS) => {}
            Err(Errno::WOULDBLOCK) => break,
            Err(error) => return Err(error.into()),
        }
    }
    ready.clear_ready();
    Ok(())
}
