//! Keys and values of the eBPF maps. Who writes and reads each map, and how long an entry lives, is written at
//! the map's definition in `bridge-ebpf/src/maps.rs`.

use core::mem::offset_of;

use crate::{addr::Ip, counters, steer::SYN_COOKIE_NS};

/// Slots per (address, port), at most (see [`listener_share`]): how many members of one `SO_REUSEPORT` group the map
/// holds. The kernel itself picks the member that serves, out of the whole group; the slots only keep the group
/// reachable while members come and go. In a larger group the newest members hold the slots (see [`overflow_slot`]),
/// because a service that reloads opens its new listeners before it closes the old ones.
///
/// The number is a compromise: verification of the steering program takes longer with each slot, and attach has to stay
/// below 300 ms.
pub const LISTENER_SLOTS: u16 = 16;

/// The fewest slots that an (address, port) gets.
pub const MIN_LISTENER_SLOTS: u32 = 2;

/// The slot a new listener takes over when all `slots` of its (address, port) are in use. Cookies are handed out in
/// sequence, so a generation of new listeners takes over every slot.
#[inline(always)]
pub const fn overflow_slot(socket_cookie: u64, slots: u32) -> u16 {
    match slots {
        0 => 0,
        slots => (socket_cookie % slots as u64) as u16,
    }
}

/// How many slots an (address, port) gets that is tracked from now on, where `tracked` others have `given` together:
/// all, or the fewest.
///
/// The shares of all add up to no more than [`MAX_LISTENERS`], so that whoever fills all the slots of some leaves those
/// of the others free: anybody may listen on the port of a service that is down.
pub const fn listener_share(given: u32, tracked: u32) -> u32 {
    let for_others = MAX_TARGETS.saturating_sub(tracked.saturating_add(1)) * MIN_LISTENER_SLOTS;
    let free = MAX_LISTENERS.saturating_sub(given.saturating_add(for_others));
    if free >= LISTENER_SLOTS as u32 {
        return LISTENER_SLOTS as u32;
    }
    if free < MIN_LISTENER_SLOTS { free } else { MIN_LISTENER_SLOTS }
}
/// Longest service name, in bytes.
pub const SERVICE_LEN: usize = 32;
/// Longest network name, in bytes.
pub const NETWORK_LEN: usize = 128;
/// Longest container name, in bytes.
pub const CONTAINER_LEN: usize = 64;
/// `IFNAMSIZ`: longest interface name plus its NUL.
pub const IFNAME_LEN: usize = 16;

/// Most attachments one network namespace can hold.
pub const MAX_ATTACHMENTS: u32 = 4096;
/// Most (interface, gateway, port) rules of all attachments.
pub const MAX_RULES: u32 = 4 * MAX_ATTACHMENTS;
/// Most allow-list entries of all attachments.
pub const MAX_ALLOW: u32 = 65_536;
/// Room for rules: those of a new version of an attachment are written before those of the old one are removed. Each
/// has one for every other address ([`RuleKey::of_others`]).
pub const RULES_ROOM: u32 = 2 * (MAX_RULES + MAX_ATTACHMENTS);
/// Room for the entries of allow-lists, and one for each gateway: of a list that fills it, two versions fit.
pub const ALLOW_ROOM: u32 = 2 * (MAX_ALLOW + MAX_RULES);
/// Most (address, port) pairs that attachments want: three per attachment (exact, IPv4 wildcard, IPv6 wildcard).
pub const MAX_TARGETS: u32 = 3 * MAX_ATTACHMENTS;
/// Most listening sockets. While fewer than 196 targets are tracked, each of their addresses gets all its slots.
pub const MAX_LISTENERS: u32 = 32_768;
/// Most containers in all allow-lists together.
pub const MAX_NAMED: u32 = 8192;
/// Entries that `NAMED` and `CLIENTS` have room for: two versions of a list, while one replaces the other.
pub const NAMED_ROOM: u32 = 2 * MAX_NAMED;
/// Most connections on their way from named containers: more than a host has ports for one container. The least
/// recently used go first; a connection that is lost here is refused. This is the minimum: userspace asks for more on a
/// machine with many CPUs.
pub const MAX_TICKETS: u32 = 8192;
/// Most sockets that are bound and do not listen yet, or connect from a named container, below Linux 5.15. The least
/// recently used go first.
pub const MAX_SOCKET_NETNS: u32 = 8192;
/// Slots for connections with the loopback identity between their SYN and the request that the kernel makes of it. The
/// connection's fold chooses the slot. A connection that loses it to another one shows the container's address: the
/// service then trusts it less, not more.
pub const ASSIGNED_SLOTS: u32 = 16384;
/// Slots for pending handshakes. The socket's cookie chooses the slot. One with the container's identity that loses it
/// to a later one is not counted as accepted: this takes as many handshakes as there are slots while its own lasts.
pub const PENDING_SLOTS: u32 = 16384;
/// Pending handshakes with the loopback identity that lost their slot to a later one. The least recently used go first.
/// A connection that is lost here shows the container's address, as above.
/// This is the minimum: userspace asks for more on a machine with many CPUs.
pub const MAX_PENDING_LRU: u32 = 8192;
/// Most entries of the identity cache, which finds a socket's identity by its cookie. Socket storage holds the rest.
pub const MAX_IDENTITIES: u32 = 16384;

