//! One direction of a connection: takes bytes from one socket and gives them to the other.
//!
//! Invariants: bytes leave in the order they came; nothing more is read while bytes wait to be written, so a
//! reader that stalls costs at most one pipe or one remainder of the worker's buffer, and backpressure
//! reaches the sender through its window; the end of the stream is passed on (FIN) after the last byte, and
//! only recv(2) may announce it; an idle flow holds neither pipe nor memory.
//!
//! Small exchanges are copied through the worker's shared buffer: recv and send, nothing else. A read that
//! fills the buffer switches the flow to splice(2) until a wake-up brings little. [`Flow::step`] is the one
//! place that knows how bytes move. A flow that was handed to the kernel ([`Flow::offload`]) moves what the
//! kernel leaves to it by [`super::sockmap`]'s rules.

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustix::{
    io::{Errno, read},
    pipe::{SpliceFlags, splice},
};

use tokio::task::yield_now;

use super::{
    ledger::{Ledger, Piece},
    pipe::{PIPE_SIZE, Pipe, PipePool},
    sockmap::{Half, Step},
    stats::Counter,
    stream::Stream,
};

/// The worker's shared buffer: a read that fills it is bulk.
const BUFFER_SIZE: usize = 64 * 1024;
/// A wake-up that brought less than this ends splicing.
const BULK_MIN: usize = 32 * 1024;
/// Steps before the worker's other connections get their turn: at most 4 MiB of bulk, about a millisecond.
const ROUNDS: usize = 4;

/// What the flows of one worker share.
pub(super) struct Tools {
    /// Every copied byte passes through here and is gone when the borrow ends.
    pub(super) buffer: std::cell::RefCell<Box<[u8]>>,
    pub(super) pipes: PipePool,
}

impl Tools {
    pub(super) fn new(ledger: &Arc<Ledger>) -> Self {
        Self { buffer: vec![0; BUFFER_SIZE].into_boxed_slice().into(), pipes: PipePool::new(ledger) }
    }
}

/// What a flow waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    /// Nothing: it can go on.
    No,
    /// Bytes from its source.
    Read,
    /// Room at its destination.
    Write,
    /// The kernel's worker, which has bytes for the same destination that came earlier.
    Worker,
    /// Nothing any more: FIN is through.
    Done,
}

/// One direction.
pub(super) struct Flow {
    /// Copied bytes the destination did not take yet.
    rest: Vec<u8>,
    /// How much of `rest` is written.
    written: usize,
    pipe: Option<Pipe>,
    /// Most bytes taken and not given at a time.
    piece: usize,
    waiting: Waiting,
    eof: bool,
    bulk: bool,
    splice_refused: bool,
    /// The kernel's part of it, once it has one.
    half: Option<Box<Half>>,
    /// Bytes taken since the flow last had nothing to read.
    burst: usize,
    /// Steps that moved something: differs after a poll that did.
    moves: u64,
}

impl Flow {
    /// A flow that first writes `head`.
    pub(super) fn new(head: Vec<u8>, piece: Piece) -> Self {
        Self {
            rest: head,
            written: 0,
            pipe: None,
            piece: piece.bytes().min(PIPE_SIZE),
            waiting: Waiting::No,
            eof: false,
            bulk: false,
            splice_refused: false,
            half: None,
            burst: 0,
            moves: 0,
        }
    }

    /// A flow whose source's first event is still to come.
    pub(super) fn listening(piece: Piece) -> Self {
        Self { waiting: Waiting::Read, ..Self::new(Vec::new(), piece) }
    }

    /// What the flow waits for since it was last polled.
    pub(super) fn waiting(&self) -> Waiting {
        self.waiting
    }

    /// Counts what it moves: the same twice means that nothing happened in between.
    pub(super) fn moves(&self) -> u64 {
        self.moves + self.half.as_ref().map_or(0, |half| half.moved())
    }

