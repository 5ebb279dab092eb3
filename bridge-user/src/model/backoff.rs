//! How long to wait before something is tried again.

use std::time::Duration;

/// Pauses that double, from a first one to a longest.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Pauses of `first`, twice that and so on, never longer than `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The pause to make now.
    pub fn pause(&mut self) -> Duration {
        let now = self.next;
        self.next = now.saturating_mul(2).min(self.longest);
        now
    }

    /// Begins anew, after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew() {
        let [first, longest] = [500, 30_000].map(Duration::from_millis);
        let mut backoff = Backoff::new(first, longest);
        let pauses: Vec<_> = (0..9).map(|_| backoff.pause()).collect();
        assert_eq!(pauses[..3], [first, first * 2, first * 4]);
        assert_eq!(pauses[8], longest);
        backoff.reset();
        assert_eq!(backoff.pause(), first);
    }
}
