//! Processor time: what a relay's own processes used, and how busy the whole machine was meanwhile.
//!
//! The first is what the relay costs in its own name. What the kernel does for it in softirqs or in threads of its
//! own is only in the second, together with both ends of the connection and whatever else runs on the machine.
//! Invariant: both are taken over the same time.

use std::ops::AddAssign;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::harness::group::{cpu_time, ticks_per_second};

/// Processor time used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Usage {
    /// By the relay's processes; `None` without a relay.
    pub(super) relay: Option<Duration>,
    /// By everything on the machine.
    pub(super) machine: Duration,
}

impl Usage {
    /// What is used until `body` has ended.
    pub(super) fn of<T>(relay: Option<u32>, body: impl FnOnce() -> Result<T>) -> Result<(T, Self)> {
        let before = Self::now(relay)?;
        let value = body()?;
        let after = Self::now(relay)?;
        let difference = |after: Duration, before: Duration| after.saturating_sub(before);
        let relay = after.relay.zip(before.relay).map(|(after, before)| difference(after, before));
        Ok((value, Self { relay, machine: difference(after.machine, before.machine) }))
    }

    fn now(relay: Option<u32>) -> Result<Self> {
        Ok(Self { relay: relay.map(cpu_time).transpose()?, machine: machine_busy()? })
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.relay = match (self.relay, other.relay) {
            (Some(one), Some(other)) => Some(one + other),
            (one, other) => one.or(other),
        };
        self.machine += other.machine;
    }
}

/// Time all processors together were not idle since the system started.
fn machine_busy() -> Result<Duration> {
    let text = std::fs::read_to_string("/proc/stat").context("failed to read /proc/stat")?;
    let ticks = busy_ticks(&text).context("failed to understand /proc/stat")?;
    Ok(Duration::from_secs_f64(ticks as f64 / ticks_per_second()?))
}

/// user, nice, system, irq and softirq; not idle, iowait and steal. Guests are in user and nice.
fn busy_ticks(stat: &str) -> Option<u64> {
    let fields: Vec<u64> =
        stat.strip_prefix("cpu ")?.lines().next()?.split_whitespace().map_while(|f| f.parse().ok()).collect();
    Some(fields.get(..3)?.iter().sum::<u64>() + fields.get(5..7)?.iter().sum::<u64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_what_is_not_idle() {
        assert_eq!(busy_ticks("cpu  1 2 3 1000 1000 4 5 1000 0 0\ncpu0 1 2"), Some(15));
        assert_eq!(busy_ticks("cpu  1 2"), None);
    }

    #[test]
    fn without_a_relay_none_is_reported() {
        let mut sum = Usage::default();
        sum += Usage { relay: None, machine: Duration::from_secs(1) };
        assert_eq!(sum, Usage { relay: None, machine: Duration::from_secs(1) });
        sum += Usage { relay: Some(Duration::from_secs(2)), machine: Duration::from_secs(1) };
        assert_eq!(sum, Usage { relay: Some(Duration::from_secs(2)), machine: Duration::from_secs(2) });
    }
}
