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
    ARRIVING_SLOTS, AllowKey, Arriving, Attachment, ListenerKey, MAX_ALLOW, MAX_ATTACHMENTS, MAX_BOUND,
    MAX_LISTENERS, MAX_OVERTAKEN, MAX_RULES, MAX_STORIES, MAX_TARGETS, Meta, RuleKey, Stats, TargetKey,
    TrackStats, UnderWay,
};

/// Index 0 → what this instance is. Writer: userspace, when it publishes or upgrades the instance. Readers:
/// `track` and the identity programs (the namespace cookie), userspace.
#[map]
pub(crate) static META: Array<Meta> = Array::with_max_entries(1, 0);

/// (interface, gateway, port) → attachment id. Writer: userspace. Readers: `steer`, `steer_tc`. An entry lives as long
/// as its attachment; one whose attachment is missing has no effect.
#[map]
pub(crate) static RULES: HashMap<RuleKey, u32> = HashMap::with_max_entries(MAX_RULES, 0);

/// Attachment id → attachment. Writer: userspace; the insert is the commit point of an attach, the delete that of a
/// detach. Readers: `steer`, `steer_tc`, userspace.
#[map]
pub(crate) static ATTACHMENTS: HashMap<u32, Attachment> = HashMap::with_max_entries(MAX_ATTACHMENTS, 0);

/// (allow set, source prefix) → `steer::Source` constant. Writer: userspace. Readers: `steer`, `steer_tc`. A set is
/// complete before the attachment that names it is written, and removed after.
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

/// Attachment id → counters. Writers: `steer`, `steer_tc`; userspace makes and removes the entries. Reader: userspace.
#[map]
pub(crate) static STATS: PerCpuHashMap<u32, Stats> = PerCpuHashMap::with_max_entries(MAX_ATTACHMENTS, 0);

/// Index 0 → listener-tracking counters. Writer: `track`. Reader: userspace.
#[map]
pub(crate) static TRACK_STATS: PerCpuArray<TrackStats> = PerCpuArray::with_max_entries(1, 0);

/// Socket cookie → cookie of the namespace it was bound in. Writer: `bind` (loaded below Linux 5.15 only). Reader:
/// `track`. Least recently used entries go first.
#[map]
pub(crate) static BOUND: LruHashMap<u64, u64> = LruHashMap::with_max_entries(MAX_BOUND, 0);

/// Index 0 → what the programs have under way on this CPU: the connection that `steer_tc` asks the kernel for at this
/// moment, and what was given to a listener last. Writers: `steer`, `steer_tc`; `given` takes the latter. Readers: `steer`,
/// `given`.
#[map]
pub(crate) static UNDER_WAY: PerCpuArray<UnderWay> = PerCpuArray::with_max_entries(1, 0);

/// Index 0 → how many SYNs `steer_tc` gave to a listener and the kernel made no request of. Writers: `steer_tc` adds one,
/// `given` takes it off. Reader: `steer_tc`.
#[map]
pub(crate) static UNANSWERED: Array<u64> = Array::with_max_entries(1, 0);

/// Cookie modulo [`ARRIVING_SLOTS`] → a connection whose handshake is under way, and what its service is to believe its
/// own. Writer and reader: `identity`. A later connection takes the place of one that did not finish, which goes to
/// [`OVERTAKEN`].
#[map]
pub(crate) static ARRIVING: Array<Arriving> = Array::with_max_entries(ARRIVING_SLOTS, 0);

/// Socket cookie → the address and port its service is to believe its own, of connections that lost their place in
/// [`ARRIVING`]. Writer and reader: `identity`. Least recently used entries go first.
#[map]
pub(crate) static OVERTAKEN: LruHashMap<u64, TargetKey> = LruHashMap::with_max_entries(MAX_OVERTAKEN, 0);

/// Cookie of a connection's socket → the address and port its service believes its own. Writer and reader: `identity`, from
/// the end of the handshake until the service closes the socket. One that no service ever accepted, since it closed
/// its listener, stays. A socket's story never changes: what is attached anew, or with another identity, concerns later
/// connections.
#[map]
pub(crate) static STORIES: HashMap<u64, TargetKey> = HashMap::with_max_entries(MAX_STORIES, 0);

/// Socket → the same, of MPTCP connections, and of others while [`STORIES`] is full. Writer and reader: `identity`. The
/// kernel frees an entry with its socket, which is exact, and costs ten times as much.
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
