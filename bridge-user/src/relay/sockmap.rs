//! One direction of a connection whose bytes the kernel redirects: userspace's part of the protocol of
//! `bridge_common::relay`.
//!
//! It is for exchanges: connections that move little at a time, for long. Bulk is left to userspace, which has to copy
//! it out of the socket map's queue and cannot splice; and the kernel's repetitions, which cost the connection, come
//! with bulk. So a connection in which bulk was seen is not enrolled while it lasts.
//!
//! The kernel leaves segments to userspace when the flow's gate is closed or its budget is used up. They are moved
//! here, by recv(2) and send(2), and when all of them are in the sink's send queue the program may redirect again.
//!
//! Invariants
//! - Order. While userspace is behind what the program passed, the program redirects nothing, so the redirected bytes
//!   are a fixed number that came earlier. They are queued at the sink and put into its send queue by a worker of the
//!   kernel. Nothing is written to the sink before TCP has all of them: [`Half::is_clear`].
//! - End. recv(2) says 0 also while bytes wait in front of the end: with the worker, or on their way to the receive
//!   queue. FIN is passed on only after everything the program counted has come and TCP has all of it.
//! - Once. The kernel may show a byte twice (`kernel::redirect::Redirect::seen_once`). What it passed is checked before
//!   it is written, and all there was before FIN is passed on; a flow that saw a byte twice ends with a reset
//!   ([`REPEATED`]). So a stream that ends with FIN is what was sent. What was redirected is looked at only then, or
//!   when the next bytes are passed: a repetition in it has reached the peer by then, and the reset comes after it.
//! - Bound. The queue a socket's redirected bytes wait in is also the one its own passed segments go through, and the
//!   kernel charges nothing in it to anybody. So nothing may stay in it: the flow is opened only while the sink's send
//!   buffer has room for the whole budget, and credit is given for what the peer has acknowledged, not for what was
//!   sent. A reader that stalls thus uses up the budget, after which its bytes are passed, charged to the source's
//!   receive buffer, and stop the sender through its window.
//! - splice(2) is never used: it looks only at the socket's receive queue, and passed segments are not in it. (FIONREAD
//!   tells nothing either: what it counts differs between kernels.)

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bridge_common::relay::{Credit, Progress};
use rustix::io::Errno;
use tokio::{
    task::yield_now,
    time::{Sleep, sleep},
};

use super::{flow::Waiting, stats::Counter, stream::Stream};
use crate::{
    kernel::redirect::{self, EnrolledFlow, Redirect},
    model::backoff::Backoff,
};

/// Most that may wait in the sink's send queue when the flow is opened; see `kernel::redirect` for its size.
const MAX_QUEUED: u64 = 64 * 1024;
/// Looks at the worker without a pause, then pauses, each twice as long as the one before.
const QUICK_LOOKS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(16);

/// One enrolled direction.
pub(super) struct Half {
    redirect: Arc<Redirect>,
    flow: EnrolledFlow,
    /// Bytes taken that the sink did not take yet, and how many of them are written.
    rest: Vec<u8>,
    written: usize,
    /// Bytes taken from the source, and given to the sink, since enrolment.
    taken: u64,
    given: u64,
    /// TCP has all that was redirected so far, and no more will be before the next credit.
    clear: bool,
    /// Bytes the sink's peer had not acknowledged when the flow became clear.
    unacknowledged: u64,
    /// So many of the passed bytes are checked.
    checked: u64,
    /// The program sees the source.
    watched: bool,
    /// What was told to the program last.
    credit: Credit,
    /// The flow stays closed: the program does not see its source, or was passed by.
    closed: bool,
    eof: bool,
    pause: Pause,
}

/// The wait for the kernel's worker.
struct Pause {
    looks: u32,
    backoff: Backoff,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Pause {
    const fn new() -> Self {
        Self { looks: 0, backoff: Backoff::new(FIRST_PAUSE, LAST_PAUSE), alarm: None }
    }
}

/// How much of a connection the program sees.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    /// Both sources.
    pub(super) whole: bool,
    /// This flow's source.
    pub(super) watched: bool,
}

/// What ends a connection whose bytes the kernel repeated.
pub(super) const REPEATED: Errno = Errno::BADMSG;

/// What a step moves bytes with.
pub(super) struct Step<'a> {
    pub(super) source: &'a Stream,
    pub(super) sink: &'a Stream,
    pub(super) buffer: &'a mut [u8],
    pub(super) taken: &'a Counter,
}

impl Half {
    /// The flow is enrolled and closed; for ever if the connection is not `whole`, and the program does not see the
    /// source if it is not `watched`.
    pub(super) fn new(redirect: Arc<Redirect>, flow: EnrolledFlow, Seen { whole, watched }: Seen) -> Self {
        Self {
            redirect,
            flow,
            rest: Vec::new(),
            written: 0,
            taken: 0,
            given: 0,
            clear: false,
            unacknowledged: 0,
            checked: 0,
            watched,
            credit: flow.closed(),
            closed: !whole,
            eof: false,
            pause: Pause::new(),
        }
    }

    /// Bytes the program redirected.
    pub(super) fn redirected(&self) -> u64 {
        self.progress().map_or(0, |progress| progress.redirected)
    }

    /// Bytes moved here: the same twice means that nothing was.
    pub(super) fn moved(&self) -> u64 {
        self.taken.wrapping_add(self.given)
    }

