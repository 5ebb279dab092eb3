//! The relays of one process: started all or none, reported, stopped one by one or together.
//!
//! Invariants: an attachment has one relay per gateway address; dropping a [`Runner`] resets what its relays have
//! open. Used by `attach --foreground`; a daemon keeps its relays the same way.

pub mod control;
pub mod foreground;

use std::{net::SocketAddr, sync::Arc, thread};

use anyhow::Context as _;

use crate::{
    attachment::AttachmentState,
    datapath::Datapath,
    kernel::redirect::Redirect,
    net::{links, listeners::tcp_listeners},
    plan,
    relay::{Limits, ProxyProtocol, Relay, RelayConfig, RelayStats, raise_descriptor_limit},
    report::{self, Entry},
};

/// How the relays of a process work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Tell the target who the client is.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Limits of each relay: an attachment with an IPv4 and an IPv6 gateway has two.
    pub limits: Limits,
}

/// The relays of this process.
#[derive(Default)]
pub struct Runner {
    running: Vec<Running>,
}

/// One attachment's relays.
pub struct Running {
    state: AttachmentState,
    relays: Vec<Relay>,
}

impl Runner {
    /// Starts the relays of every attachment in `wanted`; connections are accepted when this returns.
    ///
    /// # Errors
    /// When a gateway's port cannot be bound or a resource is short; no relay runs then.
    pub fn start(wanted: &[AttachmentState], options: Options) -> anyhow::Result<Self> {
        if wanted.is_empty() {
            return Ok(Self::default());
        }
        raise_descriptor_limit().context("failed to raise the limit on open files")?;
        let running = wanted.iter().map(|state| Running::start(state, options)).collect::<Result<_, _>>()?;
        Ok(Self { running })
    }

    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// What `status` shows of these relays now.
    ///
    /// # Errors
    /// When this namespace's links or listeners cannot be read.
    pub fn entries(&self) -> anyhow::Result<Vec<Entry>> {
        let listeners = tcp_listeners()?;
        let entry = |running: &Running| {
            let there = links::is_there(&running.state)?;
            let judgement = report::judge_relay(&running.state, there, &listeners);
            Ok(Entry::of_relay(&running.state, running.stats(), judgement))
        };
        self.running.iter().map(entry).collect()
    }

    /// Takes out the attachments with these names.
    pub fn take(&mut self, names: &[String]) -> Vec<Running> {
        self.running.extract_if(.., |running| names.contains(&running.state.name())).collect()
    }

    /// Takes out all of them.
    pub fn take_all(&mut self) -> Vec<Running> {
        std::mem::take(&mut self.running)
    }
}

impl Running {
    fn start(state: &AttachmentState, options: Options) -> anyhow::Result<Self> {
        let failed = || plan::failed_to_attach(&state.service, state.port, &state.bridge);
        let start = |&gateway| {
            let listen = SocketAddr::new(gateway, state.port.get());
            let allow = state.allow.iter().copied().collect();
            let mut config =
                RelayConfig::new(&state.name(), listen, &state.bridge, state.target.clone(), allow);
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
pub fn drain(stopping: Vec<Running>) -> u64 {
    thread::scope(|scope| {
        let relays = stopping.into_iter().flat_map(|running| running.relays);
        let draining: Vec<_> = relays.map(|mut relay| scope.spawn(move || relay.drain())).collect();
        // A relay that panicked has dropped its connections already.
        draining.into_iter().map(|thread| thread.join().unwrap_or(0)).sum()
    })
}
