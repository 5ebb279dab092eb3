//! Resolving and checking a request: what is there, what is wanted, and what is in the way. Changes nothing.

use std::{
    collections::{BTreeSet, HashSet},
    net::SocketAddr,
};

use anyhow::{Context as _, bail};
use ipnet::IpNet;

use super::{
    capabilities::capabilities,
    checks::surroundings::in_front,
    container::ContainerRun,
    elsewhere::elsewhere,
    gateways,
    networks::{Asked, NetworkResolver},
    preflight, readiness,
    resolve::Resolved,
    surroundings::Surroundings,
};
use crate::{
    kernel::{Instance, instance::hidden},
    model::{
        attachment::Attachment, bridge::Bridge, datapath::Capabilities, finding::Finding, source::Source,
        spec::ServiceSpec,
    },
    net::{
        listeners::{Listener, tcp_listeners},
        namespace::Namespace,
        proc_fd,
    },
    plan::{self, Candidate, Intent, Network, Partition, RelayPlace, request::Request},
    scope::Scope,
};

/// An attach that passed every check, and where it is to happen.
pub struct Prepared {
    /// What is going to be done.
    pub intent: Intent,
    /// The namespace it happens in, with the roots of who asked.
    pub scope: Scope,
    /// The container whose namespace that is.
    pub container: Option<ContainerRun>,
    /// The namespaces of allowed containers, held so that nobody else gets their inodes until they are written down.
    #[expect(dead_code, reason = "held for its Drop")]
    held: Vec<Namespace>,
}

impl Prepared {
    /// Names the container where something inside of it failed.
    ///
    /// # Errors
    /// That of the outcome.
    pub(crate) fn inside<T>(&self, outcome: anyhow::Result<T>) -> anyhow::Result<T> {
        match &self.container {
            Some(container) => outcome.with_context(|| container.failed()),
            None => outcome,
        }
    }
}

/// Resolves and checks a request; changes nothing. `running`: where the process that is going to relay does so already:
/// those listeners are in nobody's way.
///
/// # Errors
/// When something is missing or in the way; each message names the value, the cause and the next step.
pub fn prepare(request: &Request, scope: &Scope, running: &[RelayPlace]) -> anyhow::Result<Prepared> {
    request.refuse_contradictions()?;
    preflight::may_attach(request.may_steer().then_some(request.datapath), &scope.roots)?;
    let Some(container) = &request.container else {
        let docker = NetworkResolver::new(request);
        let Resolved { networks, gathered, .. } = docker.networks(request, &scope.namespace)?;
        let engine = Engine {
            container: None,
            refuse_published: &|state| docker.refuse_published(state),
            publisher: &|target| docker.publisher(target),
        };
        let mut intent = decide(request, scope, &networks, running, &engine)?;
        intent.left_out.splice(..0, gathered.left_out);
        return Ok(Prepared { intent, scope: scope.clone(), container: None, held: gathered.held });
    };
    preflight::may_enter()?;
    let container = ContainerRun::find(request, scope, container)?;
    let decided = container.scope().run(|| decide_inside(request, &container));
    let mut intent = decided.with_context(|| container.failed())?;
    intent.left_out.splice(..0, container.left_out().iter().cloned());
    for refusal in &mut intent.refused {
        refusal.error = format!("{}: {}", container.failed(), refusal.error);
    }
    let scope = container.scope().clone();
    Ok(Prepared { intent, scope, container: Some(container), held: Vec::new() })
}

fn decide_inside(request: &Request, container: &ContainerRun) -> anyhow::Result<Intent> {
    let engine = Engine {
        container: Some(&container.running.name),
        refuse_published: &|state| container.refuse_published(request, state),
        // Containers of an engine inside a container are not this engine's.
        publisher: &|_| None,
    };
    decide(request, container.scope(), &container.networks(), &[], &engine)
}

/// What an engine knows.
struct Engine<'a> {
    /// The container that is attached in, by its name.
    container: Option<&'a str>,
    /// Refuses an attachment at a port that it publishes.
    refuse_published: &'a dyn Fn(&Attachment) -> anyhow::Result<()>,
    /// The container that it publishes this address and port for.
    publisher: &'a dyn Fn(SocketAddr) -> Option<String>,
}