    /// Moves what can be moved at once.
    pub(super) fn step(&mut self, step: Step<'_>) -> Result<Waiting, Errno> {
        if !self.rest.is_empty() {
            return self.flush(step.source, step.sink);
        }
        if self.eof {
            return self.finish(step.source, step.sink);
        }
        let read = match step.source.try_recv(step.buffer) {
            Ok(0) => {
                self.eof = true;
                redirect::kick(step.source).map_err(errno)?;
                return Ok(Waiting::No);
            }
            Ok(read) => read,
            Err(Errno::AGAIN) => {
                self.open(step.sink)?;
                return Ok(Waiting::Read);
            }
            Err(error) => return Err(error),
        };
        step.taken.add(read as u64);
        self.taken += read as u64;
        let bytes = &step.buffer[..read];
        let may_send = self.is_checked(step.source)? && self.is_clear(step.sink)?;
        let sent = if may_send { send(step.sink, bytes)? } else { 0 };
        self.given += sent as u64;
        if sent < read {
            self.rest = bytes[sent..].to_vec();
            return Ok(if may_send { Waiting::Write } else { Waiting::Worker });
        }
        Ok(Waiting::No)
    }

    fn flush(&mut self, source: &Stream, sink: &Stream) -> Result<Waiting, Errno> {
        if !self.is_checked(source)? || !self.is_clear(sink)? {
            return Ok(Waiting::Worker);
        }
        self.pause = Pause::new();
        let sent = send(sink, &self.rest[self.written..])?;
        self.given += sent as u64;
        self.written += sent;
        if self.written < self.rest.len() {
            return Ok(Waiting::Write);
        }
        (self.rest, self.written) = (Vec::new(), 0);
        Ok(Waiting::No)
    }

    /// The source said FIN: passes it on once everything in front of it is through.
    fn finish(&mut self, source: &Stream, sink: &Stream) -> Result<Waiting, Errno> {
        if self.progress()?.passed > self.taken {
            // Some of it is still on its way to where recv(2) finds it.
            self.eof = false;
            redirect::kick(source).map_err(errno)?;
            return Ok(Waiting::Worker);
        }
        // Also what was redirected, and was never looked at.
        if !self.check(source)? || !self.is_clear(sink)? {
            return Ok(Waiting::Worker);
        }
        sink.shutdown_write()?;
        Ok(Waiting::Done)
    }

    /// Whether all that was taken is known to have been seen once; an error if a byte was seen twice.
    fn is_checked(&mut self, source: &Stream) -> Result<bool, Errno> {
        Ok(self.checked >= self.taken || self.check(source)?)
    }

    fn check(&mut self, source: &Stream) -> Result<bool, Errno> {
        if !self.watched {
            return Ok(true);
        }
        match self.redirect.seen_once(self.flow, source).map_err(errno)? {
            Some((true, progress)) => {
                self.checked = progress.passed;
                Ok(self.checked >= self.taken)
            }
            Some((false, _)) => Err(REPEATED),
            None => Ok(false),
        }
    }

    /// Whether TCP has all that was redirected. Meaningful only while the program redirects nothing: userspace holds
    /// bytes it passed, or the source's end was read.
    fn is_clear(&mut self, sink: &Stream) -> Result<bool, Errno> {
        if self.clear {
            return Ok(true);
        }
        let redirected = self.progress()?.redirected;
        let sent = redirect::sent(sink).map_err(errno)?;
        self.clear = sent.total >= self.flow.base + redirected + self.given;
        self.unacknowledged = sent.unacknowledged;
        Ok(self.clear)
    }

    /// Everything taken is given, and there is no more at the moment: the program may go on by itself, unless the sink
    /// has too much to send.
    fn open(&mut self, sink: &Stream) -> Result<(), Errno> {
        let credit_is_due = self.credit.open == 0 || self.credit.drained != self.taken;
        if self.closed || !credit_is_due {
            return Ok(());
        }
        let progress = self.progress()?;
        if progress.passed < self.taken {
            return self.close(progress);
        }
        let queued = redirect::sent(sink).map_err(errno)?.unacknowledged;
        if progress.passed > self.taken || queued > MAX_QUEUED {
            return Ok(());
        }
        let unacknowledged = self.unacknowledged.min(queued);
        self.credit = Credit {
            open: 1,
            drained: self.taken,
            credited: progress.creditable(self.credit.credited, unacknowledged),
            ..self.credit
        };
        self.clear = false;
        self.redirect.credit(&self.credit).map_err(errno)
    }

    /// Bytes were read that the program never saw. The kernels this was read for do not do that (recv(2) runs the
    /// program first). Before anything was redirected it does no harm: the flow just stays closed. Later nobody can
    /// tell what came first, and the connection has to end with a reset rather than with its bytes in the wrong order.
    fn close(&mut self, progress: Progress) -> Result<(), Errno> {
        self.closed = true;
        if self.credit.open == 0 && progress.redirected == 0 { Ok(()) } else { Err(Errno::IO) }
    }

    fn progress(&self) -> Result<Progress, Errno> {
        self.redirect.progress(self.flow.cookie).map_err(errno)
    }

    /// Ready when it is time to look again what the worker has done.
    pub(super) fn poll_worker(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(alarm) = &mut self.pause.alarm {
            ready!(alarm.as_mut().poll(cx));
            self.pause.alarm = None;
        }
        Poll::Ready(())
    }

    /// The worker is not done: at first, lets the worker's other connections have their turn and looks again, later
    /// waits for a while.
    pub(super) fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.pause.looks < QUICK_LOOKS {
            self.pause.looks += 1;
            return pin!(yield_now()).poll(cx);
        }
        self.pause.alarm = Some(Box::pin(sleep(self.pause.backoff.pause())));
        self.poll_worker(cx)
    }
}

fn send(sink: &Stream, bytes: &[u8]) -> Result<usize, Errno> {
    match sink.try_send(bytes) {
        Err(Errno::AGAIN) => Ok(0),
        result => result,
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
