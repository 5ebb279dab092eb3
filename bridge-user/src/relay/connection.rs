//! One accepted connection: joined to the target, and counted by how it ended.
//!
//! Invariants: every accepted socket is either joined to the target or reset, and counted; its place is given back when
//! it is over, however it ends. Nobody waits for a descriptor: who finds none is reset.

use std::{net::SocketAddr, os::fd::OwnedFd, rc::Rc, sync::Arc};

use rustix::io::Errno;
use tokio::time::Instant;

use super::{
    config::RelayConfig,
    ledger::Place,
    proxy_header,
    pump::{End, Offer, Pump},
    sockmap::REPEATED,
    stream::Stream,
    target::connect_to,
    transport::shrink,
    worker::{Worker, is_out_of_descriptors},
};
use crate::model::target::Target;

/// A connection that has a place.
pub(super) struct Connection {
    worker: Rc<Worker>,
    place: Place,
}

impl Connection {
    /// Counted as open from now on.
    pub(super) fn new(worker: &Rc<Worker>, place: Place) -> Self {
        worker.counters.active.add(1);
        Self { worker: Rc::clone(worker), place }
    }

    /// Carries it to its end.
    pub(super) async fn relay(self, socket: OwnedFd, from: SocketAddr) {
        let Worker { shared, counters, tools, .. } = &*self.worker;
        let Some(target) = self.connect().await else { return };
        let Ok(client) = Stream::new(socket, true) else {
            counters.accept_errors.add(1);
            return;
        };
        let piece = self.place.piece();
        shrink(&client, piece);
        shrink(&target, piece);
        counters.accepted.add(1);
        let version = shared.config.proxy_protocol;
        let head =
            version.map(|version| proxy_header::encode(version, from, shared.gateway)).unwrap_or_default();
        let mut pump = Pump::new(client, target, head, (&shared.config.limits, piece), self.offer());
        match pump.run(tools, counters).await {
            End::Complete => {}
            End::Broken(error) => {
                counters.resets.add(1);
                counters.repeated.add(u64::from(error == REPEATED));
            }
            End::Idle => counters.idle_closed.add(1),
            End::Stalled => {
                counters.stalled.add(1);
                shared.warnings.warn(
                    ("stalled", 0),
                    format_args!(
                        "reset a connection of {} on {}: one of its peers took nothing for {} s: read faster, or raise \
                         --stall-timeout",
                        from.ip(),
                        shared.gateway,
                        shared.config.limits.stall_timeout.unwrap_or_default().as_secs()
                    ),
                );
            }
        }
    }

    /// Connects to the target; if it fails, that is counted and said.
    async fn connect(&self) -> Option<Stream> {
        let Worker { shared, counters, .. } = &*self.worker;
        let deadline = Instant::now() + shared.config.limits.connect_timeout;
        let error = match connect_to(&shared.endpoint, shared.transport, deadline).await {
            Ok(target) => return Some(target),
            Err(error) => error,
        };
        if is_out_of_descriptors(error.cause()) {
            self.worker.say_out_of_descriptors(error.cause());
        } else {
            counters.no_listener.add(1);
            counters.foreign_target.add(u64::from(error.is_foreign()));
            let raw: Errno = error.cause();
            shared.warnings.warn(("connect", raw.raw_os_error()), error);
        }
        None
    }

    /// What the kernel offers a connection; UNIX sockets cannot take it.
    fn offer(&self) -> Option<Offer> {
        let RelayConfig { redirect, offload_after, target, .. } = &self.worker.shared.config;
        let redirect = redirect.as_ref()?;
        match target {
            Target::Tcp(_) => Some(Offer { redirect: Arc::clone(redirect), after: *offload_after }),
            Target::Unix(_) => {
                self.worker.counters.refused_offload.add(1);
                None
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.worker.counters.active.sub(1);
    }
}
