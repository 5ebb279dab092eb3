//! One worker thread: its own listener, its own runtime, its own connections.
//!
//! Invariants: a connection lives and dies on the worker that accepted it; workers share only the limit on
//! open connections, the log limiter and the order to stop; every accepted socket is either joined to the
//! target or reset, and counted; running out of descriptors costs a failed call per [`BACK_OFF`] and
//! connection, never a spin, and loses no connection while the connect timeout lasts: those without a socket
//! for their target wait for one, and the others stay in the listener's queue until these have it.

use std::{
    cell::Cell,
    net::SocketAddr,
    os::fd::OwnedFd,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{SocketFlags, acceptfrom_with},
};
use tokio::{
    io::unix::AsyncFd,
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    config::RelayConfig,
    flow::Tools,
    proxy_header,
    pump::{End, Offer, Pump},
    sockmap::REPEATED,
    stats::Counters,
    stream::Stream,
    target::{ConnectError, connect_to},
    transport::Transport,
    warn::Warnings,
};
use crate::spec::Target;

/// How long accepting pauses when descriptors or memory are short.
const BACK_OFF: Duration = Duration::from_millis(50);
/// Connections accepted before the others get their turn.
const ACCEPT_BATCH: usize = 16;
/// How often a draining worker looks whether it is done.
const DRAIN_POLL: Duration = Duration::from_millis(5);

/// What all workers of a relay share.
pub(super) struct Shared {
    pub(super) config: RelayConfig,
    /// The gateway address and port clients connect to.
    pub(super) gateway: SocketAddr,
    /// The options of all the relay's sockets.
    pub(super) transport: Transport,
    /// Open connections of all workers.
    pub(super) open: AtomicUsize,
    pub(super) warnings: Warnings,
}

struct Worker {
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    tools: Tools,
    /// Connections that wait for a descriptor.
    starved: Cell<usize>,
}

/// Serves until `stop` carries a deadline, then finishes what is open until then. Returns how many
/// connections are left, which the caller cuts by dropping the runtime.
pub(super) async fn serve(
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    listener: AsyncFd<OwnedFd>,
    mut stop: watch::Receiver<Option<Instant>>,
) -> u64 {
    let worker = Rc::new(Worker { shared, counters, tools: Tools::new(), starved: Cell::new(0) });
    // A sender that is gone means the same as a deadline that has passed.
    let deadline = tokio::select! {
        biased;
        stop = stop.wait_for(Option::is_some) => stop.ok().and_then(|at| *at).unwrap_or_else(Instant::now),
        () = worker.accept(&listener) => Instant::now(),
    };
    // Closing a listener resets what it has not handed out: take that first.
    worker.accept_waiting(&listener);
    drop(listener);
    while worker.counters.active.get() > 0 && Instant::now() < deadline {
        sleep(DRAIN_POLL).await;
    }
    worker.counters.active.get()
}

impl Worker {
    async fn accept(self: &Rc<Self>, listener: &AsyncFd<OwnedFd>) {
        loop {
            if self.starved.get() > 0 {
                sleep(BACK_OFF).await;
                continue;
            }
            match self.accept_some(listener) {
                Ok(()) => tokio::task::yield_now().await,
                Err(Errno::AGAIN) => match listener.readable().await {
                    Ok(mut guard) => guard.clear_ready(),
                    // The runtime shuts down.
                    Err(_) => return,
                },
                Err(error) => self.wait_for_resources(error).await,
            }
        }
    }

    /// Counts and reports the shortage that `error` is, and lets time pass.
    async fn wait_for_resources(&self, error: Errno) {
        self.counters.accept_errors.add(1);
        let (gateway, cause) = (self.shared.gateway, std::io::Error::from(error));
        let next = "raise the limit (LimitNOFILE=) or lower max-connections";
        self.shared.warnings.warn(
            ("shortage", error.raw_os_error()),
            format_args!("failed to open another socket for {gateway}: {cause}: {next}"),
        );
        sleep(BACK_OFF).await;
    }

    fn accept_waiting(self: &Rc<Self>, listener: &AsyncFd<OwnedFd>) {
        while self.accept_some(listener).is_ok() {}
    }

