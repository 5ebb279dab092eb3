//! Connections that hold bytes nobody takes.
//!
//! Invariants: a direction is stalled while it has bytes for its reader, in the relay or in the socket's send queue,
//! and neither the relay moves any nor the reader's kernel acknowledges any; looked at a few times in each timeout, so
//! a stalled one ends between one timeout and one and a quarter. An idle connection holds nothing and is never
//! stalled.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};

/// Looks in each timeout.
const LOOKS: u32 = 4;

/// What one direction looks like: how much it has moved, if it holds bytes.
pub(super) type Held = Option<[u64; 2]>;

/// Tells when a connection is to be given up.
pub(super) struct Stall {
    timeout: Duration,
    alarm: Pin<Box<Sleep>>,
    /// What was seen, and since when it is so.
    seen: [(Held, Instant); 2],
}

impl Stall {
    pub(super) fn new(timeout: Duration) -> Self {
        let now = Instant::now();
        Self { timeout, alarm: Box::pin(sleep(timeout / LOOKS)), seen: [(None, now); 2] }
    }

    /// Ready when a direction has been stalled for the timeout; `look`: what both look like now.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, look: impl Fn() -> [Held; 2]) -> Poll<()> {
        while self.alarm.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if self.is_over(look(), now) {
                return Poll::Ready(());
            }
            self.alarm.as_mut().reset(now + self.timeout / LOOKS);
        }
        Poll::Pending
    }

    fn is_over(&mut self, look: [Held; 2], now: Instant) -> bool {
        let mut over = false;
        for (held, (before, since)) in look.into_iter().zip(&mut self.seen) {
            if held.is_none() || held != *before {
                (*before, *since) = (held, now);
            }
            over |= now.duration_since(*since) >= self.timeout;
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_holds_bytes_and_moves_none_is_over() {
        const SECOND: Duration = Duration::from_secs(1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut stall = Stall::new(4 * SECOND);
            let start = Instant::now();
            // Idle, however long.
            assert!(!stall.is_over([None, None], start + 100 * SECOND));
            let mut at = start + 100 * SECOND;
            // The second one is slow: a byte before each timeout.
            for moved in 0..10 {
                at += 3 * SECOND;
                assert!(!stall.is_over([None, Some([moved, 0])], at));
            }
            let stopped = at;
            for seconds in 1..4 {
                assert!(!stall.is_over([None, Some([9, 0])], stopped + seconds * SECOND));
            }
            assert!(stall.is_over([None, Some([9, 0])], stopped + 4 * SECOND));
            // The reader's kernel took something at last.
            assert!(!stall.is_over([None, Some([9, 1])], stopped + 5 * SECOND));
        });
    }
}
