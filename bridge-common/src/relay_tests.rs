//! The decision by itself, and a model of one flow: the program, the queue of redirected segments with its worker, the
//! sink's send queue, and a mover that takes its steps in any order between theirs.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// Small, so that it is used up often.
const TEST_BUDGET: u64 = 6 * OVERHEAD;
/// What the mover lets wait in the send queue when it opens the flow.
const MAX_QUEUED: u64 = 2000;
/// Room for the budget's bytes and what the mover left in the queue.
const SEND_BUFFER: u64 = TEST_BUDGET + MAX_QUEUED;

fn open() -> Credit {
    Credit { open: 1, ..Credit::default() }
}

#[test]
fn an_empty_segment_is_dropped_in_every_state() {
    for credit in [Credit::default(), open()] {
        assert_eq!(decide(0, &credit, &Progress::default(), BUDGET), Verdict::Drop);
    }
}

#[test]
fn redirecting_needs_an_open_gate_an_even_count_and_budget() {
    let progress = Progress { passed: 10, redirected: 5, cost: 3000 };
    let credit = Credit { drained: 10, ..open() };
    assert_eq!(decide(1, &credit, &progress, BUDGET), Verdict::Redirect);
    assert_eq!(decide(1, &Credit { open: 0, ..credit }, &progress, BUDGET), Verdict::Pass);
    assert_eq!(decide(1, &Credit { drained: 9, ..credit }, &progress, BUDGET), Verdict::Pass);
    assert_eq!(decide(1, &Credit { drained: 11, ..credit }, &progress, BUDGET), Verdict::Pass);
    assert_eq!(decide(1, &credit, &progress, 3000 + cost(1)), Verdict::Redirect);
    assert_eq!(decide(1, &credit, &progress, 3000 + cost(1) - 1), Verdict::Pass);
    assert_eq!(decide(u32::MAX, &credit, &progress, BUDGET), Verdict::Pass);
}

#[test]
fn no_more_is_credited_than_is_certainly_acknowledged() {
    let progress = Progress { cost: 10_000, ..Progress::default() };
    assert_eq!(progress.creditable(4000, 0), 10_000);
    assert_eq!(progress.creditable(4000, 1), 10_000 - cost(1));
    assert_eq!(progress.creditable(4000, 1000), 4000);
    assert_eq!(progress.creditable(10_000, 1000), 10_000);
}

/// What may happen next in the model; the numbers are sizes.
#[derive(Clone, Copy, Debug)]
enum Event {
    Arrive(u16),
    Transit,
    Work(u16),
    Acknowledge(u16),
    Move(u16),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => prop_oneof![Just(0), 1..4u16, 1..3000u16, Just(u16::MAX)].prop_map(Event::Arrive),
        1 => Just(Event::Transit),
        2 => (1..3000u16).prop_map(Event::Work),
        2 => (1..4000u16).prop_map(Event::Acknowledge),
        3 => (1..5000u16).prop_map(Event::Move),
    ]
}

/// A piece of the stream: offset and length.
type Piece = (u64, u64);

#[derive(Default)]
struct Model {
    sent: u64,
    progress: Progress,
    credit: Credit,
    /// Passed segments on their way to where the mover finds them, and those that are there.
    transit: VecDeque<Piece>,
    readable: VecDeque<Piece>,
    /// Redirected segments that the worker has not sent, and those not acknowledged, with what they cost.
    redirected: VecDeque<Piece>,
    unpaid: VecDeque<(u64, u64)>,
    /// The stream as TCP has it: everything up to here was written in order, up to there acknowledged.
    written: u64,
    acknowledged: u64,
    /// The mover.
    taken: u64,
    given: u64,
    rest: Option<Piece>,
    clear: bool,
    unacknowledged: u64,
}

impl Model {
    fn step(&mut self, event: Event) {
        match event {
            Event::Arrive(len) => self.arrive(u32::from(len)),
            Event::Transit => self.readable.extend(self.transit.pop_front()),
            Event::Work(most) => self.work(u64::from(most)),
            Event::Acknowledge(most) => self.acknowledge(u64::from(most)),
            Event::Move(most) => self.mover(u64::from(most)),
        }
    }

