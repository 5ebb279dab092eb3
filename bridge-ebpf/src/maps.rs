//! Every map. Key, value, writer, reader and lifetime of each are in `bridge_common::names`, and made from there in
//! `docs/design/maps.md`. All are pinned by userspace in the namespace's directory under `/sys/fs/bpf/bridge-user/`,
//! and live until the last attachment of that namespace is detached.
//!
//! Invariant: names and layout are those of `bridge_common::names`, which a host test compares with the built object.

use core::cell::UnsafeCell;

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, bpf_map_def, bpf_map_type::BPF_MAP_TYPE_SOCKHASH},
    btf_maps::SkStorage,
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap},
};
use bridge_common::maps::{
    ALLOW_ROOM, ASSIGNED_SLOTS, AllowKey, Attachment, ConnectionKey, Handoff, ListenerKey, MAX_ATTACHMENTS,
    MAX_IDENTITIES, MAX_LISTENERS, MAX_PENDING_LRU, MAX_SOCKET_NETNS, MAX_TARGETS, MAX_TICKETS, Meta,
    NAMED_ROOM, NamedContainer, NamedKey, PENDING_SLOTS, PendingHandshake, Prepared, RULES_ROOM, RuleKey,
    Stats, Steered, SynCount, TargetKey, TrackStats,
};

/// Of maps that are large, and mostly empty: memory for an entry is taken when it is made, and not before.
const ON_DEMAND: u32 = BPF_F_NO_PREALLOC;

/// What this instance is.
#[map]
pub(crate) static META: Array<Meta> = Array::with_max_entries(1, 0);

/// Where a packet must arrive to be steered. An entry whose attachment is missing has no effect.
#[map]
pub(crate) static RULES: HashMap<RuleKey, u32> = HashMap::with_max_entries(RULES_ROOM, ON_DEMAND);

/// The commit point of every change.
#[map]
pub(crate) static ATTACHMENTS: HashMap<u32, Attachment> =
    HashMap::with_max_entries(MAX_ATTACHMENTS, ON_DEMAND);

/// A set never changes: an attachment that changes names another one.
#[map]
pub(crate) static ALLOW: LpmTrie<AllowKey, u32> = LpmTrie::with_max_entries(ALLOW_ROOM, 0);

/// Where listeners are wanted.
#[map]
pub(crate) static TARGETS: HashMap<TargetKey, u32> = HashMap::with_max_entries(MAX_TARGETS, ON_DEMAND);

/// The newest MPTCP listener on each target, by cookie, unless a plain one came after it.
#[map]
pub(crate) static MPTCP_TARGETS: HashMap<TargetKey, u64> = HashMap::with_max_entries(MAX_TARGETS, ON_DEMAND);

/// The MPTCP listeners that userspace made transparent.
#[map]
pub(crate) static MPTCP_PREPARED: HashMap<TargetKey, Prepared> =
    HashMap::with_max_entries(MAX_TARGETS, ON_DEMAND);

/// Userspace makes and removes the entries; programs only count.
#[map]
pub(crate) static STATS: PerCpuHashMap<u32, Stats> =
    PerCpuHashMap::with_max_entries(MAX_ATTACHMENTS, ON_DEMAND);

/// Counters of listener tracking.
#[map]
pub(crate) static TRACK_STATS: PerCpuArray<TrackStats> = PerCpuArray::with_max_entries(1, 0);

/// Containers that an allow-list names.
#[map]
pub(crate) static NAMED: HashMap<NamedKey, NamedContainer> = HashMap::with_max_entries(NAMED_ROOM, ON_DEMAND);

/// Containers that any allow-list names.
#[map]
pub(crate) static CLIENTS: HashMap<u64, u32> = HashMap::with_max_entries(NAMED_ROOM, ON_DEMAND);

/// Connections on their way from a named container; see `tickets`.
#[map]
pub(crate) static TICKETS: LruHashMap<ConnectionKey, u64> = LruHashMap::with_max_entries(MAX_TICKETS, 0);

/// Written below Linux 5.15 only.
#[map]
pub(crate) static SOCKET_NETNS: LruHashMap<u64, u64> = LruHashMap::with_max_entries(MAX_SOCKET_NETNS, 0);

/// The hand-off on this CPU; see `handoff`.
#[map]
pub(crate) static HANDOFF: PerCpuArray<Handoff> = PerCpuArray::with_max_entries(1, 0);

/// Connections with the loopback identity that were assigned to a listener a moment ago; see `handoff`.
#[map]
pub(crate) static ASSIGNED: Array<u64> = Array::with_max_entries(ASSIGNED_SLOTS, 0);

/// The SYN count; see `syn_cookies`.
#[map]
pub(crate) static SYN_COUNT: Array<SynCount> = Array::with_max_entries(1, 0);

/// Pending handshakes. A connection that needs the slot of one with the loopback identity moves that one to
/// [`PENDING_LRU`].
#[map]
pub(crate) static PENDING: Array<PendingHandshake> = Array::with_max_entries(PENDING_SLOTS, 0);

/// Pending handshakes that lost their slot.
#[map]
pub(crate) static PENDING_LRU: LruHashMap<u64, Steered> = LruHashMap::with_max_entries(MAX_PENDING_LRU, 0);

/// The identity cache. An entry stays if the service closes its listener before it accepts the connection. It takes
/// room, and nothing else.
#[map]
pub(crate) static IDENTITIES: HashMap<u64, TargetKey> = HashMap::with_max_entries(MAX_IDENTITIES, 0);

/// What [`IDENTITIES`] cannot hold, and MPTCP sockets. The kernel frees an entry with its socket, which is exact, and
/// costs ten times as much.
#[btf_map]
pub(crate) static SK_IDENTITY: SkStorage<TargetKey> = SkStorage::new();

/// The listening sockets. The value is 8 bytes wide, unlike `aya_ebpf::maps::SockHash`'s 4: only then may userspace
/// look an entry up, and gets the socket cookie (`sock_map_lookup_sys`).
#[unsafe(link_section = "maps")]
#[unsafe(no_mangle)]
pub(crate) static LISTENERS: SockHash64 = SockHash64(UnsafeCell::new(bpf_map_def {
    type_: BPF_MAP_TYPE_SOCKHASH,
    key_size: size_of::<ListenerKey>() as u32,
    value_size: size_of::<u64>() as u32,
    max_entries: MAX_LISTENERS,
    map_flags: 0,
    id: 0,
    pinning: 0,
}));

/// A SOCKHASH with 8-byte values.
#[repr(transparent)]
pub(crate) struct SockHash64(UnsafeCell<bpf_map_def>);

// SAFETY: the definition is only read by the loader; the kernel synchronises access to the map itself.
unsafe impl Sync for SockHash64 {}

impl SockHash64 {
    /// The map as helpers take it.
    #[inline(always)]
    pub(crate) fn as_ptr(&self) -> *mut core::ffi::c_void {
        self.0.get().cast()
    }
}
