//! Every map of the relay: key, value, writer, reader, lifetime. All live as long as the relay that loaded them. A flow
//! is known by the cookie of its source, a number the kernel gives out once.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{HashMap, PerCpuArray, SockHash},
};
use bridge_common::relay::{Credit, MAX_CONNECTIONS, Progress, Totals};

/// Two flows for each connection.
const MAX_FLOWS: u32 = 2 * MAX_CONNECTIONS;

/// Flow → its sink. Writer: userspace. Reader: `redirect`. No program is attached, so a socket in here alone behaves
/// like any other. The kernel removes an entry when its socket closes.
#[map]
pub(crate) static SINKS: SockHash<u64> = SockHash::with_max_entries(MAX_FLOWS, 0);

/// Flow → its source; `redirect` is attached here. Writer: userspace. The kernel removes an entry when its socket
/// closes; removing it earlier would lose a segment whose verdict is under way.
#[map]
pub(crate) static SOURCES: SockHash<u64> = SockHash::with_max_entries(MAX_FLOWS, 0);

/// Flow → what was done. Writer: `redirect`; userspace makes and removes the entries. Reader: userspace.
#[map]
pub(crate) static PROGRESS: HashMap<u64, Progress> = HashMap::with_max_entries(MAX_FLOWS, BPF_F_NO_PREALLOC);

/// Flow → what may be done. Writer: userspace. Reader: `redirect`, which must expect that an element it reads is being
/// replaced.
#[map]
pub(crate) static CREDIT: HashMap<u64, Credit> = HashMap::with_max_entries(MAX_FLOWS, BPF_F_NO_PREALLOC);

/// Direction → redirected bytes. Writer: `redirect`. Reader: userspace.
#[map]
pub(crate) static TOTALS: PerCpuArray<Totals> = PerCpuArray::with_max_entries(2, 0);
