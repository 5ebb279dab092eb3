//! The userspace relay: accepts on a gateway port and moves bytes to a target that steering cannot serve (a
//! UNIX socket, an unwilling kernel).
//!
//! Invariants
//! - Packets that arrive on another interface than the bridge never reach it. The host's own to the gateway address
//!   count as the bridge's: the kernel accounts traffic to a local address to the interface that has it. They are
//!   refused by their source.
//! - No byte is lost, reordered or repeated; FIN and RST of either peer reach the other as what they are.
//! - A connection that does not end with FIN in both directions ends with a reset of both, also when the
//!   relay is killed; but a UNIX socket knows no reset, so a UNIX target sees its stream end.
//! - A UNIX target is connected to by threads without root or any capability, and only while it is the service's own.
//! - Memory per connection is bounded: an idle one holds no buffer and no pipe, a stalled one at most one of
//!   either besides the kernel's socket buffers.
//! - No lock and no shared counter on the byte path.
//! - Never imports aya or bollard; of the kernel module it uses `redirect` only.
//!
//! `config` what to do · `listener` the gateway port · `worker` threads, admission, drain · `connection` one of them ·
//! `target` the other side · `unix` whose socket that is · `user` who connects to it · `transport` socket options ·
//! `ledger` who may take how much · `pump` one connection · `stall` when it is given up · `flow` one direction ·
//! `sockmap` the same with the kernel's help · `stream` one socket.
//!
//! Urgent data (MSG_OOB): the byte is passed on inline, at its place in the stream, without the urgent mark.

mod config;
mod connection;
mod descriptors;
mod flow;
mod ledger;
mod listener;
mod pipe;
mod proxy_header;
mod pump;
mod sockmap;
mod stall;
mod stats;
mod stream;
mod target;
mod transport;
mod unix;
mod user;
mod warn;
mod worker;

use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::Arc,
    thread::{Builder, JoinHandle},
    time::Duration,
};

use anyhow::Context as _;
use nix::sys::signal::{SigSet, Signal};
use tokio::{
    io::Interest,
    runtime::{self, LocalOptions, LocalRuntime},
    sync::watch,
    time::Instant,
};

pub use config::{
    Limits, MAX_CONNECTIONS, MAX_KEEPALIVE, MAX_SECONDS, ProxyProtocol, RelayConfig, RelayOptions, seconds,
    unless_zero,
};
pub use descriptors::{memory, raise_descriptor_limit};
pub use ledger::Ledger;
pub use stats::RelayStats;
pub use user::User;

use crate::{
    kernel::redirect::Redirect,
    net::{namespace::Namespace, own::OwnAddresses, sys::register},
};
use ledger::Places;
use stats::Counters;
use target::Endpoint;
use worker::{Ready, Shared};

/// Stack of a worker: its futures live on the heap.
const WORKER_STACK: usize = 512 * 1024;

/// A running relay. Dropping it stops accepting and resets what is open.
pub struct Relay {
    local_addr: SocketAddr,
    drain: Duration,
    counters: Vec<Arc<Counters>>,
    redirect: Option<Arc<Redirect>>,
    endpoint: Arc<Endpoint>,
    user: Option<User>,
    stop: watch::Sender<Option<Instant>>,
    threads: Vec<JoinHandle<u64>>,
}

impl Relay {
    /// Binds the gateway port and starts the workers, both in the configured network namespace. Connections are
    /// accepted when this returns.
    ///
    /// # Errors
    /// If the port cannot be bound (names its owner where that can be found out) or a thread cannot be
    /// started; nothing is left behind then.
    pub fn start(config: RelayConfig) -> anyhow::Result<Relay> {
        let count = config.worker_count();
        let transport = transport::Transport::of(&config.namespace).with_context(|| {
            format!("failed to start relay {}: no TCP socket: look at the limits on descriptors", config.name)
        })?;
        let options = listener::ListenOptions { keepalive: config.limits.keepalive, transport, count };
        let (listeners, local_addr) =
            listener::listen_group(&config.namespace, config.listen, &config.bridge, options)?;
        let (stop, stopped) = watch::channel(None);
        let endpoint = Arc::new(Endpoint::find(&config.target));
        let user = endpoint.user();
        let mut relay = Relay {
            local_addr,
            endpoint: Arc::clone(&endpoint),
            user,
            drain: config.limits.drain,
            counters: Vec::new(),
            redirect: config.redirect.clone(),
            stop,
            threads: Vec::new(),
        };
        let warnings = warn::Warnings::new(&config.name);
        let places = Places::new(config.limits.max_connections, &config.ledger);
        let shared = Arc::new(Shared { config, endpoint, gateway: local_addr, transport, places, warnings });
        for (index, listener) in listeners.into_iter().enumerate() {
            let counters = Arc::new(Counters::default());
            relay.counters.push(Arc::clone(&counters));
            let thread =
                start_worker(index, Arc::clone(&shared), counters, (listener, user), stopped.clone());
            relay.threads.push(thread.with_context(|| {
                format!(
                    "failed to start worker {index} of relay {}: raise the limits on threads and files",
                    shared.config.name
                )
            })?);
        }
        Ok(relay)
    }

