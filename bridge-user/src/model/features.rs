//! What this kernel's eBPF can do. Pure data; `kernel::features` finds out.

/// The optional kernel features the programs adapt to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// sk_lookup programs exist (Linux 5.9).
    pub sk_lookup: bool,
    /// sk_lookup tells the interface a packet arrived on (Linux 5.17). Without it, a connection is matched by
    /// gateway address and source subnet.
    pub ingress_ifindex: bool,
    /// sock_ops can tell a listener's network namespace (Linux 5.15). Without it, a bind(2) hook notes it.
    pub netns_cookie: bool,
    /// sock_ops can recognise an MPTCP listener (Linux 5.19).
    pub mptcp_helper: bool,
    /// A tc program can be attached by a link (Linux 6.6). Without it, it is a filter of a clsact qdisc.
    pub tcx: bool,
}
