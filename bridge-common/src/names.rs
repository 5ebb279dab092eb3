//! Names of every map and program in the eBPF objects; pins in bpffs carry the same names. The tables of maps are also
//! those of `docs/design/maps.md`.

use crate::{
    maps::{
        AllowKey, Attachment, ConnectionKey, Handoff, ListenerKey, Meta, NamedContainer, NamedKey,
        PendingHandshake, Prepared, RuleKey, Stats, Steered, SynCount, TargetKey, TrackStats,
    },
    registry::maps,
};

maps! {
    /// What this instance is: index 0 → [`Meta`].
    META: "array", u32 => Meta {
        key: "0",
        value: "map layout, event level, namespace cookie, owner, build, next attachment id, next allow set",
        writer: "user",
        reader: "sock_ops, getpeername4 and 6, getsockname4 and 6, user",
        lifetime: "written before the instance is published; build and level again when programs are replaced, the \
                   owner when another namespace attaches, the numbers before each attachment",
    }
    /// The rules: [`RuleKey`] → attachment id.
    RULES: "hash", RuleKey => u32 {
        key: "gateway, or 0.0.0.0 or :: for all others; interface index; port",
        value: "attachment id",
        writer: "user",
        reader: "steer, steer_tc, user",
        lifetime: "written before its attachment, removed after it; without effect while the attachment is missing",
    }
    /// The attachments: id → [`Attachment`].
    ATTACHMENTS: "hash", u32 => Attachment {
        key: "attachment id",
        value: "target, allow set, identity, names",
        writer: "user",
        reader: "steer, steer_tc, user",
        lifetime: "its insert is the commit point of an attach, its removal that of a detach",
    }
    /// The allow-lists: a prefix of [`AllowKey`] → a constant of [`SourceClass`](crate::steer::SourceClass). The kernel
    /// puts the prefix length before the key.
    ALLOW: "LPM trie", (u32, AllowKey) => u32 {
        key: "allow set, source prefix",
        value: "allowed, or host",
        writer: "user",
        reader: "steer, steer_tc, user",
        lifetime: "a set is complete before the attachment that names it is written, and removed after it",
    }
    /// The containers in allow-lists: [`NamedKey`] → [`NamedContainer`].
    NAMED: "hash", NamedKey => NamedContainer {
        key: "namespace cookie, allow set",
        value: "name, address, inode of the namespace",
        writer: "user",
        reader: "steer, steer_tc, user",
        lifetime: "as the set in ALLOW",
    }
    /// The same containers, whichever list names them: namespace cookie → 1.
    CLIENTS: "hash", u64 => u32 {
        key: "namespace cookie",
        value: "1",
        writer: "user",
        reader: "sock_ops, connect4 and 6",
        lifetime: "written before an entry of NAMED, removed after the last one",
    }
    /// Which named container a connection is from: [`ConnectionKey`] → namespace cookie.
    TICKETS: "LRU hash", ConnectionKey => u64 {
        key: "addresses and ports",
        value: "namespace cookie of the client's socket",
        writer: "sock_ops, steer",
        reader: "steer, steer_tc, sock_ops",
        lifetime: "from connect(2) until the service's side is established, the client's socket is closed, the \
                   connection is refused, or newer ones push it out",
    }
    /// Where listeners are wanted: [`TargetKey`] → 1.
    TARGETS: "hash", TargetKey => u32 {
        key: "address, port",
        value: "slots of LISTENERS it may use",
        writer: "user",
        reader: "sock_ops, user",
        lifetime: "written before its attachment, removed after it",
    }
    /// The newest MPTCP listener on a target: [`TargetKey`] → its cookie.
    MPTCP_TARGETS: "hash", TargetKey => u64 {
        key: "address, port",
        value: "cookie of the listening subflow",
        writer: "sock_ops, user",
        reader: "steer, steer_tc, user",
        lifetime: "from an MPTCP listen(2) or attach until a plain listen(2) there, until no attachment wants it, or \
                   until an attach finds no such listener; without effect once the listener is gone",
    }
    /// The MPTCP listeners that are transparent: [`TargetKey`] → [`Prepared`].
    MPTCP_PREPARED: "hash", TargetKey => Prepared {
        key: "address, port",
        value: "cookie of the listening subflow; whether it is transparent, and by whom",
        writer: "user",
        reader: "steer, steer_tc, user",
        lifetime: "written before and after the listener is made transparent, until no attachment wants it; without \
                   effect where MPTCP_TARGETS names another listener",
    }
    /// The listening sockets: [`ListenerKey`] → socket. Only with values of 8 bytes userspace may look an entry up; it
    /// gets the socket's cookie (`sock_map_lookup_sys`).
    LISTENERS: "sockhash", ListenerKey => u64 {
        key: "address, port, slot",
        value: "listening socket; its cookie, to user",
        writer: "sock_ops, user",
        reader: "steer, user",
        lifetime: "from listen(2) or attach until the socket closes, or until no attachment wants it",
    }
    /// What an attachment counts: its id → [`Stats`].
    STATS: "per-CPU hash", u32 => Stats {
        key: "attachment id",
        value: "counters, state of the event limiter",
        writer: "steer, steer_tc, sock_ops, user",
        reader: "user",
        lifetime: "made before its attachment, removed after it",
    }
    /// What listener tracking counts: index 0 → [`TrackStats`].
    TRACK_STATS: "per-CPU array", u32 => TrackStats {
        key: "0",
        value: "counters of listener tracking",
        writer: "sock_ops",
        reader: "user",
        lifetime: "that of the instance",
    }
    /// Network namespaces of sockets, below Linux 5.15: socket cookie → namespace cookie.
    SOCKET_NETNS: "LRU hash", u64 => u64 {
        key: "socket cookie",
        value: "namespace cookie",
        writer: "post_bind4 and 6, connect4 and 6",
        reader: "sock_ops, user",
        lifetime: "from bind(2), or a named container's connect(2), until newer ones push it out",
    }
    /// The hand-off from the steering programs to `sock_ops`: index 0 → [`Handoff`].
    HANDOFF: "per-CPU array", u32 => Handoff {
        key: "0",
        value: "the connection that steer_tc looks up, or left alone; the last packet assigned to a listener",
        writer: "steer, steer_tc, sock_ops",
        reader: "steer, sock_ops",
        lifetime: "the lookup while it runs; the assignment until sock_ops takes it, or the next packet for a listener",
    }
    /// Connections with the loopback identity that the kernel has made no request of yet: a slot → its fold.
    ASSIGNED: "array", u32 => u64 {
        key: "fold of addresses and ports, modulo the number of slots",
        value: "the fold; 0 in an empty slot",
        writer: "steer, steer_tc, sock_ops",
        reader: "steer, steer_tc, sock_ops",
        lifetime: "from the assignment of its SYN until sock_ops takes it, another packet of it needs a listener, or \
                   another connection needs the slot",
    }
    /// The SYN count: index 0 → [`SynCount`].
    SYN_COUNT: "array", u32 => SynCount {
        key: "0",
        value: "SYNs that steer_tc assigned and the kernel made no request of yet; until when a cookie may be valid",
        writer: "steer, steer_tc, sock_ops",
        reader: "steer_tc",
        lifetime: "that of the instance",
    }
    /// Pending handshakes: a slot → [`PendingHandshake`].
    PENDING: "array", u32 => PendingHandshake {
        key: "socket cookie modulo the number of slots",
        value: "check of the socket cookie; target, for the loopback identity; attachment id",
        writer: "sock_ops",
        reader: "sock_ops",
        lifetime: "from the SYN to the end of the handshake, or until another connection needs the slot",
    }
    /// Those with the loopback identity that lost their slot: socket cookie → [`Steered`].
    PENDING_LRU: "LRU hash", u64 => Steered {
        key: "socket cookie",
        value: "target, attachment id",
        writer: "sock_ops",
        reader: "sock_ops",
        lifetime: "from the loss of the slot to the end of the handshake, or until newer ones push it out",
    }
    /// The identity cache, sockets with the loopback identity: socket cookie → target.
    IDENTITIES: "hash", u64 => TargetKey {
        key: "socket cookie",
        value: "target, the socket's own address as the service sees it",
        writer: "sock_ops, sock_release",
        reader: "getpeername4 and 6, getsockname4 and 6",
        lifetime: "from the end of the handshake until the service closes the socket; never changed meanwhile",
    }
    /// The same for MPTCP sockets, whatever their identity, so that each is counted once; and for those [`IDENTITIES`]
    /// has no room for. Keys are descriptors, to userspace.
    SK_IDENTITY: "socket storage", u32 => TargetKey {
        key: "socket",
        value: "target, the same; port 0: the container's identity",
        writer: "sock_ops",
        reader: "getpeername4 and 6, getsockname4 and 6",
        lifetime: "from the end of the handshake until the kernel frees the socket",
    }
    /// The event channel, aya-log's ring buffer: [`Event`](crate::event::Event)s.
    AYA_LOGS: "ring buffer", () => () {
        key: "",
        value: "records of aya-log: kind, time, connection, attachment id",
        writer: "steer, steer_tc, sock_ops",
        reader: "user",
        lifetime: "until it is read",
    }
}