/// Compares the request for these networks with what is there. `running`: as for [`prepare`].
fn decide(
    request: &Request,
    scope: &Scope,
    asked: &[Asked],
    running: &[RelayPlace],
    engine: &Engine<'_>,
) -> anyhow::Result<Intent> {
    let instance = Instance::open(scope)?;
    let asked = &with_cookies(asked, instance.as_ref())?;
    let mut listeners = tcp_listeners(&scope.namespace)?;
    listeners.retain(|listener| !running.iter().any(|relay| relay.is_of(listener)));
    let (features, capabilities) = capabilities(request, &scope.roots, instance.as_ref(), &listeners)?;
    let targets: BTreeSet<SocketAddr> = request.specs.iter().filter_map(|spec| spec.target.tcp()).collect();
    let targets: Vec<SocketAddr> = targets.into_iter().collect();
    let around = Surroundings::of(&scope.namespace, &targets, &listeners)?;
    let elsewhere = elsewhere(&scope.namespace, &targets, &listeners, &around, engine.publisher)?;
    let known = plan::Surroundings {
        listeners: &listeners,
        elsewhere: &elsewhere,
        match_ifindex: features.is_none_or(|features| features.ingress_ifindex),
    };
    let is_in_front = |state: &Attachment, bridge: &Bridge| around.in_front(state, bridge).is_some();
    let leave_out = |state: &mut Attachment, network: &Network| {
        gateways::leave_out_taken(state, network, &listeners, is_in_front)
    };
    let candidates = candidates(request, asked, engine.container, leave_out, &capabilities, known);
    gateways::require_served(&request.gateways, &candidates)?;
    let (present, next_id): (Vec<_>, _) = match instance {
        Some(instance) => {
            let all = instance.state.list()?.into_iter().map(|(_, state)| state).collect();
            (all, instance.state.meta()?.next_id)
        }
        None => (Vec::new(), 1),
    };
    let networks: Vec<&Network> = asked.iter().filter_map(|one| one.found.as_ref().ok()).collect();
    let check = |state: &Attachment| {
        (engine.refuse_published)(state)?;
        refuse_bound(state, &listeners)?;
        refuse_bypassed(request, state, &networks, &around)
    };
    let check = |state: &Attachment| check(state).map_err(|error| format!("{error:#}"));
    let sorted = plan::partition(request, &candidates, &present, next_id, check);
    let Partition { wanted, refused, kept, outdated, warnings, left_out } = sorted;
    let findings = wanted.iter().flat_map(|state| expected(state, &networks, &around)).collect();
    let (relayed, steered): (_, Vec<Attachment>) =
        wanted.into_iter().partition(|state| state.datapath.is_relay());
    if !steered.is_empty() {
        preflight::may_pin(scope, &hidden::find(scope)?)?;
    }
    let is_replaced = |present: &Attachment| steered.iter().any(|state| state.is_same(present));
    let replaced = present.into_iter().filter(is_replaced).collect();
    let event_level = request.event_level;
    Ok(Intent {
        features,
        steered,
        relayed,
        replaced,
        listeners,
        refused,
        kept,
        outdated,
        warnings,
        findings,
        left_out,
        event_level,
    })
}

/// Each SPEC on each network; `leave_out` takes from it the addresses that are not served, and tells of them.
fn candidates<'a>(
    request: &'a Request,
    asked: &'a [Asked],
    container: Option<&'a str>,
    leave_out: impl Fn(&mut Attachment, &Network) -> Vec<Finding>,
    capabilities: &Capabilities,
    known: plan::Surroundings<'_>,
) -> Vec<Candidate<'a>> {
    let candidate = |network: &'a Asked, spec: &'a ServiceSpec| {
        let there = network.found.as_ref();
        let mut found =
            there.map_err(Clone::clone).and_then(|network| plan::wanted(spec, network, capabilities, known));
        let left_out = match (&mut found, there) {
            (Ok(state), Ok(network)) => leave_out(state, network),
            _ => Vec::new(),
        };
        let bridge = there.ok().map(|network| &network.bridge);
        Candidate { spec, network: &network.name, container, bridge, found, left_out }
    };
    asked
        .iter()
        .flat_map(|network| request.specs.iter().map(move |spec| (network, spec)))
        .map(|(network, spec)| candidate(network, spec))
        .collect()
}