/// Where a connection must arrive to be steered.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleKey {
    /// The address of this host that the container connects to; 0.0.0.0 or `::` for all that no rule names.
    pub gateway: Ip,
    /// The bridge's interface index; 0 where the kernel has no `ingress_ifindex` (below Linux 5.17).
    pub ifindex: u32,
    /// The port on the gateway, host byte order.
    pub port: u16,
    /// Always zero.
    pub pad: u16,
}

/// A loopback or wildcard address and port that an attachment wants.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TargetKey {
    /// The address a listener is bound to.
    pub addr: Ip,
    /// The port it listens on, host byte order.
    pub port: u16,
    /// Always zero.
    pub pad: u16,
}

/// One listening socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    /// The address the listener is bound to.
    pub addr: Ip,
    /// The port it listens on, host byte order.
    pub port: u16,
    /// `0..LISTENER_SLOTS`.
    pub slot: u16,
}

/// A connection to a gateway, as the host's end sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionKey {
    /// The container's address.
    pub source: Ip,
    /// The address it connects to.
    pub gateway: Ip,
    /// The container's port, host byte order.
    pub source_port: u16,
    /// The port on the gateway, host byte order.
    pub port: u16,
}

/// What a steering program hands to the program that the kernel runs next on this CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handoff {
    /// The connection that `steer_tc` looks up in the kernel's tables at this moment; port 0 outside of a lookup.
    pub lookup: ConnectionKey,
    /// The connection whose packet `steer_tc` left alone a moment ago; port 0 if there is none.
    pub left_alone: ConnectionKey,
    /// Why: [`LEFT_KNOWN`] or [`LEFT_UNPREPARED`].
    pub left_why: u32,
    /// The last packet that a steering program assigned to a listener.
    pub assigned: Assignment,
}

/// [`Handoff::left_why`]: the kernel knows a connection with these addresses. If that is in TIME_WAIT it asks for a
/// listener, and finding none is no refusal: the client sends its SYN again.
pub const LEFT_KNOWN: u32 = 1;
/// [`Handoff::left_why`]: the listener is an MPTCP one that is not transparent. No other listener is to take its place.
pub const LEFT_UNPREPARED: u32 = 2;

/// A packet that a steering program assigned to a listener. The kernel makes a request or a socket of it next, on the
/// same CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The packet's connection; port 0 when no packet is assigned, or its request or socket was seen.
    pub connection: ConnectionKey,
    /// What becomes of the connection.
    pub steered: Steered,
    /// 1 for a SYN that stays in the SYN count until the kernel makes a request of it, otherwise 0.
    pub counted: u32,
}

