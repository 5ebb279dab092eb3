//! Both directions of one connection until both are over, one breaks, or nothing moves for too long.
//!
//! Invariants: a FIN ends one direction only; an error on either socket ends both, after what the broken peer
//! had already sent was passed on as far as the other takes it; a peer's reset is noticed even while nobody
//! reads from it.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use rustix::io::Errno;
use tokio::time::{Instant, Sleep, sleep};

use super::{
    flow::{Flow, Tools, Waiting},
    stats::Counters,
    stream::Stream,
};

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Both directions said FIN and all bytes are delivered.
    Complete,
    /// A socket broke: a reset, unless the kernel says otherwise.
    Broken(Errno),
    /// Nothing moved for the idle timeout.
    Idle,
}

/// A client joined to a target.
pub(super) struct Pump {
    client: Stream,
    target: Stream,
    up: Flow,
    down: Flow,
    idle: Option<Idle>,
    /// Sockets known to be closed in both directions without an error.
    gone: [bool; 2],
}

struct Idle {
    timeout: Duration,
    alarm: Pin<Box<Sleep>>,
    last_activity: Instant,
    moves: u64,
}

impl Pump {
    /// Joins the two; `head` goes to the target before the client's first byte.
    pub(super) fn new(client: Stream, target: Stream, head: Vec<u8>, idle: Option<Duration>) -> Self {
        let idle = idle.map(|timeout| Idle {
            timeout,
            alarm: Box::pin(sleep(timeout)),
            last_activity: Instant::now(),
            moves: 0,
        });
        Self { client, target, up: Flow::new(head), down: Flow::listening(), idle, gone: [false; 2] }
    }

    /// Runs to the end. Dropped midway, both sockets are reset.
    pub(super) async fn run(mut self, tools: &Tools, counters: &Counters) -> End {
        let end = poll_fn(|cx| self.poll(cx, tools, counters)).await;
        if end == End::Complete {
            self.client.close_cleanly();
            self.target.close_cleanly();
        }
        end
    }

    fn poll(&mut self, cx: &mut Context<'_>, tools: &Tools, counters: &Counters) -> Poll<End> {
        let Self { client, target, up, down, .. } = self;
        let first = up.poll(cx, (client, target), tools, &counters.bytes_up);
        let second = down.poll(cx, (target, client), tools, &counters.bytes_down);
        if let (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) = (first, second) {
            return Poll::Ready(End::Complete);
        }
        if let Poll::Ready(Err(error)) = second {
            return Poll::Ready(End::Broken(error));
        }
        if let Poll::Ready(Err(error)) = first {
            // `down` was polled after `up` broke, so the target's last words are on their way.
            return Poll::Ready(End::Broken(error));
        }
        if let Some(error) = self.watch(cx) {
            return Poll::Ready(End::Broken(error));
        }
        let moves = self.up.moves() + self.down.moves();
        self.idle.as_mut().map_or(Poll::Pending, |idle| idle.poll(cx, moves))
    }

    /// A socket whose flow is not waiting to read from it (because the other side is slow, or it said FIN)
    /// can still be reset.
    fn watch(&mut self, cx: &mut Context<'_>) -> Option<Errno> {
        let sides = [(&self.client, self.up.waiting()), (&self.target, self.down.waiting())];
        for ((stream, waiting), gone) in sides.into_iter().zip(&mut self.gone) {
            if waiting == Waiting::Read || *gone {
                continue;
            }
            if let Poll::Ready(error) = stream.poll_gone(cx) {
                *gone = true;
                if error.is_some() {
                    return error;
                }
            }
        }
        None
    }
}

impl Idle {
    fn poll(&mut self, cx: &mut Context<'_>, moves: u64) -> Poll<End> {
        if moves != self.moves {
            self.moves = moves;
            self.last_activity = Instant::now();
        }
        // The alarm is not moved for every byte: when it goes off it is set again for what is left.
        while self.alarm.as_mut().poll(cx).is_ready() {
            let due = self.last_activity + self.timeout;
            if due <= Instant::now() {
                return Poll::Ready(End::Idle);
            }
            self.alarm.as_mut().reset(due);
        }
        Poll::Pending
    }
}
