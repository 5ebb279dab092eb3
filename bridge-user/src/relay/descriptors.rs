//! How many descriptors the process may have, and how much memory the machine has. A relayed connection takes two
//! descriptors, and two for each pipe in use.

use std::{fs, io};

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

/// How many descriptors the process may have now.
pub(super) fn descriptor_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The machine's memory in bytes; a small machine's where the kernel does not say.
pub fn memory() -> u64 {
    const SMALL: u64 = 1 << 30;
    let table = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = table.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kibibytes.map_or(SMALL, |kibibytes| kibibytes.saturating_mul(1024))
}
