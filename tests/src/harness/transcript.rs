//! What the current trial ran and saw, printed only when it fails.
//!
//! Invariant: trials run one at a time, so one process-wide list belongs to one trial.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Lines kept in a failure message.
const KEPT: usize = 60;

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn lines() -> MutexGuard<'static, Vec<String>> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets the previous trial.
pub(crate) fn clear() {
    lines().clear();
}

/// Notes one event; multi-line text stays together.
pub(crate) fn note(text: impl Into<String>) {
    lines().push(text.into());
}

/// The newest notes, oldest first.
pub(crate) fn tail() -> String {
    let lines = lines();
    lines[lines.len().saturating_sub(KEPT)..].join("\n")
}
