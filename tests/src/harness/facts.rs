//! What a run found out: about the running kernel, for the runner of the VMs to collect, and where its time went.
//!
//! Invariant: lines are printed after the last result, so that none stands inside the line of a running trial.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many of the slowest trials are named.
const SLOWEST: usize = 12;

static SERVED: Mutex<Vec<String>> = Mutex::new(Vec::new());
static TOOK: Mutex<Vec<(&str, Duration)>> = Mutex::new(Vec::new());

/// Notes which datapath carried connections to this kind of listener when `requested` was asked for, or why none did.
pub(crate) fn served(kind: &str, requested: &str, datapath: &str) {
    lock(&SERVED).push(format!("served: {kind} | {requested} | {datapath}"));
}

/// Notes when dropped how long a trial took.
pub(crate) struct Took {
    name: &'static str,
    start: Instant,
}

impl Took {
    /// Begins to count.
    pub(crate) fn start(name: &'static str) -> Self {
        Self { name, start: Instant::now() }
    }
}

impl Drop for Took {
    fn drop(&mut self) {
        lock(&TOOK).push((self.name, self.start.elapsed()));
    }
}

/// Prints everything that was noted.
pub(crate) fn print() {
    lock(&SERVED).iter().for_each(|line| println!("{line}"));
    let mut took = lock(&TOOK);
    let mut areas: BTreeMap<&str, (usize, Duration)> = BTreeMap::new();
    for (name, time) in took.iter() {
        let area = areas.entry(area(name)).or_default();
        area.0 += 1;
        area.1 += *time;
    }
    for (area, (trials, time)) in areas {
        println!("took: {:6.1} s  {area} ({trials} trials)", time.as_secs_f64());
    }
    took.sort_by_key(|(_, time)| std::cmp::Reverse(*time));
    for (name, time) in took.iter().take(SLOWEST) {
        println!("slow: {:6.1} s  {name}", time.as_secs_f64());
    }
}

/// What comes before the last `::`.
fn area(name: &str) -> &str {
    name.rsplit_once("::").map_or(name, |(area, _)| area)
}

fn lock<T>(lines: &Mutex<T>) -> MutexGuard<'_, T> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}
