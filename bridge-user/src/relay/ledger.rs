//! Who holds how much of what connections take: places, descriptors, and the kernel's memory for bytes on their way.
//!
//! Invariants: pure but for the numbers it starts with. One rule, for places and for bytes: a source may take more only
//! while it holds less than is free. So one source alone gets at most half, two get a third each, and however many
//! there are, a new one finds as much free as each of them holds. What is taken is given back when a [`Place`] is
//! dropped. Locked when a connection comes or goes, never on the way of a byte.
//!
//! Bytes are handed out when a connection begins, as the size of its buffers ([`Piece`]). Every connection gets the
//! smallest, also from an empty budget: places bound those. Numbers: the smallest piece costs at most 160 KiB, and
//! larger ones together at most the budget, of which one source has at most half.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

/// Descriptors that the process needs for itself (listeners, epoll, standard streams, questions): at least so many, and
/// one part in so many of all.
const OWN_DESCRIPTORS: u64 = 128;
const OWN_PART: u64 = 16;
/// One part in so many of the descriptors is for pipes.
const PIPES_PART: u64 = 8;
/// One part in so many of the memory is the budget for bytes on their way. The kernel begins to press TCP, and with it
/// everybody on the machine, at some 4.7 % (`net.ipv4.tcp_mem`).
const MEMORY_PART: u64 = 32;
/// A connection gets at most one part in so many of what its source may still take: many get large buffers, and the
/// next ones ever smaller ones.
const BYTES_PART: u64 = 8;
/// What a connection's buffers may hold, as a multiple of its piece: for each direction a receive buffer and a send
/// buffer, which the kernel doubles, and a pipe.
const COST: u64 = 10;

/// Bytes in each buffer of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Piece(usize);

impl Piece {
    /// The kernel's own sizes are good for this one.
    pub(super) const FULL: Self = Self(1 << 20);
    /// What everybody gets.
    const SMALLEST: Self = Self(16 << 10);

    /// In bytes.
    pub(super) fn bytes(self) -> usize {
        self.0
    }

    fn cost(self) -> u64 {
        self.0 as u64 * COST
    }

    /// The largest that costs at most this much, or the smallest.
    fn within(bytes: u64) -> Self {
        let sizes = std::iter::successors(Some(Self::FULL), |piece| Some(Self(piece.0 / 2)));
        let mut sizes = sizes.take_while(|piece| *piece >= Self::SMALLEST);
        sizes.find(|piece| piece.cost() <= bytes).unwrap_or(Self::SMALLEST)
    }
}

/// Why a source gets no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// All are taken.
    Full,
    /// It holds as many as are free.
    Share,
}

/// What all relays of a process share.
#[derive(Debug)]
pub struct Ledger {
    /// Connections that there are descriptors for.
    max: usize,
    /// Bytes to hand out.
    budget: u64,
    taken: Mutex<Taken>,
    /// Pipes that may still be opened.
    pipes: AtomicUsize,
}

#[derive(Debug, Default)]
struct Taken {
    places: usize,
    bytes: u64,
    bytes_of: HashMap<IpAddr, u64>,
}

impl Ledger {
    /// For a process that may have so many descriptors, on a machine with so many bytes of memory.
    pub fn new(descriptors: u64, memory: u64) -> Self {
        let for_pipes = descriptors / PIPES_PART;
        let own = OWN_DESCRIPTORS.max(descriptors / OWN_PART);
        let for_places = descriptors.saturating_sub(own + for_pipes);
        let number = |count: u64| usize::try_from(count / 2).unwrap_or(usize::MAX);
        Self {
            max: number(for_places).max(1),
            budget: memory / MEMORY_PART,
            taken: Mutex::default(),
            pipes: AtomicUsize::new(number(for_pipes)),
        }
    }

    /// Connections that the process can have.
    pub fn max_connections(&self) -> usize {
        self.max
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grant(&self, taken: &mut Taken, source: IpAddr) -> Piece {
        let free = self.budget.saturating_sub(taken.bytes);
        let held = taken.bytes_of.entry(source).or_default();
        let piece = Piece::within(free.saturating_sub(*held) / BYTES_PART);
        *held += piece.cost();
        taken.bytes += piece.cost();
        taken.places += 1;
        piece
    }

    fn give_back(&self, source: IpAddr, piece: Piece) {
        let mut taken = self.lock();
        taken.places -= 1;
        taken.bytes -= piece.cost();
        let Some(held) = taken.bytes_of.get_mut(&source) else { return };
        *held -= piece.cost();
        if *held == 0 {
            taken.bytes_of.remove(&source);
        }
    }

    /// Leave to open a pipe, if there are descriptors for one.
    pub(super) fn pipe(self: &Arc<Self>) -> Option<PipeLeave> {
        let one_less = self.pipes.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
        one_less.ok().map(|_| PipeLeave(Arc::clone(self)))
    }
}

/// Two descriptors for a pipe, given back when dropped.
#[derive(Debug)]
pub(super) struct PipeLeave(Arc<Ledger>);

impl Drop for PipeLeave {
    fn drop(&mut self) {
        self.0.pipes.fetch_add(1, Relaxed);
    }
}

/// The places of one relay.
#[derive(Debug)]
pub(super) struct Places {
    ledger: Arc<Ledger>,
    max: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    by: HashMap<IpAddr, usize>,
}

impl Places {
    /// At most `max`, and no more than the process has.
    pub(super) fn new(max: usize, ledger: &Arc<Ledger>) -> Arc<Self> {
        Arc::new(Self { ledger: Arc::clone(ledger), max, held: Mutex::default() })
    }

    /// Takes a place for a connection from `source`.
    ///
    /// # Errors
    /// When there is none for it.
    pub(super) fn take(self: &Arc<Self>, source: IpAddr) -> Result<Place, NoPlace> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = self.ledger.lock();
        let free = self.max.saturating_sub(held.all).min(self.ledger.max.saturating_sub(taken.places));
        let own = held.by.get(&source).copied().unwrap_or(0);
        match free {
            0 => return Err(NoPlace::Full),
            free if own >= free => return Err(NoPlace::Share),
            _ => {}
        }
        held.all += 1;
        held.by.insert(source, own + 1);
        let piece = self.ledger.grant(&mut taken, source);
        Ok(Place { places: Arc::clone(self), source, piece })
    }

    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).all
    }
}

/// A connection's place among those that may be open, and what its buffers may hold.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    source: IpAddr,
    piece: Piece,
}

impl Place {
    /// The size of each of its buffers.
    pub(super) fn piece(&self) -> Piece {
        self.piece
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.places.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.all -= 1;
        let left = held.by.get(&self.source).map_or(0, |count| count - 1);
        match left {
            0 => held.by.remove(&self.source),
            left => held.by.insert(self.source, left),
        };
        self.places.ledger.give_back(self.source, self.piece);
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
