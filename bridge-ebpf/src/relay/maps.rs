//! Every map of the relay; key, value, writer, reader and lifetime of each are in `bridge_common::names::relay`. All
//! live as long as the relay that loaded them. A flow is known by the cookie of its source, a number the kernel gives
//! out once.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{HashMap, PerCpuArray, SockHash},
};
use bridge_common::relay::{Credit, MAX_CONNECTIONS, Progress, Totals};

/// Two flows for each connection.
const MAX_FLOWS: u32 = 2 * MAX_CONNECTIONS;

/// No program is attached, so a socket in here alone behaves like any other.
#[map]
pub(crate) static SINKS: SockHash<u64> = SockHash::with_max_entries(MAX_FLOWS, 0);

/// `redirect` is attached here. The kernel removes an entry when its socket closes; removing it earlier would lose a
/// segment for which the program runs at that moment.
#[map]
pub(crate) static SOURCES: SockHash<u64> = SockHash::with_max_entries(MAX_FLOWS, 0);

/// What was done with a flow. Userspace makes and removes the entries.
#[map]
pub(crate) static PROGRESS: HashMap<u64, Progress> = HashMap::with_max_entries(MAX_FLOWS, BPF_F_NO_PREALLOC);

/// What may be done with a flow. `redirect` must expect that an element it reads is being replaced.
#[map]
pub(crate) static CREDIT: HashMap<u64, Credit> = HashMap::with_max_entries(MAX_FLOWS, BPF_F_NO_PREALLOC);

/// Redirected bytes.
#[map]
pub(crate) static TOTALS: PerCpuArray<Totals> = PerCpuArray::with_max_entries(2, 0);
