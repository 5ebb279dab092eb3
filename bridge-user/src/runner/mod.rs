//! The relays of one process: started and stopped one by one or together, and reported.
//!
//! Invariants: an attachment has one relay per gateway address; dropping a [`Runner`] resets what its relays have
//! open. Used by `attach --foreground` and by the daemon.

pub mod control;
mod directory;
pub mod door;
pub mod foreground;
pub mod protocol;
mod wire;

use std::{net::SocketAddr, sync::Arc, thread};

use anyhow::Context as _;

use crate::{
    kernel::redirect::Redirect,
    model::{
        attachment::Attachment,
        datapath::Datapath,
        source::{NamedContainer, Source},
    },
    net::{clients::Clients, links::bridge_by_index, listeners::tcp_listeners, namespace::Namespace},
    observe::{checks::serving, readiness, report::AttachmentReport, surroundings::Surroundings},
    plan,
    relay::{Ledger, Relay, RelayConfig, RelayOptions, RelayStats, User, memory, raise_descriptor_limit},
};

/// The relays of this process.
pub struct Runner {
    namespace: Namespace,
    running: Vec<RunningRelay>,
    /// What its relays share, once there is one.
    ledger: Option<Arc<Ledger>>,
}

/// One attachment's relays.
pub struct RunningRelay {
    state: Attachment,
    relays: Vec<Relay>,
    options: RelayOptions,
}

impl Runner {
    /// No relays yet, of this namespace.
    pub fn new(namespace: &Namespace) -> Self {
        Self { namespace: namespace.clone(), running: Vec::new(), ledger: None }
    }

    /// Starts the relays of an attachment; connections are accepted when this returns.
    ///
    /// # Errors
    /// When a gateway's port cannot be bound or a resource is short; no relay of this attachment runs then.
    pub fn start(&mut self, wanted: &Attachment, options: RelayOptions) -> anyhow::Result<()> {
        let ledger = match &self.ledger {
            Some(ledger) => Arc::clone(ledger),
            None => {
                let descriptors =
                    raise_descriptor_limit().context("failed to raise the limit on open files")?;
                Arc::clone(self.ledger.insert(Arc::new(Ledger::new(descriptors, memory()))))
            }
        };
        self.running.push(RunningRelay::start(&self.namespace, wanted, options, &ledger)?);
        Ok(())
    }

    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Who the rest of the process may be, now that the relays run: that of its first relay, if all of them relay to
    /// UNIX sockets. Others need their capabilities for each connection.
    pub fn user(&self) -> Option<User> {
        let users: Option<Vec<User>> =
            self.running.iter().flat_map(|running| &running.relays).map(Relay::user).collect();
        users?.first().copied()
    }

    /// What `status` shows of these relays now.
    ///
    /// # Errors
    /// When the namespace's links or listeners cannot be read.
    pub fn entries(&self) -> anyhow::Result<Vec<AttachmentReport>> {
        let listeners = tcp_listeners(&self.namespace)?;
        let targets: Vec<_> = self.running.iter().filter_map(|running| running.state.target.tcp()).collect();
        let around = Surroundings::of_relays(&self.namespace, &targets, &listeners)?;
        let facts = readiness::Snapshot { listeners, around, ..Default::default() };
        let report = |running: &RunningRelay| {
            let bridge = bridge_by_index(&self.namespace, running.state.ifindex)?;
            let judgement = match running.relays.iter().find_map(Relay::foreign_target) {
                Some(what) => readiness::foreign_target(&running.state, &what),
                None => readiness::judge_relay(&running.state, bridge.as_ref(), &facts),
            };
            let report = AttachmentReport::of_relay(&running.state, running.stats(), judgement);
            let mut report = report.own_first(bridge.as_ref());
            let user = running.relays.iter().find_map(Relay::user);
            report.findings.extend(user.map(|user| serving::unix_client(&running.state, &user.to_string())));
            let there_are = self.ledger.as_ref().map(|ledger| ledger.max_connections());
            let too_few = there_are.filter(|&there_are| there_are < running.options.limits.max_connections);
            report.findings.extend(too_few.map(|there_are| {
                serving::few_descriptors(&running.state, running.options.limits.max_connections, there_are)
            }));
            Ok(report)
        };
        self.running.iter().map(report).collect()
    }

    /// Its attachments.
    pub fn attachments(&self) -> impl Iterator<Item = &Attachment> {
        self.running.iter().map(|running| &running.state)
    }

    /// Whether this attachment's relays run, and just so.
    pub fn is_running(&self, wanted: &Attachment, options: RelayOptions) -> bool {
        self.running.iter().any(|running| running.state == *wanted && running.options == options)
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
    /// What it relays.
    pub fn attachment(&self) -> &Attachment {
        &self.state
    }

    fn start(
        namespace: &Namespace,
        state: &Attachment,
        options: RelayOptions,
        ledger: &Arc<Ledger>,
    ) -> anyhow::Result<Self> {
        let failed = || plan::failed_to_attach(&state.service, state.port, &state.bridge);
        let named = clients(state).with_context(failed)?;
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
            config.named.clone_from(&named);
            config.refuse_host = true;
            config.ledger = Arc::clone(ledger);
            (config.proxy_protocol, config.limits) = (options.proxy_protocol, options.limits);
            if state.datapath == Datapath::Sockmap {
                let redirect = Redirect::load(options.limits.max_connections).with_context(failed)?;
                config.redirect = Some(Arc::new(redirect));
            }
            Relay::start(config).with_context(failed)
        };
        let relays = state.gateways.iter().map(start).collect::<Result<_, _>>()?;
        Ok(Self { state: state.clone(), relays, options })
    }

    fn stats(&self) -> RelayStats {
        self.relays.iter().map(Relay::stats).sum()
    }
}

/// The containers of an allow-list.
fn clients(state: &Attachment) -> anyhow::Result<Vec<Arc<Clients>>> {
    let open = |container: &NamedContainer| {
        let clients = Clients::of(&Namespace::of_named(container)?)
            .with_context(|| format!("failed to ask for the connections of container {}", container.name))?;
        Ok(Arc::new(clients))
    };
    state.allow.iter().filter_map(Source::container).map(open).collect()
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
