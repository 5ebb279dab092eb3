//! Handing a descriptor to tokio's epoll, which is `unsafe` and done here alone.

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Registers a non-blocking descriptor with the current runtime.
///
/// # Errors
/// If epoll refuses it or the runtime shuts down.
pub(crate) fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and stays the same descriptor for as long as it exists, which is as long as the
    // `AsyncFd` that takes it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
