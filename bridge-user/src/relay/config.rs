//! What one relay is told: where to accept, for whom, where to connect to, and within which limits.
//!
//! Invariants: plain data; every default is written here and nowhere else.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ipnet::IpNet;

use super::{
    descriptors::{descriptor_limit, memory},
    ledger::Ledger,
};
use serde::{Deserialize, Serialize};

use crate::{
    kernel::redirect::Redirect,
    model::target::Target,
    net::{clients::Clients, namespace::Namespace},
};

/// Most workers a relay starts by itself: a host has many relays, and one worker moves more than one service
/// asks for.
const MAX_DEFAULT_WORKERS: usize = 4;

/// Handing over costs some 25 system calls, and the kernel more when the sockets close: as much as ten to twenty
/// exchanges through userspace. Connections of one or two exchanges are better off without.
const DEFAULT_OFFLOAD_AFTER: u64 = 8;

/// More connections than a process can have descriptors for.
pub const MAX_CONNECTIONS: usize = 1 << 20;
/// A day: nothing waits longer, in seconds.
pub const MAX_SECONDS: f64 = 86400.0;
/// The kernel takes no longer silence before its probes (`MAX_TCP_KEEPIDLE`), in seconds.
pub const MAX_KEEPALIVE: f64 = 32767.0;

/// A number of seconds that may have a fraction, if it is one from 0 to `max`.
pub fn seconds(number: f64, max: f64) -> Option<Duration> {
    (0.0..=max).contains(&number).then(|| Duration::from_secs_f64(number))
}

/// A time for which 0 stands for never.
pub fn unless_zero(time: Duration) -> Option<Duration> {
    (!time.is_zero()).then_some(time)
}

/// One relay: one gateway port in front of one target.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// The attachment's name, for messages and thread names.
    pub name: String,
    /// Gateway address and port to accept on; port 0 takes a free one (see [`super::Relay::local_addr`]).
    pub listen: SocketAddr,
    /// Where the gateway port, the target and all of the relay's sockets are.
    pub namespace: Namespace,
    /// The bridge interface; packets that arrive on any other interface never reach the relay.
    pub bridge: String,
    /// Where accepted connections go.
    pub target: Target,
    /// Sources that may connect. Empty allows nobody.
    pub allow: Vec<IpNet>,
    /// Containers that may connect, too, each by the sockets of its namespace.
    pub named: Vec<Arc<Clients>>,
    /// Whether the host itself may not connect, from whatever address: it reaches the target as whoever it is, and not
    /// as the relay's user.
    pub refuse_host: bool,
    /// Tells the target who the client is, before the client's first byte.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Limits and timeouts.
    pub limits: Limits,
    /// What it shares with the other relays of the process.
    pub ledger: Arc<Ledger>,
    /// Worker threads; `None`: one per core, at most four.
    pub workers: Option<usize>,
    /// Lets the kernel move the bytes of connections it takes; `None`: all are moved by userspace. One for each relay,
    /// since it counts the relay's bytes and has room for the relay's connections.
    pub redirect: Option<Arc<Redirect>>,
    /// Steps (reads and writes) in each direction before a connection is offered to the kernel.
    pub offload_after: u64,
}

impl RelayConfig {
    /// A relay with default limits and no PROXY header, alone in its process.
    pub fn new(
        name: &str,
        namespace: &Namespace,
        listen: SocketAddr,
        bridge: &str,
        target: Target,
        allow: Vec<IpNet>,
    ) -> Self {
        Self {
            namespace: namespace.clone(),
            name: name.to_owned(),
            listen,
            bridge: bridge.to_owned(),
            target,
            allow,
            named: Vec::new(),
            refuse_host: false,
            proxy_protocol: None,
            limits: Limits::default(),
            ledger: Arc::new(Ledger::new(descriptor_limit(), memory())),
            workers: None,
            redirect: None,
            offload_after: DEFAULT_OFFLOAD_AFTER,
        }
    }

    /// Whether a source is on the list: by its address, or as a container that has this connection to `gateway`.
    pub(super) fn allows(&self, from: SocketAddr, gateway: SocketAddr) -> bool {
        let is_named = || self.named.iter().any(|clients| clients.have(from, gateway).unwrap_or(false));
        self.allow.iter().any(|net| net.contains(&from.ip())) || is_named()
    }

    /// How many workers to start, at least one.
    pub(super) fn worker_count(&self) -> usize {
        // Two beat one also on two cores, which the client and the service need as well: 64-byte round trips on 16
        // connections 0.86 → 1.02 of the best peer, connects 0.96 → 1.02 (`cargo xtask bench relay`).
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.workers.unwrap_or_else(|| cores().min(MAX_DEFAULT_WORKERS)).max(1)
    }
}

/// Versions of HAProxy's PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub enum ProxyProtocol {
    /// One line of text.
    V1,
    /// Binary.
    V2,
}

/// How the relays of a process work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayOptions {
    /// Tell the target who the client is.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Limits of each relay: an attachment with an IPv4 and an IPv6 gateway has two.
    pub limits: Limits,
}

/// What a relay's connections may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Open connections over all workers; those above it are reset at once, and those of a source that holds as many as
    /// are free.
    pub max_connections: usize,
    /// A connection without a byte in either direction for this long is reset; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// A connection with bytes that one of its peers does not take for this long is reset; `None`: never.
    pub stall_timeout: Option<Duration>,
    /// How long the target may take to accept before the client is reset.
    pub connect_timeout: Duration,
    /// Silence after which the kernel probes whether the client still exists (whole seconds, at least 1);
    /// `None`: no probes. Loopback and UNIX targets cannot vanish unnoticed and are not probed.
    pub keepalive: Option<Duration>,
    /// How long [`super::Relay::drain`] waits for open connections.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 16_384,
            idle_timeout: None,
            stall_timeout: Some(Duration::from_secs(300)),
            connect_timeout: Duration::from_secs(5),
            keepalive: Some(Duration::from_secs(60)),
            drain: Duration::from_secs(10),
        }
    }
}
