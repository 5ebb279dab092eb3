//! Both directions of one connection until both are over, one breaks, or nothing moves for too long.
//!
//! Invariants: a FIN ends one direction only; an error on either socket ends both, after what the broken peer
//! had already sent was passed on as far as the other takes it; a peer's reset is noticed even while nobody
//! reads from it.
//!
//! A connection that has shown some exchanges, and is quiet, is offered to the kernel ([`super::sockmap`]), once.

use std::{
    future::poll_fn,
    os::fd::AsFd as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustix::io::Errno;
use tokio::time::{Instant, Sleep, sleep};

use super::{
    config::Limits,
    flow::{Flow, Tools, Waiting},
    ledger::Piece,
    sockmap::{Half, Seen},
    stall::{self, Stall},
    stats::Counters,
    stream::Stream,
};
use crate::kernel::redirect::{self, EnrolledFlow, Enrolment, Redirect};

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Both directions said FIN and all bytes are delivered.
    Complete,
    /// A socket broke: a reset, unless the kernel says otherwise.
    Broken(Errno),
    /// Nothing moved for the idle timeout.
    Idle,
    /// Bytes for one of the peers did not move for the stall timeout.
    Stalled,
}

/// A client joined to a target.
pub(super) struct Pump {
    client: Stream,
    target: Stream,
    up: Flow,
    down: Flow,
    idle: Option<Idle>,
    stall: Option<Stall>,
    /// Sockets known to be closed in both directions without an error.
    gone: [bool; 2],
    /// The kernel's offer, until it was taken or refused.
    offer: Option<Offer>,
    /// Dropped after the sockets above: forgets the flows.
    enrolled: Option<Enrolled>,
}

/// The kernel is ready to take connections.
pub(super) struct Offer {
    pub(super) redirect: Arc<Redirect>,
    /// Steps in each direction before a connection is handed over.
    pub(super) after: u64,
}

/// The flows the kernel knows.
struct Enrolled {
    redirect: Arc<Redirect>,
    flows: [EnrolledFlow; 2],
}

impl Drop for Enrolled {
    fn drop(&mut self) {
        self.flows.iter().for_each(|flow| self.redirect.forget(flow.cookie));
    }
}

struct Idle {
    timeout: Duration,
    alarm: Pin<Box<Sleep>>,
    last_activity: Instant,
    moves: u64,
    /// Bytes the kernel had redirected when it was last asked.
    redirected: u64,
}

impl Pump {
    /// Joins the two; `head` goes to the target before the client's first byte.
    pub(super) fn new(
        client: Stream,
        target: Stream,
        head: Vec<u8>,
        (limits, piece): (&Limits, Piece),
        offer: Option<Offer>,
    ) -> Self {
        let stall = limits.stall_timeout.map(Stall::new);
        let idle = limits.idle_timeout.map(|timeout| Idle {
            timeout,
            alarm: Box::pin(sleep(timeout)),
            last_activity: Instant::now(),
            moves: 0,
            redirected: 0,
        });
        let (up, down) = (Flow::new(head, piece), Flow::listening(piece));
        Self { client, target, up, down, idle, stall, gone: [false; 2], offer, enrolled: None }
    }

    /// Runs to the end. The sockets are closed when this is dropped: both are reset unless the end was complete. So
    /// what is counted before is known to whoever learns of a reset.
    pub(super) async fn run(&mut self, tools: &Tools, counters: &Counters) -> End {
        let end = poll_fn(|cx| self.poll(cx, tools, counters)).await;
        if end == End::Complete {
            self.client.disarm_reset();
            self.target.disarm_reset();
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
        self.offload(cx, counters);
        if self.poll_stall(cx).is_ready() {
            return Poll::Ready(End::Stalled);
        }
        let moves = self.up.moves() + self.down.moves();
        let redirected = || self.up.redirected() + self.down.redirected();
        self.idle.as_mut().map_or(Poll::Pending, |idle| idle.poll(cx, moves, redirected))
    }

    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { client, target, up, down, stall, .. } = self;
        let look = || [held(up, target), held(down, client)];
        stall.as_mut().map_or(Poll::Pending, |stall| stall.poll(cx, look))
    }

    /// Hands the connection to the kernel when it is time. Both flows wait to read and hold nothing, so both receive
    /// queues are empty, or hold what came since, of which nothing was read.
    fn offload(&mut self, cx: &mut Context<'_>, counters: &Counters) {
        let is_ready = |flow: &Flow, offer: &Offer| flow.is_at_rest() && flow.moves() >= offer.after;
        let Some(Offer { redirect, .. }) =
            self.offer.take_if(|offer| is_ready(&self.up, offer) && is_ready(&self.down, offer))
        else {
            return;
        };
        // Reads stop short at urgent data: an empty receive queue is not certain then.
        if self.client.saw_urgent() || self.target.saw_urgent() {
            return counters.refused_offload.add(1);
        }
        let Ok(enrolment) = redirect.enroll(self.client.as_fd(), self.target.as_fd()) else {
            return counters.refused_offload.add(1);
        };
        let (up, down, whole) = match enrolment {
            Enrolment::Whole(up, down) => (up, down, true),
            Enrolment::Half(up, down) => (up, down, false),
        };
        if whole {
            counters.offloaded.add(1)
        } else {
            counters.refused_offload.add(1)
        }
        self.up.offload(Half::new(Arc::clone(&redirect), up, Seen { whole, watched: true }));
        self.down.offload(Half::new(Arc::clone(&redirect), down, Seen { whole, watched: whole }));
        self.enrolled = Some(Enrolled { redirect, flows: [up, down] });
        cx.waker().wake_by_ref();
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

/// What one direction has for its reader, here or in the send queue.
fn held(flow: &Flow, sink: &Stream) -> stall::Held {
    // A UNIX socket has no queue of its own: what was sent is the reader's.
    let sent = redirect::sent(sink).unwrap_or(redirect::Sent { total: 0, unacknowledged: 0 });
    let holds = flow.holds_bytes() || sent.unacknowledged > 0;
    holds.then(|| [flow.moves(), sent.total - sent.unacknowledged])
}

impl Idle {
    /// `redirected` is asked only when it is time to end the connection: such bytes count as if they had moved just
    /// now.
    fn poll(&mut self, cx: &mut Context<'_>, moves: u64, redirected: impl Fn() -> u64) -> Poll<End> {
        if moves != self.moves {
            self.moves = moves;
            self.last_activity = Instant::now();
        }
        // The alarm is not moved for every byte: when it goes off it is set again for what is left.
        while self.alarm.as_mut().poll(cx).is_ready() {
            let mut due = self.last_activity + self.timeout;
            if due <= Instant::now() {
                let redirected = redirected();
                if redirected == self.redirected {
                    return Poll::Ready(End::Idle);
                }
                self.redirected = redirected;
                self.last_activity = Instant::now();
                due = self.last_activity + self.timeout;
            }
            self.alarm.as_mut().reset(due);
        }
        Poll::Pending
    }
}