    fn arrive(&mut self, len: u32) {
        let piece = (self.sent, u64::from(len));
        match decide(len, &self.credit, &self.progress, TEST_BUDGET) {
            Verdict::Drop => assert_eq!(len, 0, "bytes were dropped"),
            Verdict::Pass => {
                self.progress.pass(len);
                self.transit.push_back(piece);
            }
            Verdict::Redirect => {
                self.progress.redirect(len);
                self.redirected.push_back(piece);
                self.unpaid.push_back((piece.0 + piece.1, cost(len)));
                assert!(self.outstanding() <= TEST_BUDGET, "the budget is exceeded");
            }
        }
        self.sent += piece.1;
    }

    fn outstanding(&self) -> u64 {
        self.unpaid.iter().map(|(_, cost)| cost).sum()
    }

    /// TCP takes the piece, which has to be the next one.
    fn write(&mut self, (at, len): Piece) {
        assert_eq!(at, self.written, "out of order, or lost, or repeated");
        self.written += len;
    }

    fn room(&self) -> u64 {
        SEND_BUFFER.saturating_sub(self.written - self.acknowledged)
    }

    fn work(&mut self, most: u64) {
        let Some((at, len)) = self.redirected.pop_front() else { return };
        assert!(self.room() >= len, "the worker has to wait for room");
        let part = len.min(most);
        self.write((at, part));
        if part < len {
            self.redirected.push_front((at + part, len - part));
        }
    }

    fn acknowledge(&mut self, most: u64) {
        self.acknowledged = self.written.min(self.acknowledged + most);
        let acknowledged = self.acknowledged;
        self.unpaid.retain(|&(end, _)| end > acknowledged);
    }

    fn is_clear(&mut self) -> bool {
        if !self.clear {
            self.clear = self.written >= self.progress.redirected + self.given;
            self.unacknowledged = self.written - self.acknowledged;
        }
        self.clear
    }

    fn mover(&mut self, most: u64) {
        if self.rest.is_none() {
            let Some((at, len)) = self.readable.pop_front() else { return self.open() };
            let part = len.min(most);
            if part < len {
                self.readable.push_front((at + part, len - part));
            }
            self.taken += part;
            self.rest = Some((at, part));
        }
        if self.is_clear() {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let Some((at, len)) = self.rest.take() else { return };
        let part = len.min(self.room());
        self.write((at, part));
        self.given += part;
        self.rest = (part < len).then_some((at + part, len - part));
    }

    fn open(&mut self) {
        let queued = self.written - self.acknowledged;
        let due = self.credit.open == 0 || self.credit.drained != self.taken;
        if !due || self.progress.passed != self.taken || queued > MAX_QUEUED {
            return;
        }
        let unacknowledged = self.unacknowledged.min(queued);
        let credited = self.progress.creditable(self.credit.credited, unacknowledged);
        self.credit = Credit { drained: self.taken, credited, ..open() };
        self.clear = false;
    }

    /// Everybody does his part until nothing is left.
    fn finish(&mut self) {
        for _ in 0..100_000 {
            if self.acknowledged == self.sent {
                return;
            }
            [Event::Transit, Event::Work(4000), Event::Move(4000), Event::Acknowledge(4000)]
                .into_iter()
                .for_each(|event| self.step(event));
        }
        panic!("{} of {} bytes arrived", self.acknowledged, self.sent);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Order, bound and the worker's freedom are asserted by the model at each step.
    #[test]
    fn every_byte_arrives_once_and_in_order(events in prop::collection::vec(event(), 0..300)) {
        let mut model = Model::default();
        model.open();
        for event in events {
            model.step(event);
        }
        model.finish();
        prop_assert_eq!(model.written, model.sent);
    }
}

/// A peer that acknowledges what it gets is served by the program almost alone.
#[test]
fn exchanges_are_redirected() {
    let mut model = Model::default();
    model.open();
    for _ in 0..10_000 {
        model.arrive(100);
        model.finish();
        model.mover(100);
    }
    let Progress { passed, redirected, .. } = model.progress;
    assert!(redirected > 4 * passed, "{redirected} redirected, {passed} passed");
}

/// Whatever the sizes, a peer that acknowledges nothing stops the redirecting within the budget.
#[test]
fn a_stalled_reader_stops_it_at_the_budget() {
    for len in [1, 500, 6000] {
        let mut model = Model::default();
        model.open();
        (0..1000).for_each(|_| model.arrive(len));
        let costs = model.outstanding();
        assert!(costs <= TEST_BUDGET && costs + cost(len) > TEST_BUDGET, "{len}: {costs}");
    }
}