    /// Where it accepts.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Who connects to the target; `None`: to TCP, as whoever started the relay.
    pub fn user(&self) -> Option<User> {
        self.user
    }

    /// What is wrong with what is at the path of a UNIX target, if it is not the service's.
    pub fn foreign_target(&self) -> Option<String> {
        match &*self.endpoint {
            Endpoint::Tcp(_) => None,
            Endpoint::Unix(target) => {
                target.open().err().filter(|error| error.is_foreign()).map(|e| e.to_string())
            }
        }
    }

    /// The counters now.
    pub fn stats(&self) -> RelayStats {
        // The counters of a loaded program can always be read.
        let kernel = self.redirect.as_ref().and_then(|redirect| redirect.totals().ok()).unwrap_or_default();
        self.counters.iter().map(|counters| counters.read()).sum::<RelayStats>().with_redirected(kernel)
    }

    /// Stops accepting, waits for open connections up to the configured time, resets the rest, and says how
    /// many those were. Connections that are established but not accepted yet are served. Blocks; a second
    /// call has nothing to do.
    pub fn drain(&mut self) -> u64 {
        self.stop_by(Instant::now() + self.drain)
    }

    fn stop_by(&mut self, deadline: Instant) -> u64 {
        self.stop.send_replace(Some(deadline));
        // A worker that panicked has dropped its connections already.
        self.threads.drain(..).map(|thread| thread.join().unwrap_or(0)).sum()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop_by(Instant::now());
    }
}

fn start_worker(
    index: usize,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    (listener, user): (OwnedFd, Option<User>),
    stop: watch::Receiver<Option<Instant>>,
) -> io::Result<JoinHandle<u64>> {
    // Everything that can fail happens before the thread starts serving; the runtime itself cannot change threads.
    let (ready, started) = std::sync::mpsc::sync_channel(1);
    let namespace = shared.config.namespace.clone();
    let builder = Builder::new().name(format!("relay-{index}")).stack_size(WORKER_STACK);
    let body = move || {
        match prepare(&shared.config.namespace, listener, user) {
            Ok((runtime, with)) => {
                // The receiver waits in `start_worker`.
                let _ = ready.send(Ok(()));
                let left = runtime.block_on(worker::serve(shared, counters, with, stop));
                // Drops the connections that are left: they are armed to reset.
                drop(runtime);
                left
            }
            Err(error) => {
                let _ = ready.send(Err(error));
                0
            }
        }
    };
    // A thread that starts there opens its sockets there.
    let thread = namespace.run(|| builder.spawn(body))??;
    started.recv().map_err(io::Error::other)??;
    Ok(thread)
}

fn prepare(
    namespace: &Namespace,
    listener: OwnedFd,
    user: Option<User>,
) -> io::Result<(LocalRuntime, Ready)> {
    // splice(2) has no MSG_NOSIGNAL, and the program may have restored SIGPIPE's default.
    SigSet::from(Signal::SIGPIPE).thread_block()?;
    let runtime = runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build_local(LocalOptions::default())?;
    let listener = {
        let _context = runtime.enter();
        register(listener, Interest::READABLE)?
    };
    let own = OwnAddresses::of(namespace)?;
    // From here on it deals with clients, and with a path that others may change.
    user.map_or(Ok(()), User::adopt)?;
    Ok((runtime, Ready { listener, own }))
}

#[cfg(test)]
mod tests;
