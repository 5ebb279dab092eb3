//! Resolving and checking a request: what is there, what is wanted, and what is in the way. Changes nothing.

use std::{
    collections::{BTreeSet, HashSet},
    net::SocketAddr,
};

use anyhow::{Context as _, bail};
use ipnet::IpNet;

use super::{
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
    kernel::{Instance, features::Features, floor, instance::hidden},
    model::{
        attachment::Attachment,
        bridge::Bridge,
        datapath::{Capabilities, Requested},
        finding::Finding,
        identity::Identity,
        source::Source,
        spec::ServiceSpec,
    },
    net::{
        self,
        listeners::{Listener, tcp_listeners},
        namespace::Namespace,
        proc_fd,
    },
    plan::{self, Candidate, Intent, Network, Partition, request::Request},
    probe,
    scope::{Roots, Scope},
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

/// Resolves and checks a request; changes nothing.
///
/// # Errors
/// When something is missing or in the way; each message names the value, the cause and the next step.
pub fn prepare(request: &Request, scope: &Scope) -> anyhow::Result<Prepared> {
    request.refuse_contradictions()?;
    preflight::may_attach(request.may_steer().then_some(request.datapath), &scope.roots)?;
    let Some(container) = &request.container else {
        let docker = NetworkResolver::new(request);
        let Resolved { networks, left_out, held, .. } = docker.networks(request, &scope.namespace)?;
        let engine = Engine {
            container: None,
            refuse_published: &|state| docker.refuse_published(state),
            publisher: &|target| docker.publisher(target),
        };
        let mut intent = decide(request, scope, &networks, &engine)?;
        intent.left_out.splice(..0, left_out);
        return Ok(Prepared { intent, scope: scope.clone(), container: None, held });
    };
    preflight::may_enter()?;
    let container = ContainerRun::find(request, scope, container)?;
    let decided = container.scope().run(|| decide_inside(request, &container));
    let mut intent = decided.with_context(|| container.failed())?;
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
    decide(request, container.scope(), &container.networks(), &engine)
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

/// Compares the request for these networks with what is there.
fn decide(request: &Request, scope: &Scope, asked: &[Asked], engine: &Engine<'_>) -> anyhow::Result<Intent> {
    let instance = Instance::open(scope)?;
    let asked = &with_cookies(asked, instance.as_ref())?;
    let Steering { features, works, loopback } = steering(request, &scope.roots, instance.as_ref())?;
    let listeners = tcp_listeners(&scope.namespace)?;
    let capabilities = Capabilities {
        requested: request.datapath,
        steer: works,
        mptcp: mptcp_steering(request, features, instance.as_ref(), &listeners)?,
        sockmap: sockmap(request).map_err(|error| format!("{error:#}")),
        proxy_protocol: request.relay.proxy_protocol.is_some(),
        identity: request.identity,
        loopback,
    };
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
    let Partition { wanted, refused, kept, warnings, left_out } = sorted;
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

/// Whether the socket-map relay may be used, if it was asked for.
fn sockmap(request: &Request) -> anyhow::Result<()> {
    if request.datapath != Requested::Sockmap {
        return Ok(());
    }
    if !request.force {
        floor::require()?;
    }
    probe::require_sockmap()
}

/// What was found out about steering here, as far as the request needs to know; why not, where something does not work.
struct Steering {
    /// What it can use, if it works.
    features: Option<Features>,
    works: Result<(), String>,
    /// Whether services can be shown local clients, if that was asked for.
    loopback: Result<(), String>,
}

fn steering(request: &Request, roots: &Roots, instance: Option<&Instance>) -> anyhow::Result<Steering> {
    let unprobed = |features| Steering { features, works: Ok(()), loopback: Ok(()) };
    if !request.may_steer() {
        return Ok(unprobed(None));
    }
    if request.datapath == Requested::Steer {
        return Ok(unprobed(Some(preflight::steering_features(roots)?)));
    }
    let probed = instance.map_or(Ok(false), |instance| instance.state.meta().map(|meta| meta.probed != 0))?;
    let asked = request.identity == Identity::Loopback && !instance.is_some_and(Instance::tells_identities);
    let features = match judged(preflight::steering_features(roots))? {
        Ok(features) => features,
        Err(text) => return Ok(Steering { works: Err(text), ..unprobed(None) }),
    };
    let loopback = if asked { judged(probe::require_loopback_identity(features, roots))? } else { Ok(()) };
    // A connection that looked local was steered, too.
    let proved = probed || (asked && loopback.is_ok());
    let works = if proved { Ok(()) } else { judged(probe::require_steering(features))? };
    Ok(Steering { features: works.is_ok().then_some(features), works, loopback })
}

/// What came of trying something. That no descriptor was free says nothing of the kernel, and is an error.
fn judged<T>(tried: anyhow::Result<T>) -> anyhow::Result<Result<T, String>> {
    match tried {
        Ok(value) => Ok(Ok(value)),
        Err(error) if net::is_out_of_descriptors(&error) => Err(error.context(net::OUT_OF_DESCRIPTORS)),
        Err(error) => Ok(Err(format!("{error:#}"))),
    }
}

/// Whether steering to MPTCP listeners works, if the request is about any.
fn mptcp_steering(
    request: &Request,
    features: Option<Features>,
    instance: Option<&Instance>,
    listeners: &[Listener],
) -> anyhow::Result<Result<(), String>> {
    let Some(features) = features else { return Ok(Ok(())) };
    if !request.specs.iter().any(|spec| plan::is_mptcp(listeners, &spec.target)) {
        return Ok(Ok(()));
    }
    let known =
        instance.map_or(Ok(false), |instance| instance.tc_bridges().map(|there| !there.is_empty()))?;
    if known {
        return Ok(Ok(()));
    }
    judged(probe::require_mptcp_steering(features))
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
