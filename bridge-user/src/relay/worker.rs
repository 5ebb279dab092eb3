//! One worker thread: its own listener, its own runtime, its own connections.
//!
//! Invariants: the thread began in the relay's network namespace, and so all its sockets are there; a connection
//! lives and dies on the worker that accepted it; workers share only the places and bytes of connections, the log
//! limiter and the order to stop. Without a descriptor for a connection it is reset, by giving up one that is kept for
//! that: nobody is left to hang, and nothing spins. A listener that fails for good costs a failed call per
//! [`BACK_OFF`].

use std::{
    cell::Cell,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use rustix::{
    fs::{Mode, OFlags, open},
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
    connection::Connection,
    flow::Tools,
    ledger::{NoPlace, Places},
    stats::Counters,
    target::Endpoint,
    transport::Transport,
    warn::Warnings,
};
use crate::net::own::OwnAddresses;

/// How long accepting pauses when descriptors or memory are short, or the listener fails.
const BACK_OFF: Duration = Duration::from_millis(50);
/// Connections accepted before the others get their turn.
const ACCEPT_BATCH: usize = 16;
/// How often a draining worker looks whether it is done.
const DRAIN_POLL: Duration = Duration::from_millis(5);

/// What all workers of a relay share.
pub(super) struct Shared {
    pub(super) config: RelayConfig,
    /// The target, as it was found at the start.
    pub(super) endpoint: Arc<Endpoint>,
    /// The gateway address and port clients connect to.
    pub(super) gateway: SocketAddr,
    /// The options of all the relay's sockets.
    pub(super) transport: Transport,
    /// The places of open connections.
    pub(super) places: Arc<Places>,
    pub(super) warnings: Warnings,
}

/// What a worker serves with, made before it begins.
pub(super) struct Ready {
    /// The worker's own listener.
    pub(super) listener: AsyncFd<OwnedFd>,
    /// Tells the host's own addresses.
    pub(super) own: OwnAddresses,
}

/// One thread's part of a relay.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) counters: Arc<Counters>,
    pub(super) tools: Tools,
    own: OwnAddresses,
    /// Given up to turn somebody away when there is no other descriptor.
    spare: Cell<Option<OwnedFd>>,
}

