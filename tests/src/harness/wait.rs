//! Deadlines and scale: trials poll for what they wait for, and shrink on emulated processors.
//!
//! Invariant: a deadline only bounds failure; no trial's success depends on how long it waited.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How much smaller counts are, and how much longer deadlines are, on this machine.
fn divisor() -> usize {
    static DIVISOR: OnceLock<usize> = OnceLock::new();
    *DIVISOR.get_or_init(|| {
        let wanted = std::env::var("BRIDGE_TEST_SCALE").ok().and_then(|text| text.parse().ok());
        let emulated = || std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("QEMU"));
        wanted.unwrap_or_else(|| if emulated() { 10 } else { 1 }).max(1)
    })
}

/// `count` on real hardware, a `BRIDGE_TEST_SCALE`-th of it (10 under QEMU) elsewhere.
pub(crate) fn scaled(count: usize) -> usize {
    (count / divisor()).max(1)
}

/// A deadline of `seconds` on real hardware, stretched on slow machines.
pub(crate) fn patience(seconds: u64) -> Duration {
    Duration::from_secs(seconds) * u32::try_from(divisor().min(6)).unwrap_or(6)
}

/// Polls `probe` until it yields a value; `what` names the awaited thing when time runs out.
pub(crate) fn until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("gave up after {limit:?} waiting until {what}");
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Whether the running kernel is at least `major.minor`.
pub(crate) fn kernel_at_least(major: u32, minor: u32) -> Result<bool> {
    let release = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(have_major)), Some(Ok(have_minor))) => Ok((have_major, have_minor) >= (major, minor)),
        _ => bail!("cannot read a version from kernel release {release}"),
    }
}
