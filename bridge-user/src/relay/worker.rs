//! One worker thread: its own listener, its own runtime, its own connections.
//!
//! Invariants: the thread began in the relay's network namespace, and so all its sockets are there; a connection
//! lives and dies on the worker that accepted it; workers share only the limit on open connections, the log
//! limiter and the order to stop; every accepted socket is either joined to the target or reset, and counted;
//! running out of descriptors costs a failed call per [`BACK_OFF`] and connection, never a spin, and loses no
//! connection while the connect timeout lasts: those without a socket for their target wait for one, and the
//! others stay in the listener's queue until these have it; a listener that fails for good costs a failed call
//! per [`BACK_OFF`] as well.

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
use crate::model::target::Target;

/// How long accepting pauses when descriptors or memory are short, or the listener fails.
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
                Err(error) if is_shortage(error) => self.wait_for_resources(error).await,
                Err(error) => self.wait_for_listener(error).await,
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

    /// Counts and reports what the listener itself suffers from, and lets time pass: it may well last.
    async fn wait_for_listener(&self, error: Errno) {
        self.counters.accept_errors.add(1);
        let (gateway, cause) = (self.shared.gateway, std::io::Error::from(error));
        let next =
            "if something closed the socket (ss -K), attach again; if a security module denies it, allow it";
        self.shared.warnings.warn(
            ("listener", error.raw_os_error()),
            format_args!("failed to accept connections on {gateway}: {cause}: {next}"),
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
                // The next one may be well.
                Err(error) if is_about_one_connection(error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Starts a connection, or drops, and thereby resets, a socket that may not have one.
    fn admit(self: &Rc<Self>, socket: OwnedFd, from: SocketAddr) {
        let Shared { config, gateway, open, warnings, .. } = &*self.shared;
        if let Err((reason, next)) = config.admits(from.ip()) {
            self.counters.denied.add(1);
            warnings.warn((reason, 0), format_args!("refused {} on {gateway}: {reason}: {next}", from.ip()));
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

/// What accept(2) says of the connection that would have come, or of a signal, rather than of the listener.
fn is_about_one_connection(error: Errno) -> bool {
    matches!(
        error,
        Errno::INTR
            | Errno::CONNABORTED
            | Errno::PROTO
            | Errno::NETDOWN
            | Errno::NOPROTOOPT
            | Errno::HOSTDOWN
            | Errno::NONET
            | Errno::HOSTUNREACH
            | Errno::OPNOTSUPP
            | Errno::NETUNREACH
    )
}

impl Drop for Place {
    fn drop(&mut self) {
        self.worker.shared.open.fetch_sub(1, Relaxed);
        self.worker.counters.active.sub(1);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use rustix::net::{Shutdown, shutdown};
    use tokio::io::Interest;

    use super::*;
    use crate::{net::namespace::Namespace, relay::sys::register};

    fn worker_at(gateway: SocketAddr) -> Rc<Worker> {
        let config = RelayConfig::new(
            "test",
            &Namespace::current().unwrap(),
            gateway,
            "lo",
            Target::Tcp(gateway),
            Vec::new(),
        );
        let (open, warnings) = (AtomicUsize::new(0), Warnings::new("test"));
        let shared = Shared { config, gateway, transport: Transport::default(), open, warnings };
        let (shared, counters) = (Arc::new(shared), Arc::new(Counters::default()));
        Rc::new(Worker { shared, counters, tools: Tools::new(), starved: Cell::new(0) })
    }

    /// A listener that was shut down answers accept(2) with EINVAL for ever, like one that SOCK_DESTROY closed.
    #[test]
    fn a_listener_that_fails_for_good_is_asked_now_and_then() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        shutdown(&listener, Shutdown::Read).unwrap();
        let worker = worker_at(listener.local_addr().unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = register(listener.into(), Interest::READABLE).unwrap();
            let accepting = tokio::time::timeout(BACK_OFF * 5 / 2, worker.accept(&listener));
            assert!(accepting.await.is_err(), "it gave up");
            worker.accept_waiting(&listener);
        });
        let asked = worker.counters.accept_errors.get();
        assert!((1..=3).contains(&asked), "{asked} times");
    }

    #[test]
    fn errors_of_one_connection_are_told_from_those_of_the_listener() {
        for error in [Errno::CONNABORTED, Errno::PROTO, Errno::NETUNREACH, Errno::INTR] {
            assert!(is_about_one_connection(error), "{error}");
        }
        for error in [Errno::INVAL, Errno::PERM, Errno::ACCESS, Errno::BADF, Errno::MFILE, Errno::AGAIN] {
            assert!(!is_about_one_connection(error), "{error}");
        }
    }
}