/// Serves until `stop` carries a deadline, then finishes what is open until then. Returns how many
/// connections are left, which the caller cuts by dropping the runtime.
pub(super) async fn serve(
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    Ready { listener, own }: Ready,
    mut stop: watch::Receiver<Option<Instant>>,
) -> u64 {
    let worker = Rc::new(Worker::new(shared, counters, own));
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
    fn new(shared: Arc<Shared>, counters: Arc<Counters>, own: OwnAddresses) -> Self {
        let tools = Tools::new(&shared.config.ledger);
        Self { shared, counters, tools, own, spare: Cell::new(spare()) }
    }

    async fn accept(self: &Rc<Self>, listener: &AsyncFd<OwnedFd>) {
        loop {
            match self.accept_some(listener) {
                Ok(()) => tokio::task::yield_now().await,
                Err(Errno::AGAIN) if somebody_waits(listener).await.is_ok() => {}
                // The runtime shuts down.
                Err(Errno::AGAIN) => return,
                Err(error) if is_out_of_descriptors(error) => self.turn_one_away(listener, error).await,
                Err(error) => self.wait_for_listener(error).await,
            }
        }
    }

    /// Resets the next connection, with the descriptor that is kept for that; nobody is left to hang. Without one,
    /// accept(2) does not say whether there is a next connection at all.
    async fn turn_one_away(&self, listener: &AsyncFd<OwnedFd>, error: Errno) {
        drop(self.spare.take());
        // Armed to reset like its listener.
        let turned_away = acceptfrom_with(listener.get_ref(), SocketFlags::CLOEXEC).map(drop);
        self.spare.set(spare());
        match turned_away {
            Ok(()) => self.say_out_of_descriptors(error),
            Err(Errno::AGAIN) => drop(somebody_waits(listener).await),
            // Another thread was faster to take the descriptor.
            Err(_) => sleep(BACK_OFF).await,
        }
        tokio::task::yield_now().await;
    }

    /// Counts and reports a connection that is reset for lack of a descriptor.
    pub(super) fn say_out_of_descriptors(&self, error: Errno) {
        self.counters.no_descriptor.add(1);
        let (gateway, cause) = (self.shared.gateway, io::Error::from(error));
        self.shared.warnings.warn(
            ("shortage", error.raw_os_error()),
            format_args!(
                "reset a connection to {gateway}: {cause}: raise the limit on open files (LimitNOFILE=) or lower \
                 max-connections"
            ),
        );
    }

    /// Counts and reports what the listener itself suffers from, and lets time pass: it may well last.
    async fn wait_for_listener(&self, error: Errno) {
        self.counters.accept_errors.add(1);
        let (gateway, cause) = (self.shared.gateway, io::Error::from(error));
        let next = "if memory is short, make room; if something closed the socket (ss -K), attach again; if a security \
                    module denies it, allow it";
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
        let Shared { gateway, places, warnings, .. } = &*self.shared;
        if let Err((reason, next)) = self.admits(from) {
            self.counters.denied.add(1);
            warnings.warn((reason, 0), format_args!("refused {} on {gateway}: {reason}: {next}", from.ip()));
            return;
        }
        match places.take(from.ip()) {
            Ok(place) => drop(tokio::task::spawn_local(Connection::new(self, place).relay(socket, from))),
            Err(why) => self.refuse(from.ip(), why),
        }
    }

    /// Counts and says that there is no place for a source.
    fn refuse(&self, from: IpAddr, why: NoPlace) {
        let Shared { config, gateway, places, warnings, .. } = &*self.shared;
        let max = config.limits.max_connections.min(config.ledger.max_connections());
        let (counter, key, reason) = match why {
            NoPlace::Full => (&self.counters.over_limit, "limit", "too many connections are open"),
            NoPlace::Share => {
                (&self.counters.over_share, "share", "it has as many connections as are free for all others")
            }
        };
        counter.add(1);
        let open = places.taken();
        warnings.warn(
            (key, 0),
            format_args!(
                "refused {from} on {gateway}: {reason} ({open} of {max} are open): raise max-connections and the limit \
                 on open files (LimitNOFILE=)"
            ),
        );
    }

    /// Whether a source may connect; otherwise why not, and what to do.
    fn admits(&self, from: SocketAddr) -> Result<(), (&'static str, &'static str)> {
        let Shared { config, gateway, .. } = &*self.shared;
        // Asked now: an address may have become the host's since the relay was started.
        match if config.refuse_host { self.own.contain(from.ip()) } else { Ok(false) } {
            Ok(true) => Err(("it is the host itself", "connect to the target")),
            Err(_) => Err(("the kernel does not say whose address it is", "make room in its memory")),
            Ok(false) if !config.allows(from, *gateway) => {
                Err(("it is not in the allow-list", "add it with --allow"))
            }
            Ok(false) => Ok(()),
        }
    }
}

/// Ready when there is a connection to accept.
async fn somebody_waits(listener: &AsyncFd<OwnedFd>) -> io::Result<()> {
    listener.readable().await.map(|mut guard| guard.clear_ready())
}

/// The process has no descriptor left, or the system.
pub(super) fn is_out_of_descriptors(error: Errno) -> bool {
    matches!(error, Errno::MFILE | Errno::NFILE)
}

/// A descriptor to give up when there is no other.
fn spare() -> Option<OwnedFd> {
    open("/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()
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

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use rustix::net::{Shutdown, shutdown};
    use tokio::io::Interest;

    use super::*;
    use crate::{
        model::target::Target,
        net::{namespace::Namespace, sys::register},
    };

    fn worker_at(gateway: SocketAddr) -> Rc<Worker> {
        let config = RelayConfig::new(
            "test",
            &Namespace::current().unwrap(),
            gateway,
            "lo",
            Target::Tcp(gateway),
            Vec::new(),
        );
        let (places, warnings) = (Places::new(1000, &config.ledger), Warnings::new("test"));
        let own = OwnAddresses::of(&config.namespace).unwrap();
        let endpoint = Arc::new(Endpoint::find(&config.target));
        let shared = Shared { config, endpoint, gateway, transport: Transport::default(), places, warnings };
        let (shared, counters) = (Arc::new(shared), Arc::new(Counters::default()));
        Rc::new(Worker::new(shared, counters, own))
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
