//! Every map: key, value, writer, reader, lifetime. All are pinned by userspace in the namespace's directory under
//! `/sys/fs/bpf/bridge-user/`, and live until the last attachment of that namespace is detached.

use core::cell::UnsafeCell;

use aya_ebpf::{
    bindings::{bpf_map_def, bpf_map_type::BPF_MAP_TYPE_SOCKHASH},
    btf_maps::SkStorage,
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap},
};
use bridge_common::maps::{
    AllowKey, Attachment, ConnectionKey, ListenerKey, MAX_ALLOW, MAX_ARRIVING, MAX_ATTACHMENTS, MAX_BOUND,
    MAX_LISTENERS, MAX_RULES, MAX_TARGETS, Meta, RuleKey, Stats, TargetKey, TrackStats,
};

/// Index 0 → what this instance is. Writer: userspace, when it publishes or upgrades the instance. Readers:
/// `track` (the namespace cookie), userspace.
#[map]
pub(crate) static META: Array<Meta> = Array::with_max_entries(1, 0);

/// (interface, gateway, port) → attachment id. Writer: userspace. Reader: `steer`. An entry lives as long as its
/// attachment; one whose attachment is missing has no effect.
#[map]
pub(crate) static RULES: HashMap<RuleKey, u32> = HashMap::with_max_entries(MAX_RULES, 0);

/// Attachment id → attachment. Writer: userspace; the insert is the commit point of an attach, the delete that of a
/// detach. Readers: `steer`, userspace.
#[map]
pub(crate) static ATTACHMENTS: HashMap<u32, Attachment> = HashMap::with_max_entries(MAX_ATTACHMENTS, 0);

/// (allow set, source prefix) → `steer::Source` constant. Writer: userspace. Reader: `steer`. A set is complete before
/// the attachment that names it is written, and removed after.
#[map]
pub(crate) static ALLOW: LpmTrie<AllowKey, u32> = LpmTrie::with_max_entries(MAX_ALLOW, 0);

/// (address, port) some attachment wants → 1. Writer: userspace. Reader: `track`.
#[map]
pub(crate) static TARGETS: HashMap<TargetKey, u32> = HashMap::with_max_entries(MAX_TARGETS, 0);

/// (address, port) whose newest listener is an MPTCP one → 1. Writers: `track` on listen(2); userspace for listeners
/// that were there before. Readers: `steer`, `steer_tc`. An entry whose listener has gone has no effect: `steer_tc`
/// then finds nothing.
#[map]
pub(crate) static MPTCP: HashMap<TargetKey, u32> = HashMap::with_max_entries(MAX_TARGETS, 0);

/// Attachment id → counters. Writer: `steer`; userspace makes and removes the entries. Reader: userspace.
#[map]
pub(crate) static STATS: PerCpuHashMap<u32, Stats> = PerCpuHashMap::with_max_entries(MAX_ATTACHMENTS, 0);

/// Index 0 → listener-tracking counters. Writer: `track`. Reader: userspace.
#[map]
pub(crate) static TRACK_STATS: PerCpuArray<TrackStats> = PerCpuArray::with_max_entries(1, 0);

/// Socket cookie → cookie of the namespace it was bound in. Writer: `bind` (loaded below Linux 5.15 only). Reader:
/// `track`. Least recently used entries go first.
#[map]
pub(crate) static BOUND: LruHashMap<u64, u64> = LruHashMap::with_max_entries(MAX_BOUND, 0);

/// Index 0 → the connection that `steer_tc` asks the kernel for on this CPU at this moment. Writer: `steer_tc`. Reader:
/// `steer`, which such a question passes through and which has nothing to say to it.
#[map]
pub(crate) static ASKING: PerCpuArray<ConnectionKey> = PerCpuArray::with_max_entries(1, 0);

/// Index 0 → the connection whose SYN `steer_tc` gave to a listener on this CPU, until the kernel has made a request of it.
/// Writers: `steer_tc`, `track`. Reader: `track`.
#[map]
pub(crate) static GIVEN: PerCpuArray<ConnectionKey> = PerCpuArray::with_max_entries(1, 0);

/// Index 0 → how many SYNs `steer_tc` gave to a listener and the kernel made no request of. Writers: `steer_tc` adds one,
/// `track` takes it off. Reader: `steer_tc`.
#[map]
pub(crate) static UNANSWERED: Array<u64> = Array::with_max_entries(1, 0);

/// Connection → the address and port its service is to believe its own. Writers: `steer` and `steer_tc` when they give
/// a connection with the loopback identity to a listener, and take it back when they refuse one; `track`, which
/// moves the entry to [`LOCAL`] once the handshake is done. Least recently used entries go first.
#[map]
pub(crate) static ARRIVING: LruHashMap<ConnectionKey, TargetKey> =
    LruHashMap::with_max_entries(MAX_ARRIVING, 0);

/// Socket of a connection with the loopback identity → the address and port its service believes its own. Writer and
/// reader: `identity`. The kernel frees an entry with its socket. A socket's story never changes: what is attached
/// anew, or with another identity, concerns later connections.
#[btf_map]
pub(crate) static LOCAL: SkStorage<TargetKey> = SkStorage::new();

/// (address, port, slot) → listening socket. Writers: `track` on listen(2); userspace for listeners that were there
/// before. Reader: `steer`. The kernel removes an entry when its socket closes.
///
/// The value is 8 bytes wide, unlike `aya_ebpf::maps::SockHash`'s 4: only then may userspace look an entry up, and
/// gets the socket cookie (`sock_map_lookup_sys`).
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
