//! How long the binary's verbs take, from the start of the process to its end.
//!
//! Invariant: timed runs must succeed, and each starts from the state its name says.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::interrupt;
use super::stats::Summary;
use crate::harness::cli::Cli;
use crate::harness::rig::Rig;

/// Runs of each verb.
const RUNS: usize = 15;

/// What a verb took, run by run.
pub(super) struct Timing {
    pub(super) what: &'static str,
    pub(super) limit: Option<Duration>,
    pub(super) seconds: Vec<f64>,
}

impl Timing {
    /// `None` where nothing is required.
    pub(super) fn passed(&self) -> Option<bool> {
        Some(Summary::of(&self.seconds).median < self.limit?.as_secs_f64())
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        json!({
            "verb": self.what,
            "seconds": self.seconds,
            "median": Summary::of(&self.seconds).median,
            "required_below": self.limit.map(|limit| limit.as_secs_f64()),
            "passed": self.passed(),
        })
    }
}

/// One kind of run: what it is, how long it may take, its command line.
type Step = (&'static str, Option<u64>, &'static [&'static str]);

/// One cycle, from an empty namespace to an empty namespace. The load service listens on 7101.
const CYCLE: &[Step] = &[
    ("attach, first in the namespace", Some(300), &["attach", "first=7101", "--bridge", "br-a"]),
    ("attach, one more service", Some(300), &["attach", "second=7102", "--bridge", "br-a"]),
    ("attach, there already", Some(300), &["attach", "second=7102", "--bridge", "br-a"]),
    ("status", Some(50), &["status"]),
    ("detach, one of two", None, &["detach", "second"]),
    ("detach, last", None, &["detach", "--all"]),
];

/// Times every verb.
pub(super) fn run(rig: &Rig) -> Result<Vec<Timing>> {
    let mut timings: Vec<_> = CYCLE
        .iter()
        .map(|(what, limit, _)| Timing {
            what,
            limit: limit.map(Duration::from_millis),
            seconds: Vec::with_capacity(RUNS),
        })
        .collect();
    // The first cycle warms caches up and is not counted.
    for cycle in 0..=RUNS {
        for (timing, (_, _, arguments)) in timings.iter_mut().zip(CYCLE) {
            let took = timed(rig, arguments)?;
            if cycle > 0 {
                timing.seconds.push(took.as_secs_f64());
            }
        }
        rig.net.host.nothing_pinned()?;
    }
    Ok(timings)
}

/// Waits in the kernel for the end, unlike the harness, which polls.
pub(super) fn timed(rig: &Rig, arguments: &[&str]) -> Result<Duration> {
    interrupt::check()?;
    let mut command = Cli::new(&rig.net.host).command(arguments)?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = Instant::now();
    let child = rig.net.host.spawn(&mut command).context("failed to start bridge-user")?;
    let output = child.wait_with_output()?;
    let took = started.elapsed();
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "bridge-user {} failed: {said}", arguments.join(" "));
    Ok(took)
}