/// The `sk_lookup` program that steers connections.
pub const PROG_STEER: &str = "steer";
/// The tc program that steers connections to MPTCP listeners.
pub const PROG_STEER_TC: &str = "steer_tc";
/// The `sock_ops` program that tracks listeners and the handshakes of steered connections.
pub const PROG_SOCK_OPS: &str = "sock_ops";
/// The `cgroup/post_bind4` program that records the namespace of a bound IPv4 socket (below Linux 5.15).
pub const PROG_POST_BIND4: &str = "post_bind4";
/// The `cgroup/post_bind6` program that records the namespace of a bound IPv6 socket (below Linux 5.15).
pub const PROG_POST_BIND6: &str = "post_bind6";
/// The `cgroup/connect4` program that records the namespace of a named container's IPv4 socket (below Linux 5.15).
pub const PROG_CONNECT4: &str = "connect4";
/// The `cgroup/connect6` program that records the same for IPv6 (below Linux 5.15).
pub const PROG_CONNECT6: &str = "connect6";
/// The `cgroup/getpeername4` program: a service with the loopback identity sees 127.0.0.1 as its client.
pub const PROG_GETPEERNAME4: &str = "getpeername4";
/// The `cgroup/getpeername6` program: the same with ::1 or ::ffff:127.0.0.1.
pub const PROG_GETPEERNAME6: &str = "getpeername6";
/// The `cgroup/getsockname4` program: such a service sees the target as the socket's own address.
pub const PROG_GETSOCKNAME4: &str = "getsockname4";
/// The `cgroup/getsockname6` program: the same for IPv6.
pub const PROG_GETSOCKNAME6: &str = "getsockname6";
/// The `cgroup/sock_release` program, which removes a closed socket from the identity cache.
pub const PROG_SOCK_RELEASE: &str = "sock_release";