    /// Whether it has bytes that its destination does not take.
    pub(super) fn holds_bytes(&self) -> bool {
        matches!(self.waiting, Waiting::Write | Waiting::Worker)
    }

    /// Bytes the kernel moved by itself.
    pub(super) fn redirected(&self) -> u64 {
        self.half.as_ref().map_or(0, |half| half.redirected())
    }

    /// Whether nothing is under way here, and what there was came in small pieces: the kernel could take over.
    pub(super) fn is_at_rest(&self) -> bool {
        self.waiting == Waiting::Read && !self.bulk && !self.eof && self.half.is_none()
    }

    /// Leaves the flow to the kernel. It was at rest, and moves what the kernel leaves to it when it is polled next.
    pub(super) fn offload(&mut self, half: Half) {
        self.half = Some(Box::new(half));
        self.waiting = Waiting::No;
    }

    /// Moves what can be moved. Ready when FIN is passed on, or with the error of the socket that broke.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        ends: (&Stream, &Stream),
        tools: &Tools,
        taken: &Counter,
    ) -> Poll<Result<(), Errno>> {
        let broken = |_| Errno::IO;
        // Woken for something else: do not ask the kernel again.
        match self.waiting {
            Waiting::Read => ready!(ends.0.poll_read_event(cx)).map_err(broken)?,
            Waiting::Write => ready!(ends.1.poll_write_event(cx)).map_err(broken)?,
            Waiting::Worker => {
                ready!(self.half.as_mut().map_or(Poll::Ready(()), |half| half.poll_worker(cx)))
            }
            Waiting::No | Waiting::Done => {}
        }
        // Bounded, so that one busy connection does not starve the worker's others.
        for _ in 0..ROUNDS {
            self.waiting = self.step(ends, tools, taken)?;
            match self.waiting {
                Waiting::No => {}
                Waiting::Read => {
                    self.rest_up(&tools.pipes);
                    ready!(ends.0.poll_readable(cx)).map_err(broken)?;
                }
                Waiting::Write => ready!(ends.1.poll_writable(cx)).map_err(broken)?,
                Waiting::Worker => {
                    ready!(self.half.as_mut().map_or(Poll::Ready(()), |half| half.poll_pause(cx)));
                }
                Waiting::Done => return Poll::Ready(Ok(())),
            }
        }
        // Waking the task at once would keep the runtime from asking epoll about the others.
        pin!(yield_now()).poll(cx).map(Ok)
    }

    fn step(&mut self, ends: (&Stream, &Stream), tools: &Tools, taken: &Counter) -> Result<Waiting, Errno> {
        let (source, sink) = ends;
        if self.waiting == Waiting::Done {
            return Ok(Waiting::Done);
        }
        if let Some(half) = &mut self.half {
            let mut buffer = tools.buffer.borrow_mut();
            return half.step(Step { source, sink, buffer: &mut buffer, taken });
        }
        if self.written < self.rest.len() {
            return self.flush_rest(sink);
        }
        if self.pipe.as_ref().is_some_and(|pipe| pipe.held > 0) {
            return self.flush_pipe(sink);
        }
        if self.eof {
            sink.shutdown_write()?;
            self.rest_up(&tools.pipes);
            return Ok(Waiting::Done);
        }
        if self.bulk && !self.splice_refused {
            let spliced = self.splice_in(source, &tools.pipes)?;
            if spliced > 0 {
                taken.add(spliced as u64);
                return self.flush_pipe(sink);
            }
        }
        self.copy(ends, tools, taken)
    }

    /// Nothing to read: settle the mode for the next wake-up and hold nothing meanwhile.
    fn rest_up(&mut self, pool: &PipePool) {
        if self.bulk && self.burst < BULK_MIN {
            self.bulk = false;
        }
        self.burst = 0;
        if let Some(pipe) = self.pipe.take() {
            pool.give_back(pipe);
        }
    }

    fn copy(
        &mut self,
        (source, sink): (&Stream, &Stream),
        tools: &Tools,
        taken: &Counter,
    ) -> Result<Waiting, Errno> {
        let mut buffer = tools.buffer.borrow_mut();
        let most = buffer.len().min(self.piece);
        let buffer = &mut buffer[..most];
        let read = match source.try_recv(buffer) {
            Ok(0) => {
                self.eof = true;
                return Ok(Waiting::No);
            }
            Ok(read) => read,
            Err(Errno::AGAIN) => return Ok(Waiting::Read),
            Err(error) => return Err(error),
        };

        taken.add(read as u64);
        self.burst += read;
        self.moves += 1;
        self.bulk |= read == buffer.len();
        let bytes = &buffer[..read];
        let sent = match sink.try_send(bytes) {
            Ok(sent) => sent,
            Err(Errno::AGAIN) => 0,
            Err(error) => return Err(error),
        };
        if sent < read {
            self.rest = bytes[sent..].to_vec();
            return Ok(Waiting::Write);
        }
        if read < buffer.len() && source.short_read_is_all() {
            return Ok(Waiting::Read);
        }
        Ok(Waiting::No)
    }

    fn flush_rest(&mut self, sink: &Stream) -> Result<Waiting, Errno> {
        match sink.try_send(&self.rest[self.written..]) {
            Ok(sent) => (self.written, self.moves) = (self.written + sent, self.moves + 1),
            Err(Errno::AGAIN) => return Ok(Waiting::Write),
            Err(error) => return Err(error),
        }
        if self.written == self.rest.len() {
            (self.rest, self.written) = (Vec::new(), 0);
        }
        Ok(Waiting::No)
    }

    /// Splices into the pipe; 0 if recv(2) has to say what is the matter.
    fn splice_in(&mut self, source: &Stream, pool: &PipePool) -> Result<usize, Errno> {
        if self.pipe.is_none() {
            let Ok(pipe) = pool.take() else { return Ok(0) };
            self.pipe = Some(pipe);
        }
        let Some(pipe) = self.pipe.as_mut() else { return Ok(0) };
        match splice(source, None, &pipe.writer, None, self.piece, SpliceFlags::NONBLOCK) {
            Ok(spliced) => {
                pipe.held = spliced;
                self.burst += spliced;
                self.moves += 1;
                Ok(spliced)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(error) if refuses_splice(error) => {
                self.splice_refused = true;
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    fn flush_pipe(&mut self, sink: &Stream) -> Result<Waiting, Errno> {
        let Some(pipe) = self.pipe.as_mut() else { return Ok(Waiting::No) };
        while pipe.held > 0 {
            match splice(&pipe.reader, None, sink, None, pipe.held, SpliceFlags::NONBLOCK) {
                Ok(spliced) => (pipe.held, self.moves) = (pipe.held - spliced, self.moves + 1),
                Err(Errno::AGAIN) => return Ok(Waiting::Write),
                Err(Errno::INTR) => {}
                Err(error) if refuses_splice(error) => return self.unload_pipe(),
                Err(error) => return Err(error),
            }
        }
        Ok(Waiting::No)
    }

    /// The destination takes no splice: what is in the pipe goes on as a copy, and the flow stays on copying.
    fn unload_pipe(&mut self) -> Result<Waiting, Errno> {
        self.splice_refused = true;
        let Some(pipe) = self.pipe.take() else { return Ok(Waiting::No) };
        let mut rest = vec![0; pipe.held];
        let mut filled = 0;
        while filled < rest.len() {
            match read(&pipe.reader, &mut rest[filled..]) {
                Ok(0) => return Err(Errno::IO),
                Ok(got) => filled += got,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        (self.rest, self.written) = (rest, 0);
        Ok(Waiting::No)
    }
}

/// What splice(2) says when it does not do this kind of file, as opposed to when the connection broke.
fn refuses_splice(error: Errno) -> bool {
    matches!(error, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)
}

#[cfg(test)]
#[path = "flow_tests.rs"]
mod tests;
