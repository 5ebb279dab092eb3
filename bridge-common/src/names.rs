//! Names of every map and program in the eBPF objects; pins in bpffs carry the same names.

/// The rules map: [`RuleKey`](crate::maps::RuleKey) → attachment id (`u32`).
pub const RULES: &str = "RULES";
/// The attachments map: attachment id (`u32`) → [`Attachment`](crate::maps::Attachment).
pub const ATTACHMENTS: &str = "ATTACHMENTS";
/// The allow-list trie: [`AllowKey`](crate::maps::AllowKey) → a constant of
/// [`Source`](crate::steer::Source).
pub const ALLOW: &str = "ALLOW";
/// The watched targets: [`TargetKey`](crate::maps::TargetKey) → `u32` (always 1).
pub const TARGETS: &str = "TARGETS";
/// Targets with an MPTCP listener: [`TargetKey`](crate::maps::TargetKey) → `u32` (always 1).
pub const MPTCP: &str = "MPTCP";
/// The listening sockets: [`ListenerKey`](crate::maps::ListenerKey) → socket.
pub const LISTENERS: &str = "LISTENERS";
/// Per-attachment counters: attachment id (`u32`) → [`Stats`](crate::maps::Stats), per CPU.
pub const STATS: &str = "STATS";
/// Listener-tracking counters: index 0 → [`TrackStats`](crate::maps::TrackStats), per CPU.
pub const TRACK_STATS: &str = "TRACK_STATS";
/// Where a socket was bound: socket cookie (`u64`) → network namespace cookie (`u64`); used below Linux 5.15.
pub const BOUND: &str = "BOUND";
/// What the programs have under way: index 0 → [`UnderWay`](crate::maps::UnderWay), per CPU.
pub const UNDER_WAY: &str = "UNDER_WAY";
/// How many SYNs the tc program gave to listeners that made no request of them: index 0 → `u64`.
pub const UNANSWERED: &str = "UNANSWERED";
/// Connections whose handshake is under way and whose service is to see a local client: a place by socket cookie →
/// [`Arriving`](crate::maps::Arriving).
pub const ARRIVING: &str = "ARRIVING";
/// Those whose place a later one took: socket cookie (`u64`) → the address and port the service is to believe its own
/// ([`TargetKey`](crate::maps::TargetKey)).
pub const OVERTAKEN: &str = "OVERTAKEN";
/// Connections whose service sees a local client: socket cookie (`u64`) → the address and port it believes its own.
pub const STORIES: &str = "STORIES";
/// Those of MPTCP, and those there was no room for in [`STORIES`]: socket → the same.
pub const LOCAL: &str = "LOCAL";
/// What this instance is: index 0 → [`Meta`](crate::maps::Meta).
pub const META: &str = "META";
/// aya-log's ring buffer.
pub const LOGS: &str = "AYA_LOGS";

/// Every map, in the order it is pinned.
pub const ALL_MAPS: [&str; 17] = [
    META,
    RULES,
    ATTACHMENTS,
    ALLOW,
    TARGETS,
    MPTCP,
    LISTENERS,
    STATS,
    TRACK_STATS,
    BOUND,
    UNDER_WAY,
    UNANSWERED,
    ARRIVING,
    OVERTAKEN,
    STORIES,
    LOCAL,
    LOGS,
];

/// The `sk_lookup` program that steers connections.
pub const PROG_STEER: &str = "steer";
/// The tc program that steers connections to MPTCP listeners.
pub const PROG_STEER_TC: &str = "steer_tc";
/// The `sock_ops` program that tracks listeners, and connections whose services see local clients.
pub const PROG_TRACK: &str = "track_listener";
/// The `cgroup/post_bind4` program that notes where an IPv4 socket was bound (below Linux 5.15).
pub const PROG_BIND4: &str = "note_bind4";
/// The `cgroup/post_bind6` program that notes where an IPv6 socket was bound (below Linux 5.15).
pub const PROG_BIND6: &str = "note_bind6";
/// The `cgroup/getpeername4` program that tells a service 127.0.0.1.
pub const PROG_PEER4: &str = "tell_peer4";
/// The `cgroup/getpeername6` program, ::1 or ::ffff:127.0.0.1.
pub const PROG_PEER6: &str = "tell_peer6";
/// The `cgroup/getsockname4` program that tells it the address it listens on.
pub const PROG_OWN4: &str = "tell_own4";
/// The `cgroup/getsockname6` program.
pub const PROG_OWN6: &str = "tell_own6";
/// The `cgroup/sock_release` program that forgets what a socket's owner was told.
pub const PROG_FORGET: &str = "forget";

/// Every program. Which of them are loaded depends on the kernel, and on what is attached.
pub const ALL_PROGRAMS: [&str; 10] = [
    PROG_STEER,
    PROG_STEER_TC,
    PROG_TRACK,
    PROG_BIND4,
    PROG_BIND6,
    PROG_PEER4,
    PROG_PEER6,
    PROG_OWN4,
    PROG_OWN6,
    PROG_FORGET,
];

/// Load-time switch (`u8`): `sk_lookup` exposes `ingress_ifindex` (Linux 5.17).
pub const HAVE_INGRESS_IFINDEX: &str = "HAVE_INGRESS_IFINDEX";
/// Load-time switch (`u8`): `sock_ops` has `bpf_get_netns_cookie` (Linux 5.15).
pub const HAVE_NETNS_COOKIE: &str = "HAVE_NETNS_COOKIE";
/// Load-time switch (`u8`): `sock_ops` has `bpf_skc_to_mptcp_sock` (Linux 5.19).
pub const HAVE_MPTCP_HELPER: &str = "HAVE_MPTCP_HELPER";

/// Names in the relay's own object, of which nothing is ever pinned.
pub mod relay {
    /// Where a flow's bytes go: cookie of the source (`u64`) → sink socket. No program is attached to it.
    pub const SINKS: &str = "SINKS";
    /// The sockets whose segments the program sees: cookie (`u64`) → that socket.
    pub const SOURCES: &str = "SOURCES";
    /// What the program did: cookie of the source (`u64`) → [`Progress`](crate::relay::Progress).
    pub const PROGRESS: &str = "PROGRESS";
    /// What it may do: cookie of the source (`u64`) → [`Credit`](crate::relay::Credit).
    pub const CREDIT: &str = "CREDIT";
    /// Index [`UP`](crate::relay::UP) or [`DOWN`](crate::relay::DOWN) → [`Totals`](crate::relay::Totals), per CPU.
    pub const TOTALS: &str = "TOTALS";
    /// Every map.
    pub const ALL_MAPS: [&str; 5] = [SINKS, SOURCES, PROGRESS, CREDIT, TOTALS];

    /// The `sk_skb/stream_verdict` program.
    pub const PROG_REDIRECT: &str = "redirect";
}
