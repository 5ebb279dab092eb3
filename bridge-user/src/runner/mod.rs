//! The relays of one process: started and stopped one by one or together, and reported.
//!
//! Invariants: an attachment has one relay per gateway address; dropping a [`Runner`] resets what its relays have
//! open. Used by `attach --foreground`; a daemon keeps its relays the same way.

pub mod control;
pub mod foreground;

use std::{net::SocketAddr, sync::Arc, thread};

use anyhow::Context as _;

use crate::{
    kernel::redirect::Redirect,
    model::{attachment::Attachment, datapath::Datapath, source::Source},
    net::{listeners::tcp_listeners, namespace::Namespace},
    observe::{readiness, report::AttachmentReport, snapshot::bridge_is_there},
    plan,
    relay::{Relay, RelayConfig, RelayOptions, RelayStats, raise_descriptor_limit},
};

/// The relays of this process.
pub struct Runner {
    namespace: Namespace,
    running: Vec<RunningRelay>,
}

/// One attachment's relays.
pub struct RunningRelay {
    state: Attachment,
    relays: Vec<Relay>,
}

impl Runner {
    /// No relays yet, of this namespace.
    pub fn new(namespace: &Namespace) -> Self {
        Self { namespace: namespace.clone(), running: Vec::new() }
    }

    /// Starts the relays of an attachment; connections are accepted when this returns.
    ///
    /// # Errors
    /// When a gateway's port cannot be bound or a resource is short; no relay of this attachment runs then.
    pub fn start(&mut self, wanted: &Attachment, options: RelayOptions) -> anyhow::Result<()> {
        if self.running.is_empty() {
            raise_descriptor_limit().context("failed to raise the limit on open files")?;
        }
        self.running.push(RunningRelay::start(&self.namespace, wanted, options)?);
        Ok(())
    }

    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// What `status` shows of these relays now.
    ///
    /// # Errors
    /// When the namespace's links or listeners cannot be read.
    pub fn entries(&self) -> anyhow::Result<Vec<AttachmentReport>> {
        let listeners = tcp_listeners(&self.namespace)?;
        let report = |running: &RunningRelay| {
            let there = bridge_is_there(&self.namespace, &running.state)?;
            let judgement = readiness::judge_relay(&running.state, there, &listeners);
            Ok(AttachmentReport::of_relay(&running.state, running.stats(), judgement))
        };
        self.running.iter().map(report).collect()
    }

    /// Takes out the attachments with these names.
    pub fn take(&mut self, names: &[String]) -> Vec<RunningRelay> {
        self.running.extract_if(.., |running| names.contains(&running.state.name())).collect()
    }

    /// Takes out all of them.
    pub fn take_all(&mut self) -> Vec<RunningRelay> {
        std::mem::take(&mut self.running)
    }
}

impl RunningRelay {
    fn start(namespace: &Namespace, state: &Attachment, options: RelayOptions) -> anyhow::Result<Self> {
        let failed = || plan::failed_to_attach(&state.service, state.port, &state.bridge);
        let start = |&gateway| {
            let listen = SocketAddr::new(gateway, state.port.get());
            let allow = state.allow.iter().filter_map(Source::net).copied().collect();
            let mut config = RelayConfig::new(
                &state.name(),
                namespace,
                listen,
                &state.bridge,
                state.target.clone(),
                allow,
            );
            config.own = state.gateways.iter().copied().collect();
            (config.proxy_protocol, config.limits) = (options.proxy_protocol, options.limits);
            if state.datapath == Datapath::Sockmap {
                let redirect = Redirect::load(options.limits.max_connections).with_context(failed)?;
                config.redirect = Some(Arc::new(redirect));
            }
            Relay::start(config).with_context(failed)
        };
        let relays = state.gateways.iter().map(start).collect::<Result<_, _>>()?;
        Ok(Self { state: state.clone(), relays })
    }

    fn stats(&self) -> RelayStats {
        self.relays.iter().map(Relay::stats).sum()
    }
}

/// Stops accepting on all of them, waits up to their drain time for open connections, and resets the rest. Returns the
/// number of those.
pub fn drain(stopping: Vec<RunningRelay>) -> u64 {
    thread::scope(|scope| {
        let relays = stopping.into_iter().flat_map(|running| running.relays);
        let draining: Vec<_> = relays.map(|mut relay| scope.spawn(move || relay.drain())).collect();
        // A relay that panicked has dropped its connections already.
        draining.into_iter().map(|thread| thread.join().unwrap_or(0)).sum()
    })
}