/// Every program. Which of them are loaded depends on the kernel, and on what is attached.
pub const ALL_PROGRAMS: [&str; 12] = [
    PROG_STEER,
    PROG_STEER_TC,
    PROG_SOCK_OPS,
    PROG_POST_BIND4,
    PROG_POST_BIND6,
    PROG_CONNECT4,
    PROG_CONNECT6,
    PROG_GETPEERNAME4,
    PROG_GETPEERNAME6,
    PROG_GETSOCKNAME4,
    PROG_GETSOCKNAME6,
    PROG_SOCK_RELEASE,
];

/// Load-time switch (`u8`): `sk_lookup` exposes `ingress_ifindex` (Linux 5.17).
pub const HAVE_INGRESS_IFINDEX: &str = "HAVE_INGRESS_IFINDEX";
/// Load-time switch (`u8`): `sock_ops` has `bpf_get_netns_cookie` (Linux 5.15).
pub const HAVE_NETNS_COOKIE: &str = "HAVE_NETNS_COOKIE";
/// Load-time switch (`u8`): `sock_ops` has `bpf_skc_to_mptcp_sock` (Linux 5.19).
pub const HAVE_MPTCP_HELPER: &str = "HAVE_MPTCP_HELPER";

/// Names in the relay's own object, of which nothing is ever pinned.
pub mod relay {
    use crate::{
        registry::maps,
        relay::{Credit, Progress, Totals},
    };

    maps! {
        /// Where a flow's bytes go: cookie of its source → sink socket. No program is attached to it.
        SINKS: "sockhash", u64 => u32 {
            key: "cookie of the flow's source",
            value: "sink socket",
            writer: "relay",
            reader: "redirect",
            lifetime: "from the offer of a flow to the kernel until the socket closes",
        }
        /// The sockets whose segments the program sees: cookie → that socket.
        SOURCES: "sockhash", u64 => u32 {
            key: "cookie of the flow's source",
            value: "that socket",
            writer: "relay",
            reader: "the kernel, which runs redirect for it",
            lifetime: "from the offer of a flow to the kernel until the socket closes",
        }
        /// What the program did: cookie of the source → [`Progress`].
        PROGRESS: "hash", u64 => Progress {
            key: "cookie of the flow's source",
            value: "bytes passed and redirected, and their cost",
            writer: "redirect, relay",
            reader: "redirect, relay",
            lifetime: "as long as the relay holds the flow",
        }
        /// What the program may do: cookie of the source → [`Credit`].
        CREDIT: "hash", u64 => Credit {
            key: "cookie of the flow's source",
            value: "whether redirecting is open, bytes drained, cost credited",
            writer: "relay",
            reader: "redirect",
            lifetime: "as long as the relay holds the flow",
        }
        /// Index [`UP`](crate::relay::UP) or [`DOWN`](crate::relay::DOWN) → [`Totals`].
        TOTALS: "per-CPU array", u32 => Totals {
            key: "direction",
            value: "bytes redirected",
            writer: "redirect",
            reader: "relay",
            lifetime: "that of the relay",
        }
    }

    /// The `sk_skb/stream_verdict` program.
    pub const PROG_REDIRECT: &str = "redirect";
}
