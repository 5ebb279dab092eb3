//! How many descriptors the process may have: a relayed connection takes two, and two for each pipe in use.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the process's soft limit on descriptors to the hard one, as a program that relays should once at
/// its start: the usual soft limit of 1024 is good for 500 connections. Returns the limit, `u64::MAX` for
/// none.
///
/// # Errors
/// If the kernel refuses.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(maximum.unwrap_or(u64::MAX))
}
