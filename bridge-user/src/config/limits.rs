//! The `[relay]` section, and what an `[[attach]]` section says in its place: limits and timeouts.

use std::time::Duration;

use super::section::Section;
use crate::relay::{
    Limits, MAX_CONNECTIONS, MAX_KEEPALIVE, MAX_SECONDS, ProxyProtocol, RelayOptions, unless_zero,
};

/// Reads the section; what it leaves out is as in `outer`.
pub(super) fn options(section: &mut Section<'_>, outer: RelayOptions) -> RelayOptions {
    let proxy_protocol = section.choice::<ProxyProtocol>("proxy-protocol").map(|found| found.value);
    let max_connections = section.integer("max-connections", 1..MAX_CONNECTIONS + 1);
    let mut time = |key, max| section.seconds(key, max);
    let or_never = |time: Option<Duration>, outer| time.map_or(outer, unless_zero);
    let limits = Limits {
        max_connections: max_connections.unwrap_or(outer.limits.max_connections),
        idle_timeout: or_never(time("idle-timeout", MAX_SECONDS), outer.limits.idle_timeout),
        stall_timeout: or_never(time("stall-timeout", MAX_SECONDS), outer.limits.stall_timeout),
        connect_timeout: time("connect-timeout", MAX_SECONDS).unwrap_or(outer.limits.connect_timeout),
        keepalive: or_never(time("keepalive", MAX_KEEPALIVE), outer.limits.keepalive),
        drain: time("drain-timeout", MAX_SECONDS).unwrap_or(outer.limits.drain),
    };
    RelayOptions { proxy_protocol: proxy_protocol.or(outer.proxy_protocol), limits }
}
