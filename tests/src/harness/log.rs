//! What a process that goes on writes to a pipe, line by line as it comes.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use super::wait::until;

/// Every line so far, and when it came.
#[derive(Clone)]
pub(crate) struct Log(Arc<Mutex<Vec<(SystemTime, String)>>>);

impl Log {
    /// Reads the pipe until it is closed.
    pub(crate) fn of(pipe: impl Read + Send + 'static) -> Self {
        let log = Self(Arc::new(Mutex::new(Vec::new())));
        let lines = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                lines.0.lock().unwrap_or_else(PoisonError::into_inner).push((SystemTime::now(), line));
            }
        });
        log
    }

    /// The lines so far.
    pub(crate) fn lines(&self) -> Vec<(SystemTime, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All of it as text.
    pub(crate) fn text(&self) -> String {
        self.lines().iter().map(|(_, line)| format!("{line}\n")).collect()
    }

    /// Waits until a line contains every needle; returns the line. `who` writes it.
    pub(crate) fn says(&self, who: &str, needles: &[&str], limit: Duration) -> Result<String> {
        let line = until(&format!("{who} says {needles:?}"), limit, || {
            let matching = |line: &&str| needles.iter().all(|needle| line.contains(needle));
            Ok(self.text().lines().find(matching).map(str::to_owned))
        });
        line.with_context(|| format!("it said: {}", self.text()))
    }
}
