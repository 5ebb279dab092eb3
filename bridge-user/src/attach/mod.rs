//! The `attach` verb: resolve, refuse what cannot work, then change the kernel's state, all or nothing.

mod container;
pub mod dry_run;
pub mod follow;
mod resolve;

use std::collections::HashSet;

use anyhow::{Context as _, anyhow, bail};

use crate::{
    UsageError,
    attachment::{AttachmentState, Identity},
    check,
    datapath::{Facts, Reason, Requested, steerable},
    kernel::{
        features::Features,
        floor,
        instance::{Instance, Session, Writer},
        object::EventLevel,
        state::State,
    },
    net::{
        listeners::{Listener, tcp_listeners},
        proc_fd,
    },
    plan::{self, Network},
    preflight, runner,
    spec::ServiceSpec,
};

pub use container::Place;
use resolve::NetworkResolver;
pub use resolve::Source;

/// What to attach, parsed.
#[derive(Clone, Debug)]
pub struct Request {
    /// Services.
    pub specs: Vec<ServiceSpec>,
    /// The container to attach inside of, by name or id.
    pub container: Option<String>,
    /// Docker networks; with no bridges either, the network `bridge`. Inside a container: those it is on, or all of them.
    pub networks: Vec<String>,
    /// Bridges by interface name.
    pub bridges: Vec<String>,
    /// Datapath asked for.
    pub datapath: Requested,
    /// Whom services see of steered connections.
    pub identity: Identity,
    /// Allowed sources; empty: the bridge's own subnets.
    pub allow: Vec<Source>,
    /// Level of the event channel; `None` keeps what is there.
    pub event_level: Option<EventLevel>,
    /// How relays work.
    pub relay: runner::Options,
    /// Use the sockmap relay although this kernel is known for bugs in what it uses.
    pub force: bool,
}

impl Request {
    /// Whether steering is among the possible datapaths.
    fn may_steer(&self) -> bool {
        let asked = matches!(self.datapath, Requested::Auto | Requested::Steer);
        asked && self.specs.iter().any(|spec| spec.target.tcp().is_some())
    }

    /// Refuses what no host could do.
    fn refuse_contradictions(&self) -> Result<(), UsageError> {
        if self.datapath != Requested::Steer {
            return Ok(());
        }
        let proxy_protocol = self.relay.proxy_protocol.is_some();
        let mut targets = self.specs.iter().map(|spec| &spec.target);
        targets.try_for_each(|target| steerable(target, proxy_protocol)).map_err(UsageError)
    }
}

/// An attach that passed every check, ready to be carried out or shown.
pub struct Prepared {
    /// What the kernel can do, where something is to be steered.
    pub features: Option<Features>,
    /// What to steer.
    pub steered: Vec<AttachmentState>,
    /// What to relay.
    pub relayed: Vec<AttachmentState>,
    /// The listeners there are now.
    pub listeners: Vec<Listener>,
    /// The container it happens inside of.
    pub place: Option<Place>,
    event_level: Option<EventLevel>,
}

impl Prepared {
    /// Runs `body` in the network namespace the request is about.
    fn in_place<T: Send>(&self, body: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        match &self.place {
            Some(place) => place.run(body),
            None => body(),
        }
    }

    /// Everything that is wanted.
    pub fn wanted(&self) -> impl Iterator<Item = &AttachmentState> {
        self.steered.iter().chain(&self.relayed)
    }

    /// Whether only an MPTCP listener serves it now.
    pub fn is_mptcp(&self, state: &AttachmentState) -> bool {
        plan::is_mptcp(&self.listeners, &state.target)
    }

    /// Requires that no process is needed.
    ///
    /// # Errors
    /// Names what needs one, why, and the way out.
    pub fn require_no_relay(&self) -> anyhow::Result<()> {
        let Some(first) = self.relayed.first() else { return Ok(()) };
        bail!(
            "{}: it needs a relay ({}: {}), which lives in a process, and this version has no daemon: add --foreground \
             and keep it running, for example in a systemd unit",
            plan::failed_to_attach(&first.service, first.port, &first.bridge),
            first.datapath,
            first.reason
        )
    }
}

