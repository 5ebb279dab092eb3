//! Counters of a relay.
//!
//! Invariants: each worker has its own [`Counters`] and is their only writer, so counting is a plain load and
//! store, never a locked instruction; readers see each value late by at most one event, never torn.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bridge_common::counters;
use serde::{Deserialize, Serialize};

counters! {
    /// A relay's counters since its start, summed over its workers.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub struct RelayStats {
        /// Connections joined to the target.
        pub accepted: u64,
        /// Connections reset because their source is not allowed.
        pub denied: u64,
        /// Connections reset because the target could not be reached.
        pub no_listener: u64,
        /// Of those, because what is at the path of a UNIX target is not the service's.
        pub foreign_target: u64,
        /// Connections open now, those still connecting included.
        pub active: u64,
        /// Bytes taken from clients, without PROXY headers; those the kernel redirected included.
        pub bytes_up: u64,
        /// Bytes taken from the target; those the kernel redirected included.
        pub bytes_down: u64,
        /// Bytes the kernel redirected by itself, both directions.
        pub redirected: u64,
        /// Connections handed to the kernel.
        pub offloaded: u64,
        /// Connections that were to be handed to the kernel and stayed with userspace: the kernel refused a socket, the
        /// target is a UNIX socket, or urgent data was sent.
        pub refused_offload: u64,
        /// Of the resets, those of connections in which the kernel repeated bytes.
        pub repeated: u64,
        /// Connections that ended because a socket broke: a peer's reset, or its silence on keepalive probes.
        pub resets: u64,
        /// Connections reset because the limit of open ones was reached.
        pub over_limit: u64,
        /// Connections reset because their source held as many as were free.
        pub over_share: u64,
        /// Connections reset because nothing moved for the idle timeout.
        pub idle_closed: u64,
        /// Connections reset because bytes for one of their peers did not move for the stall timeout.
        pub stalled: u64,
        /// Connections reset because there was no descriptor for them.
        pub no_descriptor: u64,
        /// Times accept(2) failed, for lack of memory or by the listener's fault, and the worker waited.
        pub accept_errors: u64,
    }
}

impl RelayStats {
    /// Adds the bytes that the kernel redirected, from clients and from targets.
    pub(super) fn with_redirected(self, [up, down]: [u64; 2]) -> Self {
        Self {
            bytes_up: self.bytes_up + up,
            bytes_down: self.bytes_down + down,
            redirected: self.redirected + up + down,
            ..self
        }
    }
}

/// One counter, written by one thread.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    pub(super) fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(n), Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// One worker's counters, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Counters {
    pub(super) accepted: Counter,
    pub(super) denied: Counter,
    pub(super) no_listener: Counter,
    pub(super) foreign_target: Counter,
    pub(super) active: Counter,
    pub(super) bytes_up: Counter,
    pub(super) bytes_down: Counter,
    pub(super) offloaded: Counter,
    pub(super) refused_offload: Counter,
    pub(super) repeated: Counter,
    pub(super) resets: Counter,
    pub(super) over_limit: Counter,
    pub(super) over_share: Counter,
    pub(super) stalled: Counter,
    pub(super) no_descriptor: Counter,
    pub(super) idle_closed: Counter,
    pub(super) accept_errors: Counter,
}

impl Counters {
    /// What they show now.
    pub(super) fn read(&self) -> RelayStats {
        RelayStats {
            accepted: self.accepted.get(),
            denied: self.denied.get(),
            no_listener: self.no_listener.get(),
            foreign_target: self.foreign_target.get(),
            active: self.active.get(),
            bytes_up: self.bytes_up.get(),
            bytes_down: self.bytes_down.get(),
            offloaded: self.offloaded.get(),
            refused_offload: self.refused_offload.get(),
            repeated: self.repeated.get(),
            redirected: 0,
            resets: self.resets.get(),
            over_limit: self.over_limit.get(),
            over_share: self.over_share.get(),
            stalled: self.stalled.get(),
            no_descriptor: self.no_descriptor.get(),
            idle_closed: self.idle_closed.get(),
            accept_errors: self.accept_errors.get(),
        }
    }
}