    /// Accepts up to [`ACCEPT_BATCH`] connections; the error that stopped it before, if any.
    fn accept_some(self: &Rc<Self>, listener: &AsyncFd<OwnedFd>) -> Result<(), Errno> {
        for _ in 0..ACCEPT_BATCH {
            match acceptfrom_with(listener.get_ref(), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok((socket, Some(from))) => {
                    if let Ok(from) = SocketAddr::try_from(from) {
                        self.admit(socket, from);
                    }
                }
                Ok((_, None)) => {}
                Err(error) if error == Errno::AGAIN || is_shortage(error) => return Err(error),
                // The others are about the connection that would have come (accept(2)): look for the next.
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Starts a connection, or drops, and thereby resets, a socket that may not have one.
    fn admit(self: &Rc<Self>, socket: OwnedFd, from: SocketAddr) {
        let Shared { config, gateway, open, warnings, .. } = &*self.shared;
        if !config.allow.iter().any(|net| net.contains(&from.ip())) {
            self.counters.denied.add(1);
            warnings.warn(
                ("denied", 0),
                format_args!(
                    "refused {} on {gateway}: its address is not allowed: add it with --allow",
                    from.ip()
                ),
            );
            return;
        }
        let limit = config.limits.max_connections;
        let Some(place) = Place::take(self, limit) else {
            self.counters.over_limit.add(1);
            let open = open.load(Relaxed);
            warnings.warn(
                ("limit", 0),
                format_args!(
                    "refused {} on {gateway}: {open} of {limit} connections are open: raise max-connections",
                    from.ip()
                ),
            );
            return;
        };
        tokio::task::spawn_local(place.relay(socket, from));
    }
}

impl Worker {
    /// What the kernel offers a connection; UNIX sockets cannot take it.
    fn offer(&self) -> Option<Offer> {
        let RelayConfig { redirect, offload_after, target, .. } = &self.shared.config;
        let redirect = redirect.as_ref()?;
        match target {
            Target::Tcp(_) => Some(Offer { redirect: Arc::clone(redirect), after: *offload_after }),
            Target::Unix(_) => {
                self.counters.refused_offload.add(1);
                None
            }
        }
    }
}

/// A connection's place among those that may be open; dropped with it.
struct Place {
    worker: Rc<Worker>,
}

impl Place {
    fn take(worker: &Rc<Worker>, limit: usize) -> Option<Self> {
        let open = &worker.shared.open;
        if open.fetch_add(1, Relaxed) >= limit {
            open.fetch_sub(1, Relaxed);
            return None;
        }
        worker.counters.active.add(1);
        Some(Self { worker: Rc::clone(worker) })
    }

    async fn relay(self, socket: OwnedFd, from: SocketAddr) {
        let Worker { shared, counters, tools, .. } = &*self.worker;
        let limits = &shared.config.limits;
        let target = match self.connect().await {
            Ok(target) => target,
            Err(error) => {
                counters.no_listener.add(1);
                shared.warnings.warn(("connect", error.cause().raw_os_error()), error);
                return;
            }
        };
        let Ok(client) = Stream::new(socket, true) else {
            counters.accept_errors.add(1);
            return;
        };
        counters.accepted.add(1);
        let version = shared.config.proxy_protocol;
        let head =
            version.map(|version| proxy_header::encode(version, from, shared.gateway)).unwrap_or_default();
        let offer = self.worker.offer();
        let mut pump = Pump::new(client, target, head, limits.idle_timeout, offer);
        match pump.run(tools, counters).await {
            End::Complete => {}
            End::Broken(error) => {
                counters.resets.add(1);
                counters.repeated.add(u64::from(error == REPEATED));
            }
            End::Idle => counters.idle_closed.add(1),
        }
    }
}

impl Place {
    /// Connects to the target, again and again while descriptors are short.
    async fn connect(&self) -> Result<Stream, ConnectError> {
        let Worker { shared, starved, .. } = &*self.worker;
        let deadline = Instant::now() + shared.config.limits.connect_timeout;
        loop {
            match connect_to(&shared.config.target, shared.transport, deadline).await {
                Err(error) if is_shortage(error.cause()) && Instant::now() + BACK_OFF < deadline => {
                    starved.set(starved.get() + 1);
                    self.worker.wait_for_resources(error.cause()).await;
                    starved.set(starved.get() - 1);
                }
                result => return result,
            }
        }
    }
}

fn is_shortage(error: Errno) -> bool {
    matches!(error, Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)
}

impl Drop for Place {
    fn drop(&mut self) {
        self.worker.shared.open.fetch_sub(1, Relaxed);
        self.worker.counters.active.sub(1);
    }
}
