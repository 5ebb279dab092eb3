//! Ctrl-C as an ordinary error: the work stops at the next check and every guard cleans up.
//!
//! What is pinned in bpffs outlives a killed process, so the default action of these signals would leave an
//! attachment behind. Invariant: [`catch`] runs before any other thread starts, so all threads have them blocked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{SigSet, Signal};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// From here on, SIGINT, SIGTERM and SIGHUP only set the flag.
pub(crate) fn catch() -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("failed to block signals")?;
    std::thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            eprintln!("\nsuite: {signal}: cleaning up");
            REQUESTED.store(true, Ordering::Relaxed);
        }
    });
    Ok(())
}

/// Whether the work is to stop.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Fails once the work is to stop.
pub(crate) fn check() -> Result<()> {
    ensure!(!requested(), "interrupted");
    Ok(())
}

/// How long a piece of work is to go on; an interrupt ends it early.
pub(crate) struct Clock {
    started: Instant,
    length: Duration,
}

impl Clock {
    /// Starts now.
    pub(crate) fn start(length: Duration) -> Self {
        Self { started: Instant::now(), length }
    }

    /// Whether it is time to stop.
    pub(crate) fn over(&self) -> bool {
        self.started.elapsed() >= self.length || requested()
    }

    /// Time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}
