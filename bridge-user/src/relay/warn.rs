//! Warnings that a busy relay could repeat thousands of times a second, limited per reason.
//!
//! Invariants: the first of its kind is always logged; a suppressed one is counted and the count is in the
//! next line.

use std::{
    collections::HashMap,
    fmt::Display,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// One line per reason in this time.
const INTERVAL: Duration = Duration::from_secs(10);

/// The relay's name and what it warned about lately. Shared by its workers, off the byte path.
pub(super) struct Warnings {
    relay: String,
    recent: Mutex<HashMap<(&'static str, i32), Recent>>,
}

struct Recent {
    logged: Instant,
    suppressed: u64,
}

impl Warnings {
    pub(super) fn new(relay: &str) -> Self {
        Self { relay: relay.to_owned(), recent: Mutex::default() }
    }

    /// Logs `message` unless this reason was logged within [`INTERVAL`].
    pub(super) fn warn(&self, reason: (&'static str, i32), message: impl Display) {
        if let Some(suppressed) = self.admit(reason, Instant::now()) {
            let more = match suppressed {
                0 => String::new(),
                n => format!(" ({n} more like this were not logged)"),
            };
            log::warn!("relay {}: {message}{more}", self.relay);
        }
    }

    /// How many were suppressed since the last line, if there may be one now.
    fn admit(&self, reason: (&'static str, i32), now: Instant) -> Option<u64> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = recent.get_mut(&reason) else {
            recent.insert(reason, Recent { logged: now, suppressed: 0 });
            return Some(0);
        };
        if now.duration_since(entry.logged) < INTERVAL {
            entry.suppressed += 1;
            return None;
        }
        entry.logged = now;
        Some(std::mem::take(&mut entry.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_reason_and_interval_with_the_count_of_the_others() {
        let (warnings, start) = (Warnings::new("r"), Instant::now());
        assert_eq!(warnings.admit(("a", 1), start), Some(0));
        assert_eq!(warnings.admit(("a", 1), start), None);
        assert_eq!(warnings.admit(("a", 1), start + INTERVAL / 2), None);
        assert_eq!(warnings.admit(("a", 2), start), Some(0));
        assert_eq!(warnings.admit(("a", 1), start + INTERVAL), Some(2));
        assert_eq!(warnings.admit(("a", 1), start + INTERVAL * 2), Some(0));
    }
}