/// What is to be known of a steered connection when it is established.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steered {
    /// What the service sees as the socket's own address; [`Steered::NO_TARGET`] with the container's identity.
    pub target: TargetKey,
    /// The attachment that counts it.
    pub attachment: u32,
}

/// How many SYNs `steer_tc` assigned of which the kernel has made no request yet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SynCount {
    /// SYNs of which it is not known yet.
    pub pending: u64,
    /// `bpf_ktime_get_ns` of the last SYN.
    pub assigned_ns: u64,
    /// Until when a SYN cookie may be valid, by the same clock; 0: there was none.
    pub until_ns: u64,
}

/// An MPTCP listener that userspace made transparent, so that NAT does not take it away from a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Its cookie (that of the subflow).
    pub listener: u64,
    /// 1 once it is transparent, otherwise 0.
    pub ready: u32,
    /// 1 if it is so because of bridge-user, 0 if the service did it itself.
    pub ours: u32,
}

/// A connection whose handshake is pending, in its slot.
///
/// Programs on several CPUs may write the same slot at once, for connections whose cookies differ by a multiple of
/// [`PENDING_SLOTS`]. A torn value belongs to no socket: its check yields a cookie that does not exist.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingHandshake {
    /// The cookie XOR [`Steered::fold`].
    check: u64,
    steered: Steered,
}

/// The data part of an allow-list key; the trie matches it bit by bit from the start.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AllowKey {
    /// The attachment's [`Attachment::allow_set`].
    pub set: u32,
    /// The source address.
    pub addr: Ip,
}

/// A container in an allow-list.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NamedKey {
    /// The cookie of its network namespace, which no other run of any container ever has.
    pub netns: u64,
    /// The attachment's [`Attachment::allow_set`].
    pub set: u32,
    /// Always zero.
    pub pad: u32,
}

/// What is known of a container in an allow-list.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedContainer {
    /// The inode of its network namespace.
    pub inode: u64,
    /// Its address on the attachment's network when it was attached.
    pub addr: Ip,
    /// Its name, NUL-padded.
    pub name: [u8; CONTAINER_LEN],
}

/// Bits of an [`AllowKey`] that come before the address.
pub const ALLOW_SET_BITS: u32 = 32;
/// Bits of a whole [`AllowKey`].
pub const ALLOW_KEY_BITS: u32 = ALLOW_SET_BITS + 128;

/// One attachment: the commit point of everything that belongs to it. Rules, allow-list entries and targets whose
/// attachment is missing have no effect.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The loopback address the service listens on.
    pub target: Ip,
    /// Which allow-list entries belong to this attachment.
    pub allow_set: u32,
    /// The interface index the rules were made for (also where the kernel cannot match it).
    pub ifindex: u32,
    /// The service's port, host byte order.
    pub target_port: u16,
    /// The port on the gateway, host byte order.
    pub port: u16,
    /// Why this datapath was chosen: [`REASON_PROBED`] or [`REASON_REQUESTED`].
    pub reason: u32,
    /// Whom the service sees: [`IDENTITY_CONTAINER`] or [`IDENTITY_LOOPBACK`].
    pub identity: u32,
    /// Who keeps it: [`KEEPER_COMMAND`] or [`KEEPER_CONFIG`].
    pub keeper: u32,
    /// Service name, NUL-padded.
    pub service: [u8; SERVICE_LEN],
    /// Network name, NUL-padded.
    pub network: [u8; NETWORK_LEN],
    /// Bridge interface name, NUL-padded.
    pub bridge: [u8; IFNAME_LEN],
    /// The container whose namespace this is, NUL-padded; empty for an attachment of a host.
    pub container: [u8; CONTAINER_LEN],
}

/// [`Attachment::reason`]: a probe connection was really steered on this kernel.
pub const REASON_PROBED: u32 = 0;
/// [`Attachment::reason`]: the user asked for this datapath.
pub const REASON_REQUESTED: u32 = 1;