/// Resolves and checks a request; changes nothing.
///
/// # Errors
/// When something is missing or in the way; each message names the value, the cause and the next step.
pub fn prepare(request: &Request) -> anyhow::Result<Prepared> {
    request.refuse_contradictions()?;
    preflight::may_attach(request.may_steer().then_some(request.datapath))?;
    let Some(container) = &request.container else {
        let docker = NetworkResolver::new(request)?;
        return prepare_here(request, &docker.networks(request)?, |state| docker.refuse_published(state));
    };
    preflight::may_enter()?;
    let place = Place::find(request, container)?;
    let prepared = place.run(|| {
        let published = |state: &AttachmentState| place.refuse_published(request, state);
        let prepared = prepare_here(request, &place.networks()?, published)?;
        container::require_steered(&prepared)?;
        Ok(prepared)
    })?;
    Ok(Prepared { place: Some(place), ..prepared })
}

/// [`prepare`] for known networks, in the calling thread's namespace.
fn prepare_here(
    request: &Request,
    networks: &[Network],
    refuse_published: impl Fn(&AttachmentState) -> anyhow::Result<()>,
) -> anyhow::Result<Prepared> {
    let instance = Instance::open()?;
    let Steering { features, works, loopback } = steering(request, instance.as_ref())?;
    let listeners = tcp_listeners()?;
    let facts = Facts {
        requested: request.datapath,
        steer: works,
        mptcp: mptcp_steering(request, features, instance.as_ref(), &listeners)?,
        sockmap: sockmap(request).map_err(|error| format!("{error:#}")),
        proxy_protocol: request.relay.proxy_protocol.is_some(),
        identity: request.identity,
        loopback,
    };
    let match_ifindex = features.is_none_or(|features| features.ingress_ifindex);
    let wanted = plan::wanted(&request.specs, networks, &facts, &listeners, match_ifindex)
        .map_err(|text| anyhow!(text))?;
    let present: Vec<_> = match instance {
        Some(instance) => instance.state.list()?.into_iter().map(|(_, state)| state).collect(),
        None => Vec::new(),
    };
    for state in &wanted {
        let failed = || plan::failed_to_attach(&state.service, state.port, &state.bridge);
        plan::taken_by_attachment(state, &present).map_err(|text| anyhow!("{}: {text}", failed()))?;
        refuse_published(state).with_context(failed)?;
        refuse_bound(state, &listeners).with_context(failed)?;
    }
    let (relayed, steered) = wanted.into_iter().partition(|state| state.datapath.is_relay());
    Ok(Prepared { features, steered, relayed, listeners, place: None, event_level: request.event_level })
}

/// Whether the socket-map relay may be used, if it was asked for.
fn sockmap(request: &Request) -> anyhow::Result<()> {
    if request.datapath != Requested::Sockmap {
        return Ok(());
    }
    if !request.force {
        floor::require()?;
    }
    check::require_sockmap()
}

/// What was found out about steering here, as far as the request needs to know; why not, where something does not work.
struct Steering {
    /// What it can use, if it works.
    features: Option<Features>,
    works: Result<(), String>,
    /// Whether services can be shown local clients, if that was asked for.
    loopback: Result<(), String>,
}

fn steering(request: &Request, instance: Option<&Instance>) -> anyhow::Result<Steering> {
    let unprobed = |features| Steering { features, works: Ok(()), loopback: Ok(()) };
    if !request.may_steer() {
        return Ok(unprobed(None));
    }
    if request.datapath == Requested::Steer {
        return Ok(unprobed(Some(preflight::steering_features()?)));
    }
    let probed = instance.map_or(Ok(false), |instance| instance.state.meta().map(|meta| meta.probed != 0))?;
    let asked = request.identity == Identity::Loopback && !instance.is_some_and(Instance::tells_identities);
    let text = |error: anyhow::Error| format!("{error:#}");
    let features = match preflight::steering_features() {
        Ok(features) => features,
        Err(error) => return Ok(Steering { works: Err(text(error)), ..unprobed(None) }),
    };
    let loopback = if asked { check::require_loopback_identity(features).map_err(text) } else { Ok(()) };
    // A connection that looked local was steered, too.
    let proved = probed || (asked && loopback.is_ok());
    let works = if proved { Ok(()) } else { check::require_steering(features).map_err(text) };
    Ok(Steering { features: works.is_ok().then_some(features), works, loopback })
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
    let known = instance.map_or(Ok(false), |instance| instance.mptcp().map(|there| there.table))?;
    if known {
        return Ok(Ok(()));
    }
    Ok(check::require_mptcp_steering(features).map_err(|error| format!("{error:#}")))
}

