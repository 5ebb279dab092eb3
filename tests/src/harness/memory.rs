//! What a process holds, and what the kernel holds for nobody in particular.
//!
//! Network buffers that the kernel does not charge to a socket show in no single number: their heads
//! are unreclaimable slab, their data are pages that /proc/meminfo does not name. So the kernel's
//! part is everything that is neither free, nor cache, nor a process's. Invariant: what other
//! processes of this machine use or cache cancels out.

use anyhow::{Context, Result, ensure};

use super::wait::{patience, until};

/// What /proc/meminfo names and what does not belong to the kernel's own use.
const NOT_THE_KERNELS: [&str; 9] = [
    "MemFree",
    "Buffers",
    "Cached",
    "SwapCached",
    "AnonPages",
    "SReclaimable",
    "KernelStack",
    "PageTables",
    "Percpu",
];

/// Bytes in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    user: u64,
    kernel: u64,
}

impl Memory {
    /// What process `pid` and the kernel hold now.
    pub(crate) fn now(pid: u32) -> Result<Self> {
        Ok(Self { user: resident(pid)?, kernel: kernel()? })
    }

    /// Expects at most `limit` more than `self`, as soon as the rest of the machine lets the number
    /// settle; returns the growth.
    pub(crate) fn expect_growth_below(self, limit: u64, pid: u32) -> Result<u64> {
        let mut growth = u64::MAX;
        let settled = until("memory is back in bounds", patience(15), || {
            let now = Self::now(pid)?;
            growth = now.user.saturating_sub(self.user) + now.kernel.saturating_sub(self.kernel);
            Ok((growth <= limit).then_some(()))
        });
        settled.with_context(|| format!("memory grew by {growth} bytes, at most {limit} were expected"))?;
        Ok(growth)
    }
}

/// Resident memory of a process.
pub(crate) fn resident(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let table = std::fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))?;
    kibibytes(&table, "VmRSS").with_context(|| format!("{path} has no VmRSS"))
}

fn kernel() -> Result<u64> {
    let table = std::fs::read_to_string("/proc/meminfo")?;
    let total = kibibytes(&table, "MemTotal").context("/proc/meminfo has no MemTotal")?;
    // Kernels that do not name one of them count it as their own, the same before and after.
    let others: u64 = NOT_THE_KERNELS.iter().filter_map(|name| kibibytes(&table, name)).sum();
    ensure!(others < total, "/proc/meminfo does not add up: {table}");
    Ok(total - others)
}

fn kibibytes(table: &str, name: &str) -> Option<u64> {
    let value = table.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(value.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}