/// [`Attachment::identity`]: the service sees the container's address.
pub const IDENTITY_CONTAINER: u32 = 0;
/// [`Attachment::identity`]: the service sees 127.0.0.1 or ::1.
pub const IDENTITY_LOOPBACK: u32 = 1;

/// [`Attachment::keeper`]: whoever typed the attach.
pub const KEEPER_COMMAND: u32 = 0;
/// [`Attachment::keeper`]: the daemon, by its configuration.
pub const KEEPER_CONFIG: u32 = 1;

counters! {
    /// Per-attachment, per-CPU counters: the stages of a connection, and how it ends before its last one. A SYN that
    /// the kernel dropped is sent again by the client, and counts again up to the stage it came to.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Stats {
        /// SYNs that came in at the bridge, those that a client sent again among them. Counted where `steer_tc` is
        /// attached (Linux 5.19).
        pub arrived: u64,
        /// SYNs given to a listener.
        pub steered: u64,
        /// SYNs that the kernel answered; not those answered by a SYN cookie, or with Fast Open.
        pub answered: u64,
        /// Connections that were established, each once.
        pub accepted: u64,
        /// Refused: the source is not in the allow-list.
        pub denied: u64,
        /// No live listener; answered by the kernel as if bridge-user were not there.
        pub no_listener: u64,
        /// A listener was found but the kernel refused it (for example an IPv6-only socket for an IPv4 SYN).
        pub assign_failed: u64,
        /// Listeners that the kernel refused, over all connections. One connection may have tried several.
        pub refusals: u64,
        /// SYNs on the same interface, for the same port of another address of this host.
        pub wrong_gateway: u64,
    } latest {
        /// `bpf_ktime_get_ns` (`CLOCK_MONOTONIC`) of the last SYN that arrived.
        pub arrived_ns: u64,
        /// Of the last one that was steered or refused.
        pub decided_ns: u64,
        /// Of the last one that was steered.
        pub steered_ns: u64,
        /// Of the last one that the kernel answered.
        pub answered_ns: u64,
        /// Of the last connection that was established.
        pub accepted_ns: u64,
        /// Of the last SYN for another address.
        pub wrong_gateway_ns: u64,
    } and {
        /// `bpf_ktime_get_ns` of the last event written for this attachment on this CPU.
        pub last_event_ns: u64,
        /// Events left out since then by the rate limit.
        pub suppressed: u64,
    }
}

/// How far a connection came, as [`Stats`] counts it; what is decided of it is an [`Outcome`](crate::steer::Outcome).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its SYN came in at the bridge.
    Arrived,
    /// The kernel answers it.
    Answered,
    /// It is established.
    Accepted,
    /// Its SYN came for another address of this host, and it goes no further.
    WrongGateway,
}

impl Stats {
    /// Counts a connection that came to this stage now.
    #[inline(always)]
    pub const fn reach(&mut self, stage: Stage, now_ns: u64) {
        let (count, latest_ns) = match stage {
            Stage::Arrived => (&mut self.arrived, &mut self.arrived_ns),
            Stage::Answered => (&mut self.answered, &mut self.answered_ns),
            Stage::Accepted => (&mut self.accepted, &mut self.accepted_ns),
            Stage::WrongGateway => (&mut self.wrong_gateway, &mut self.wrong_gateway_ns),
        };
        *count += 1;
        *latest_ns = now_ns;
    }
}

counters! {
    /// Listener-tracking counters, per CPU.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct TrackStats {
        /// Listeners put into the map.
        pub tracked: u64,
        /// Listeners on a wanted address and port, in another network namespace: ignored.
        pub foreign: u64,
        /// MPTCP listeners: left alone, a SOCKMAP must not hold them.
        pub mptcp: u64,
        /// Listeners the SOCKHASH refused.
        pub refused: u64,
        /// Listeners that took over another one's slot, see [`overflow_slot`].
        pub replaced: u64,
    }
}