/// Makes the prepared attachments that are steered; a failure undoes those made before it.
///
/// # Errors
/// When the kernel refuses; nothing of this call is left then.
pub fn apply(prepared: &Prepared) -> anyhow::Result<()> {
    let Some(features) = prepared.features.filter(|_| !prepared.steered.is_empty()) else { return Ok(()) };
    let owner = prepared.place.as_ref().map_or(0, Place::owner);
    prepared.in_place(|| apply_here(prepared, features, owner))?;
    prepared.place.as_ref().map_or(Ok(()), |place| place.forget_earlier(&prepared.steered))
}

fn apply_here(prepared: &Prepared, features: Features, owner: u64) -> anyhow::Result<()> {
    let writer = Writer::begin()?;
    let probed = prepared.steered.iter().any(|state| state.reason == Reason::ProbePassed);
    let mut session = writer.open_or_create(features, prepared.event_level, probed, owner)?;
    let before: Vec<_> = session.state.list()?.into_iter().map(|(_, state)| state).collect();
    match put_all(&mut session, prepared) {
        Ok(()) => session.commit(),
        Err(error) => {
            undo(&mut session.state, &before, &prepared.steered)
                .and_then(|()| session.sweep_mptcp())
                .with_context(|| format!("failed to undo after: {error:#}"))?;
            Err(error)
        }
    }
}

fn put_all(session: &mut Session, prepared: &Prepared) -> anyhow::Result<()> {
    let now = prepared.steered.iter().find(|state| prepared.is_mptcp(state));
    match (session.steer_mptcp(&prepared.steered), now) {
        (Err(error), Some(state)) => {
            return Err(error)
                .with_context(|| plan::failed_to_attach(&state.service, state.port, &state.bridge));
        }
        // Only a service that will listen with MPTCP one day needs it; `status` says so then.
        (Err(_), None) | (Ok(()), _) => {}
    }
    if let Some(state) = prepared.steered.iter().find(|state| state.identity == Identity::Loopback) {
        session
            .attach_identity()
            .with_context(|| plan::failed_to_attach(&state.service, state.port, &state.bridge))?;
    }
    for state in &prepared.steered {
        let failed = || plan::failed_to_attach(&state.service, state.port, &state.bridge);
        // Checked again under the lock: another attach may have come in between.
        let present: Vec<_> = session.state.list()?.into_iter().map(|(_, state)| state).collect();
        plan::taken_by_attachment(state, &present).map_err(|text| anyhow!("{}: {text}", failed()))?;
        session.state.put(state).with_context(failed)?;
    }
    Ok(())
}

fn undo(state: &mut State, before: &[AttachmentState], wanted: &[AttachmentState]) -> anyhow::Result<()> {
    for added in wanted {
        if let Some(old) = before.iter().find(|old| old.is_same(added)) {
            state.put(old)?;
        } else if let Some((id, _)) = state.list()?.iter().find(|(_, s)| s.is_same(added)) {
            state.remove(*id)?;
        }
    }
    Ok(())
}

fn refuse_bound(state: &AttachmentState, listeners: &[Listener]) -> anyhow::Result<()> {
    let Some(listener) = plan::bound_on_gateway(listeners, &state.gateways, state.port, state.ifindex) else {
        return Ok(());
    };
    let owner = owner_name(listener);
    let reached =
        state.target.tcp().filter(|&target| listener.is_on_every_address() && listener.serves(target));
    if let Some(target) = reached {
        bail!(
            "{owner} listens on {}, every address including the gateway, so containers and everybody else reach it \
             already: bind it to {} first, then attach",
            listener.addr,
            target.ip()
        );
    }
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
        Some(owner) => format!("{} (pid {})", owner.comm, owner.pid),
        None => format!("a process of user {}", listener.uid),
    }
}