/// The networks with the cookies of allowed containers that only an attached program can tell (below Linux 5.14).
fn with_cookies(asked: &[Asked], instance: Option<&Instance>) -> anyhow::Result<Vec<Asked>> {
    let mut asked = asked.to_vec();
    let Some(instance) = instance else { return Ok(asked) };
    let networks = asked.iter_mut().filter_map(|one| one.found.as_mut().ok());
    for source in networks.flat_map(|network| &mut network.allow) {
        if let Source::Container(container) = source
            && container.cookie.is_none()
        {
            container.cookie = Some(instance.state.cookie_of(container)?);
        }
    }
    Ok(asked)
}

fn bridge_of<'a>(state: &Attachment, networks: &[&'a Network]) -> Option<&'a Bridge> {
    networks.iter().map(|network| &network.bridge).find(|bridge| bridge.index == state.ifindex)
}

/// Refuses an allow-list that a NAT rule in front would make void: narrower than the bridge's subnets, so meant to keep
/// somebody out.
fn refuse_bypassed(
    request: &Request,
    state: &Attachment,
    networks: &[&Network],
    around: &Surroundings,
) -> anyhow::Result<()> {
    let Some(bridge) = bridge_of(state, networks).filter(|_| !request.allow.is_empty()) else {
        return Ok(());
    };
    let own = bridge.addrs.iter().filter(|net| state.gateways.contains(&net.addr()));
    let is_wide = own
        .map(IpNet::trunc)
        .all(|subnet| state.allow.iter().filter_map(Source::net).any(|net| net.contains(&subnet)));
    match around.in_front(state, bridge).filter(|_| !is_wide) {
        None => Ok(()),
        Some((gateway, rule)) => bail!(
            "{}, so --allow would keep nobody out: delete the rule, or choose another port (NAME=PORT:TARGET_PORT)",
            in_front(state, gateway, &rule)
        ),
    }
}

/// What status is going to find, as far as it does not depend on the service.
fn expected(state: &Attachment, networks: &[&Network], around: &Surroundings) -> Vec<Finding> {
    let Some(bridge) = bridge_of(state, networks) else { return Vec::new() };
    let obstacle = readiness::obstacle(state, bridge, around).map(|judgement| judgement.findings);
    obstacle.into_iter().flatten().chain(readiness::remarks(state, bridge, around)).collect()
}

fn refuse_bound(state: &Attachment, listeners: &[Listener]) -> anyhow::Result<()> {
    // A relay would have to listen there, too.
    if let Some(own) = plan::on_every_address(listeners, state).filter(|_| state.datapath.is_relay()) {
        bail!(
            "{} listens on {}, every address including the gateway, so containers and everybody else reach it already: \
             bind it to {} first, then attach; or use --datapath steer, with --identity loopback if it answers only \
             local clients; or give containers another port (NAME=PORT:{})",
            owner_name(own),
            own.addr,
            state.target,
            state.port
        );
    }
    let Some(listener) = plan::bound_on_gateway(listeners, state) else { return Ok(()) };
    let owner = owner_name(listener);
    bail!(
        "port {} is already bound on the gateway by {owner} ({}): choose another port (NAME=PORT:TARGET_PORT), or \
         stop it",
        state.port,
        listener.addr
    );
}

/// `redis-server (pid 812)`, or what is known instead.
pub fn owner_name(listener: &Listener) -> String {
    match proc_fd::owners_of(&HashSet::from([listener.inode])).remove(&listener.inode) {
        Some(owner) => owner.to_string(),
        None => format!("a process of user {}", listener.uid),
    }
}
