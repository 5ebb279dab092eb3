//! The socket-map relay: what its program and its userspace mover tell each other, and the program's decision.
//!
//! One *flow* is one direction of a relayed connection: bytes that arrive on a source socket and leave through a sink
//! socket. The program runs for every segment that arrives on a source. It hands it to the sink inside the kernel
//! ([`Verdict::Redirect`]) or leaves it to userspace, which reads it and writes it to the sink ([`Verdict::Pass`]).
//!
//! Invariants
//! - Order: nothing is redirected while userspace has bytes of the same flow that came earlier. The program counts what
//!   it passes, userspace publishes what it has put into the sink, and only if the two are equal a segment may be
//!   redirected. Verdicts of one socket run one after the other (under its lock), so a flow that passes once goes on
//!   passing until userspace says otherwise.
//! - Bound: the segments of a flow that the sink's peer has not acknowledged never cost more than the budget. Segments
//!   are charged with [`OVERHEAD`] besides their bytes: a segment of one byte costs the kernel a whole `sk_buff`.
//! - Each value has one writer: [`Progress`] and [`Totals`] the program, [`Credit`] userspace.

/// What the kernel keeps for a segment besides its bytes: an `sk_buff` and the smallest data area (about 1 KiB).
pub const OVERHEAD: u64 = 1024;

/// Most that the unacknowledged redirected segments of one flow may cost, in [`cost`] units (bytes). It has to fit into
/// the sink's send buffer with room to spare, see `bridge-user`'s mover; more is of no use to exchanges, which is what
/// redirecting is for.
pub const BUDGET: u64 = 256 * 1024;

/// Connections the maps are made for unless the loader says otherwise; each has two flows.
pub const MAX_CONNECTIONS: u32 = 16_384;

/// What a segment of `len` bytes counts against the budget.
#[inline(always)]
pub const fn cost(len: u32) -> u64 {
    len as u64 + OVERHEAD
}

/// What the program did with a flow so far. Written by the program; userspace makes it (all zero) and removes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes left to userspace.
    pub passed: u64,
    /// Bytes redirected.
    pub redirected: u64,
    /// What the redirected segments cost, see [`cost`].
    pub cost: u64,
}

/// What userspace allows a flow.
///
/// An update may be read field by field: with one of [`Self::drained`] and [`Self::credited`] new and the other old,
/// less is allowed than with both new.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    /// The flow. The kernel may reuse a replaced element for another flow at once; this tells.
    pub cookie: u64,
    /// 1 when segments may be redirected at all, otherwise 0.
    pub open: u32,
    /// Which of the [`Totals`] counts the flow: [`UP`] or [`DOWN`].
    pub direction: u32,
    /// Bytes that userspace has taken and given to the sink. Redirecting needs it to equal [`Progress::passed`].
    pub drained: u64,
    /// How much of [`Progress::cost`] is paid: the sink's peer has acknowledged those segments.
    pub credited: u64,
}

/// [`Credit::direction`]: from the client to the target.
pub const UP: u32 = 0;
/// [`Credit::direction`]: from the target to the client.
pub const DOWN: u32 = 1;

/// Bytes redirected in one direction, per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Bytes.
    pub bytes: u64,
}

const _: () = {
    assert!(size_of::<Progress>() == 24);
    assert!(size_of::<Credit>() == 32);
    assert!(size_of::<Totals>() == 8);
};

/// What becomes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is in it: it only says FIN, which the socket has noted already. Redirected, it would make the kernel's
    /// worker report a broken pipe on the sink, and drop all that follows; passed, it would look like an end of stream
    /// in front of bytes that were redirected before it.
    Drop,
    /// Userspace reads it from the source.
    Pass,
    /// The kernel sends it through the sink.
    Redirect,
}

/// What to do with a segment of `len` bytes.
#[inline(always)]
pub const fn decide(len: u32, credit: &Credit, progress: &Progress, budget: u64) -> Verdict {
    if len == 0 {
        return Verdict::Drop;
    }
    let in_order = credit.open == 1 && progress.passed == credit.drained;
    let outstanding = progress.cost.wrapping_sub(credit.credited);
    if in_order && outstanding.wrapping_add(cost(len)) <= budget { Verdict::Redirect } else { Verdict::Pass }
}

impl Progress {
    /// Counts a segment of `len` bytes that was redirected.
    #[inline(always)]
    pub const fn redirect(&mut self, len: u32) {
        self.redirected = self.redirected.wrapping_add(len as u64);
        self.cost = self.cost.wrapping_add(cost(len));
    }

    /// Counts a segment of `len` bytes that was left to userspace.
    #[inline(always)]
    pub const fn pass(&mut self, len: u32) {
        self.passed = self.passed.wrapping_add(len as u64);
    }

    /// What may be credited when `unacknowledged` bytes wait in the sink and no segment is being redirected: all but
    /// the dearest segments those bytes could be, which are segments of one byte.
    pub const fn creditable(&self, credited: u64, unacknowledged: u64) -> u64 {
        let outstanding = self.cost.saturating_sub(credited);
        let dearest = unacknowledged.saturating_mul(cost(1));
        self.cost - if dearest < outstanding { dearest } else { outstanding }
    }
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;

#[cfg(feature = "user")]
mod pod {
    use super::*;

    macro_rules! pod {
        ($($ty:ty),*) => {
            // SAFETY: each type is `#[repr(C)]`, made of integers only, and the size assertions above prove there is
            // no padding.
            $(unsafe impl aya::Pod for $ty {})*
        };
    }
    pod!(Progress, Credit, Totals);
}