/// What a set of pinned objects is. The fields up to `owner_cookie` never move, so that any version can read them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// [`ABI_VERSION`](crate::ABI_VERSION) of the writer.
    pub abi: u32,
    /// Level of the loaded programs: [`LEVEL_OFF`](crate::event::LEVEL_OFF) and so on.
    pub event_level: u16,
    /// 1 when a probe connection was really steered before anything was attached, otherwise 0.
    pub probed: u16,
    /// `SO_NETNS_COOKIE` of the attached network namespace.
    pub netns_cookie: u64,
    /// Inode of the network namespace that attached it from outside, as `attach --container` does; otherwise 0.
    pub owner: u64,
    /// `SO_NETNS_COOKIE` of that namespace, which no other gets, as it may get the inode; 0 below Linux 5.14.
    pub owner_cookie: u64,
    /// First 16 bytes of the SHA-256 of the eBPF object the programs come from.
    pub build: [u8; 16],
    /// The id of the next new attachment. No number is given out twice as long as the instance exists.
    pub next_id: u32,
    /// The next allow set; the same holds for it.
    pub next_allow_set: u32,
}

const _: () = {
    assert!(size_of::<RuleKey>() == 24);
    assert!(size_of::<TargetKey>() == 20);
    assert!(size_of::<ListenerKey>() == 20);
    assert!(size_of::<ConnectionKey>() == 36);
    assert!(size_of::<Assignment>() == 64);
    assert!(size_of::<Steered>() == 24);
    assert!(size_of::<Handoff>() == 140);
    assert!(size_of::<PendingHandshake>() == 32);
    assert!(size_of::<SynCount>() == 24);
    assert!(size_of::<NamedKey>() == 16);
    assert!(size_of::<NamedContainer>() == 24 + CONTAINER_LEN);
    assert!(size_of::<Prepared>() == 16);
    assert!(offset_of!(SynCount, pending) == 0);
    assert!(size_of::<AllowKey>() == 20);
    assert!(size_of::<Attachment>() == 40 + SERVICE_LEN + NETWORK_LEN + IFNAME_LEN + CONTAINER_LEN);
    assert!(size_of::<Stats>() == 136);
    assert!(size_of::<TrackStats>() == 40);
    assert!(offset_of!(Meta, owner) == 16);
    assert!(size_of::<Meta>() == 56);
};

impl RuleKey {
    /// The rule for the same port of this host's other addresses of the family: they are not served, and counted.
    #[inline(always)]
    pub const fn of_others(self) -> Self {
        Self { gateway: if self.gateway.is_v4() { Ip::ANY_V4 } else { Ip::ANY_V6 }, ..self }
    }
}

impl ConnectionKey {
    /// Whether both are the same connection, without a branch for each word.
    #[inline(always)]
    pub const fn is(&self, other: &Self) -> bool {
        let (mut at, mut differs) = (0, 0);
        while at < 4 {
            differs |= self.source.words[at] ^ other.source.words[at];
            differs |= self.gateway.words[at] ^ other.gateway.words[at];
            at += 1;
        }
        differs | (self.source_port ^ other.source_port) as u32 | (self.port ^ other.port) as u32 == 0
    }

    /// The same connection, as the other end sees it.
    #[inline(always)]
    pub const fn reversed(self) -> Self {
        Self { source: self.gateway, gateway: self.source, source_port: self.port, port: self.source_port }
    }

    /// All of it in 64 bits, never 0; the upper half is spread evenly.
    #[inline(always)]
    pub const fn fold(&self) -> u64 {
        let mut folded = (self.source_port as u64) << 16 | self.port as u64;
        let mut at = 0;
        while at < 4 {
            let both = (self.source.words[at] as u64) << 32 | self.gateway.words[at] as u64;
            folded = (folded ^ both).wrapping_mul(SPREAD);
            folded ^= folded >> 32;
            at += 1;
        }
        folded.wrapping_mul(SPREAD) | 1
    }
}

