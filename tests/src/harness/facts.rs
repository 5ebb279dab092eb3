//! What trials found out about the running kernel, for the runner of the VMs to collect.
//!
//! Invariant: lines are printed after the last result, so that none stands inside the line of a running trial.

use std::sync::{Mutex, PoisonError};

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Notes which datapath carried connections to this kind of listener when `requested` was asked for, or why none did.
pub(crate) fn served(kind: &str, requested: &str, datapath: &str) {
    let line = format!("served: {kind} | {requested} | {datapath}");
    LINES.lock().unwrap_or_else(PoisonError::into_inner).push(line);
}

/// Prints everything that was noted.
pub(crate) fn print() {
    LINES.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|line| println!("{line}"));
}
