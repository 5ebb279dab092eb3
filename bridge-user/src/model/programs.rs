//! Which eBPF programs an instance has, where each is attached, and how pins are named. Pure.
//!
//! Invariant: the pin of a program's link is `link_<program>`; whatever stands for something outside of bpffs has a pin
//! of its own.

use std::{fmt, path::PathBuf};

use bridge_common::names;
use serde::Serialize;

use super::features::Features;

/// The programs of the loopback identity, in attach order: entries of closed sockets are removed from the start.
pub const IDENTITY: [&str; 5] = [
    names::PROG_SOCK_RELEASE,
    names::PROG_GETPEERNAME4,
    names::PROG_GETPEERNAME6,
    names::PROG_GETSOCKNAME4,
    names::PROG_GETSOCKNAME6,
];

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// Of the network namespace.
    SkLookup,
    /// Of the root cgroup.
    SockOps,
    /// Of the root cgroup.
    PostBind,
    /// Of the root cgroup.
    Connect,
    /// Of the root cgroup.
    Getpeername,
    /// Of the root cgroup.
    Getsockname,
    /// Of the root cgroup.
    SockRelease,
}

impl Hook {
    /// That of a program that is not attached to interfaces.
    pub fn of(program: &str) -> Self {
        match program {
            names::PROG_STEER => Self::SkLookup,
            names::PROG_POST_BIND4 | names::PROG_POST_BIND6 => Self::PostBind,
            names::PROG_CONNECT4 | names::PROG_CONNECT6 => Self::Connect,
            names::PROG_GETPEERNAME4 | names::PROG_GETPEERNAME6 => Self::Getpeername,
            names::PROG_GETSOCKNAME4 | names::PROG_GETSOCKNAME6 => Self::Getsockname,
            names::PROG_SOCK_RELEASE => Self::SockRelease,
            _ => Self::SockOps,
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SkLookup => "sk_lookup of the network namespace",
            Self::SockOps => "sock_ops of the root cgroup",
            Self::PostBind => "post_bind of the root cgroup",
            Self::Connect => "connect of the root cgroup",
            Self::Getpeername => "getpeername of the root cgroup",
            Self::Getsockname => "getsockname of the root cgroup",
            Self::SockRelease => "sock_release of the root cgroup",
        })
    }
}

/// How a program is attached to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TcHook {
    /// By a link (Linux 6.6).
    Tcx,
    /// As a filter of a clsact qdisc, which is made if there is none.
    Clsact,
}

impl TcHook {
    /// Every one.
    pub const ALL: [Self; 2] = [Self::Tcx, Self::Clsact];

    /// The one that the kernel offers.
    pub fn of(features: Features) -> Self {
        if features.tcx { Self::Tcx } else { Self::Clsact }
    }
}

/// The programs that track listeners and named clients, in attach order; they are attached before the one that steers.
pub fn tracking(features: Features) -> &'static [&'static str] {
    if features.netns_cookie {
        &[names::PROG_SOCK_OPS]
    } else {
        &[
            names::PROG_POST_BIND4,
            names::PROG_POST_BIND6,
            names::PROG_CONNECT4,
            names::PROG_CONNECT6,
            names::PROG_SOCK_OPS,
        ]
    }
}

/// The pin name of an attached program's link.
pub fn link_name(program: &str) -> String {
    format!("link_{program}")
}

/// The pin name of what attaches the tc program to an interface: the link itself, or what stands for the filter.
pub fn tc_pin(hook: TcHook, ifindex: u32) -> PathBuf {
    let kind = match hook {
        TcHook::Tcx => "link",
        TcHook::Clsact => "filter",
    };
    format!("{kind}_{}_{ifindex}", names::PROG_STEER_TC).into()
}

/// The pin name of what stands for a clsact qdisc that was made on an interface.
pub fn qdisc_mark(ifindex: u32) -> String {
    format!("qdisc_{ifindex}")
}