/// Spreads small numbers over 64 bits: 2^64 divided by the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Steered {
    /// [`Steered::target`] of a connection with the container's identity.
    pub const NO_TARGET: TargetKey = TargetKey::new(Ip::ANY_V6, 0);

    /// Whether the service is shown a local client.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        self.target.port != 0
    }

    /// All of it in 64 bits; a change to one part changes the result.
    #[inline(always)]
    const fn fold(&self) -> u64 {
        self.target.fold() ^ (self.attachment as u64).wrapping_mul(SPREAD)
    }
}

impl SynCount {
    /// Whether an ACK that arrives at `now_ns` may be the answer to a SYN cookie.
    #[inline(always)]
    pub const fn may_be_in_use(&self, now_ns: u64) -> bool {
        let pending = self.pending != 0 && now_ns.wrapping_sub(self.assigned_ns) < SYN_COOKIE_NS;
        pending || now_ns < self.until_ns
    }
}

impl PendingHandshake {
    /// An empty slot.
    pub const NONE: Self = Self::new(0, Steered { target: Steered::NO_TARGET, attachment: 0 });

    /// The connection whose socket will have this cookie.
    #[inline(always)]
    pub const fn new(cookie: u64, steered: Steered) -> Self {
        Self { check: cookie ^ steered.fold(), steered }
    }

    /// The cookie that the socket will have; 0 in an empty slot.
    #[inline(always)]
    pub const fn cookie(&self) -> u64 {
        self.check ^ self.steered.fold()
    }

    /// What is to be known of it.
    #[inline(always)]
    pub const fn steered(&self) -> Steered {
        self.steered
    }
}

impl TargetKey {
    /// All of it in 64 bits; a change to one part changes the result.
    #[inline(always)]
    const fn fold(&self) -> u64 {
        let [a, b, c, d] = self.addr.words;
        let (high, low) = ((a as u64) << 32 | b as u64, (c as u64) << 32 | d as u64);
        high ^ low.rotate_left(16) ^ (self.port as u64).rotate_left(48)
    }

    /// The key of (`addr`, `port`).
    #[inline(always)]
    pub const fn new(addr: Ip, port: u16) -> Self {
        Self { addr, port, pad: 0 }
    }

    /// The key of one slot of this target.
    #[inline(always)]
    pub const fn slot(&self, slot: u16) -> ListenerKey {
        ListenerKey { addr: self.addr, port: self.port, slot }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_differ_by_each_part() {
        let ip = |last| Ip::from(core::net::Ipv4Addr::new(10, 0, 0, last));
        let one = ConnectionKey { source: ip(1), gateway: ip(2), source_port: 3, port: 4 };
        assert!(one.is(&one));
        let others = [
            ConnectionKey { source: ip(9), ..one },
            ConnectionKey { gateway: ip(9), ..one },
            ConnectionKey { source_port: 9, ..one },
            ConnectionKey { port: 9, ..one },
        ];
        assert!(others.iter().all(|other| !one.is(other)));
    }

    #[test]
    fn each_stage_has_its_counter_and_its_time() {
        let mut stats = Stats::default();
        for (stage, now_ns) in
            [Stage::Arrived, Stage::Answered, Stage::Accepted, Stage::WrongGateway].into_iter().zip(5..)
        {
            stats.reach(stage, now_ns);
        }
        let counts = Stats { arrived: 1, answered: 1, accepted: 1, wrong_gateway: 1, ..Stats::default() };
        let expected = Stats { arrived_ns: 5, answered_ns: 6, accepted_ns: 7, wrong_gateway_ns: 8, ..counts };
        assert_eq!(stats, expected);
    }

    #[test]
    fn a_torn_pending_handshake_belongs_to_no_socket() {
        let target = |last, port| TargetKey::new(core::net::Ipv4Addr::new(127, 0, 0, last).into(), port);
        let targets = [
            target(1, 80),
            target(1, 81),
            target(2, 80),
            TargetKey::new(Ip::LOCALHOST_V6, 80),
            Steered::NO_TARGET,
        ];
        let all = targets
            .iter()
            .flat_map(|&target| [0, 1, 2, 4096].map(|attachment| Steered { target, attachment }));
        let all: Vec<_> = all.collect();
        let cookies = [7, 7 + u64::from(PENDING_SLOTS)];
        for &one in &all {
            assert_eq!(PendingHandshake::new(cookies[0], one).cookie(), cookies[0]);
            for &other in all.iter().filter(|other| **other != one) {
                let torn = PendingHandshake { steered: other, ..PendingHandshake::new(cookies[0], one) };
                assert!(!cookies.contains(&torn.cookie()), "{one:?} {other:?}");
            }
        }
        let none = PendingHandshake::NONE;
        assert_eq!((none.check, none.cookie(), none.steered().is_loopback()), (0, 0, false));
    }

    #[test]
    fn connections_spread_over_the_slots() {
        let ip = |last| Ip::from(core::net::Ipv4Addr::new(172, 17, 0, last));
        let folds = (2..10).flat_map(|last| {
            (32768..33768).map(move |source_port| {
                ConnectionKey { source: ip(last), gateway: ip(1), source_port, port: 11434 }.fold()
            })
        });
        let folds: std::collections::BTreeSet<u64> = folds.collect();
        assert_eq!(folds.len(), 8000, "no two are equal");
        let slots: std::collections::BTreeSet<u64> =
            folds.iter().map(|fold| (fold >> 32) % u64::from(ASSIGNED_SLOTS)).collect();
        assert!(slots.len() > 6000, "8000 connections have {} slots", slots.len());
        assert!(!folds.contains(&0));
    }

    #[test]
    fn acks_are_looked_at_while_a_cookie_may_be_valid() {
        let second = 1_000_000_000;
        let none = SynCount::default();
        assert!(!none.may_be_in_use(second));
        let pending = SynCount { pending: 1, assigned_ns: second, until_ns: 0 };
        assert!(pending.may_be_in_use(second) && pending.may_be_in_use(121 * second));
        assert!(!pending.may_be_in_use(second + SYN_COOKIE_NS), "a count that nobody took off does not last");
        let seen = SynCount { until_ns: second + SYN_COOKIE_NS, ..none };
        assert!(seen.may_be_in_use(121 * second) && !seen.may_be_in_use(second + SYN_COOKIE_NS));
    }

    #[test]
    fn a_new_generation_takes_over_every_slot() {
        let slots: std::collections::BTreeSet<u16> =
            (5000..5000 + u64::from(LISTENER_SLOTS)).map(|cookie| overflow_slot(cookie, 16)).collect();
        assert_eq!(slots, (0..LISTENER_SLOTS).collect());
        assert_eq!([0, 1, 2].map(|slots| overflow_slot(5, slots)), [0, 0, 1]);
    }

    #[test]
    fn every_target_gets_its_share_of_slots() {
        let mut given = 0;
        for tracked in 0..MAX_TARGETS {
            let share = listener_share(given, tracked);
            let range = MIN_LISTENER_SLOTS..=u32::from(LISTENER_SLOTS);
            assert!(range.contains(&share), "number {tracked} gets {share} slots");
            assert!(
                tracked >= 3 * 195 || share == u32::from(LISTENER_SLOTS),
                "number {tracked} gets {share}"
            );
            given += share;
        }
        assert!(given <= MAX_LISTENERS, "{given} slots are given");
        assert_eq!(listener_share(u32::MAX, u32::MAX), 0);
    }
}

#[cfg(feature = "user")]
mod pod {
    use super::*;

    macro_rules! pod {
        ($($ty:ty),*) => {
            // SAFETY: each type is `#[repr(C)]`, made of integers and integer arrays only, and the size
            // assertions above prove there is no padding.
            $(unsafe impl aya::Pod for $ty {})*
        };
    }
    pod!(
        Ip,
        RuleKey,
        TargetKey,
        ListenerKey,
        ConnectionKey,
        AllowKey,
        Attachment,
        NamedKey,
        NamedContainer,
        PendingHandshake,
        Prepared,
        Stats,
        Steered,
        SynCount,
        TrackStats,
        Meta
    );
}
