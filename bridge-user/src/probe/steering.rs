//! The functional probe of steering: real connections through real programs, in a scratch topology, each proved by
//! the counters.

use std::{
    collections::BTreeSet,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    thread,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail, ensure};
use bridge_common::event::EventKind;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with};

use super::scratch::{CONTAINER, GATEWAY, Scratch};
use crate::{
    kernel::{
        events::Events,
        features::Features,
        instance::meta,
        programs::{identity, object, tc},
        state::{State, maps::Maps},
    },
    model::{
        attachment::{Attachment, Keeper},
        datapath::{Datapath, Reason},
        event_level::EventLevel,
        identity::Identity,
        instance::InstanceMeta,
        programs::TcHook,
        source::Source,
        target::{Port, Target},
    },
    netfilter::nft,
    scope::Roots,
};

/// How long a probe connection may take. Generous: an emulated kernel is slow, and a wrong answer comes at once.
const TIMEOUT: Duration = Duration::from_secs(20);
/// What a probe service answers with.
const ANSWER: &[u8; 4] = b"pong";

/// Programs attached to the scratch host namespace, and their maps.
struct Probe<'a> {
    scratch: &'a Scratch,
    state: &'a mut State,
    identity: Identity,
}

impl Probe<'_> {
    /// Attaches `port`, for `allow`ed sources, to the same port on 127.0.0.1; returns the attachment's id.
    fn attach(&mut self, service: &str, port: u16, allow: &str) -> anyhow::Result<u32> {
        let bridge = &self.scratch.bridge;
        let attachment = Attachment {
            service: service.to_owned(),
            container: None,
            network: "scratch".to_owned(),
            bridge: bridge.name.clone(),
            ifindex: bridge.index,
            port: Port::new(port).context("a listener cannot have port 0")?,
            target: Target::Tcp(loopback(port)),
            gateways: BTreeSet::from([GATEWAY.into()]),
            allow: BTreeSet::from([Source::Net(allow.parse()?)]),
            datapath: Datapath::Steer,
            reason: Reason::Requested(Datapath::Steer),
            keeper: Keeper::Command,
            identity: self.identity,
        };
        // The kernel may hand out a port again that an earlier part had in the other namespace.
        for (id, other) in self.state.list()? {
            if other.port == attachment.port {
                self.state.remove(id, &other)?;
                self.state.untrack(loopback(port), &self.scratch.host)?;
            }
        }
        let id = self.state.list()?.iter().map(|(id, _)| id + 1).max().unwrap_or(1);
        self.state.track(&[(loopback(port), true)], &self.scratch.host)?;
        self.state.put(id, &attachment, None)?;
        Ok(id)
    }

    /// A probe service on 127.0.0.1 of the scratch host; port 0: any.
    fn listen(&self, port: u16) -> anyhow::Result<TcpListener> {
        Ok(self.scratch.host.run(|| TcpListener::bind(loopback(port)))??)
    }

    /// One connection from the container to the gateway's `port`: what was answered.
    fn connect(&self, port: u16) -> anyhow::Result<io::Result<Vec<u8>>> {
        self.scratch.in_container(move || ask(SocketAddr::new(GATEWAY.into(), port)))
    }

    /// Requires that one connection reaches `listener`, with the addresses of its identity, counted as steered.
    fn expect_served(&self, id: u32, listener: &TcpListener) -> anyhow::Result<()> {
        let port = listener.local_addr()?.port();
        let before = self.state.stats(id)?.steered;
        let (answer, seen) = thread::scope(|scope| {
            let server = scope.spawn(|| serve_one(listener));
            let answer = self.connect(port);
            (answer, server.join())
        });
        let answer = answer?.context("the connection from the scratch container failed")?;
        let (peer, own) =
            seen.map_err(|_| anyhow!("the probe service panicked"))?.context("nothing arrived")?;
        ensure!(answer == ANSWER, "the container received {answer:?}, expected {ANSWER:?}");
        let (client, gateway) = match self.identity {
            Identity::Container => (CONTAINER, GATEWAY),
            Identity::Loopback => (Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST),
        };
        ensure!(peer.ip() == client, "the service saw {peer}, expected {client}");
        ensure!(own.ip() == gateway, "the service's own address was {own}, expected {gateway}");
        let counted = self.state.stats(id)?.steered - before;
        ensure!(counted == 1, "{counted} connections were counted as steered, expected 1");
        Ok(())
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}

fn ask(to: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Answers one connection; says who called, and which address.
fn serve_one(listener: &TcpListener) -> io::Result<(SocketAddr, SocketAddr)> {
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(TIMEOUT).unwrap_or(PollTimeout::MAX);
    if poll(&mut fds, timeout)? == 0 {
        return Err(ErrorKind::TimedOut.into());
    }
    let (mut stream, peer) = listener.accept()?;
    stream.write_all(ANSWER)?;
    Ok((peer, stream.local_addr()?))
}

fn expect_refused(answer: io::Result<Vec<u8>>, who: &str) -> anyhow::Result<()> {
    match answer {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error).with_context(|| format!("{who} was not refused at once")),
        Ok(_) => bail!("{who} was let in"),
    }
}

/// What each part of the probe found.
pub(crate) struct SteeringFindings {
    /// A connection reached a listener that was there before the attachment.
    pub(crate) steer: anyhow::Result<()>,
    /// A listener that came later was served with no userspace action.
    pub(crate) tracking: anyhow::Result<()>,
    /// A listener in another network namespace was ignored.
    pub(crate) guard: anyhow::Result<()>,
    /// The host itself, and a source outside the allow-list, were refused.
    pub(crate) scope: anyhow::Result<()>,
    /// The refusal was written to the event channel.
    pub(crate) events: anyhow::Result<()>,
}

/// Runs every part, with an object loaded for it and nothing pinned.
///
/// # Errors
/// When the scratch topology cannot be made or the programs not be loaded; a part that fails is in the findings.
pub(crate) fn run(features: Features, roots: &Roots) -> anyhow::Result<SteeringFindings> {
    Scratch::run(|scratch| {
        let mut ebpf = object::load(features, EventLevel::Warn, None)?;
        let mut maps = Maps::take(&mut ebpf)?;
        let mut channel = Events::of_object(&mut ebpf)?;
        let _links = object::attach(&mut ebpf, features, &scratch.host, &roots.open_cgroup()?)?;
        meta::write(&mut maps, &scratch.host, InstanceMeta::default())?;
        let mut state = State::new(maps, features.ingress_ifindex);
        let mut probe = Probe { scratch, state: &mut state, identity: Identity::Container };
        let steer = existing_listener(&mut probe);
        let tracking = later_listener(&mut probe);
        let guard = foreign_listener(&mut probe);
        let scope = refused_sources(&mut probe);
        let events = denied_event(&mut channel);
        Ok(SteeringFindings { steer, tracking, guard, scope, events })
    })
}

/// Steers one connection, with an object loaded for it and nothing pinned.
///
/// # Errors
/// When the connection does not arrive.
pub(crate) fn run_steer(features: Features) -> anyhow::Result<()> {
    Scratch::run(|scratch| {
        let mut ebpf = object::load(features, EventLevel::Off, None)?;
        let maps = Maps::take(&mut ebpf)?;
        let _link = object::attach_steer(&mut ebpf, &scratch.host)?;
        let mut state = State::new(maps, features.ingress_ifindex);
        existing_listener(&mut Probe { scratch, state: &mut state, identity: Identity::Container })
    })
}

/// Steers one connection whose service sees a local client; nothing is pinned.
///
/// # Errors
/// When the kernel refuses a program, or the service sees something else.
pub(crate) fn run_identity(features: Features, roots: &Roots) -> anyhow::Result<()> {
    Scratch::run(|scratch| {
        let mut ebpf = object::load(features, EventLevel::Off, None)?;
        let mut maps = Maps::take(&mut ebpf)?;
        let cgroup = roots.open_cgroup()?;
        let _links = object::attach(&mut ebpf, features, &scratch.host, &cgroup)?;
        let _hooks = identity::attach_for_now(&mut ebpf, &cgroup)?;
        let says = InstanceMeta { event_level: EventLevel::Off, ..InstanceMeta::default() };
        meta::write(&mut maps, &scratch.host, says)?;
        let mut state = State::new(maps, features.ingress_ifindex);
        existing_listener(&mut Probe { scratch, state: &mut state, identity: Identity::Loopback })
    })
}

/// Steers one connection to an MPTCP listener, where NAT rules are loaded as on every Docker host; nothing is pinned.
///
/// # Errors
/// When the connection does not arrive.
pub(crate) fn run_mptcp(features: Features) -> anyhow::Result<()> {
    Scratch::run(|scratch| {
        let mut ebpf = object::load(features, EventLevel::Off, None)?;
        let maps = Maps::take(&mut ebpf)?;
        // Where this host cannot have any, no NAT is in the way.
        let _ = nft::nft(&scratch.host, NAT);
        tc::attach_for_now(&scratch.host, &mut ebpf, &scratch.bridge.name, TcHook::of(features))?;
        let mut state = State::new(maps, features.ingress_ifindex);
        let mut probe = Probe { scratch, state: &mut state, identity: Identity::Container };
        let listener = scratch.host.run(mptcp_listener)??;
        let id = probe.attach("mptcp", listener.local_addr()?.port(), CONTAINERS)?;
        probe.expect_served(id, &listener)
    })
}

/// What makes the kernel look at every new connection for NAT.
const NAT: &str =
    "table ip nat { chain POSTROUTING { type nat hook postrouting priority 100; masquerade; }; }";

fn mptcp_listener() -> anyhow::Result<TcpListener> {
    let socket =
        socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::MPTCP))?;
    bind(&socket, &SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0))?;
    listen(&socket, 8)?;
    Ok(TcpListener::from(socket))
}

const CONTAINERS: &str = "198.18.0.0/24";
const SOMEBODY_ELSE: &str = "198.18.0.77/32";

fn existing_listener(probe: &mut Probe<'_>) -> anyhow::Result<()> {
    let listener = probe.listen(0)?;
    let id = probe.attach("existing", listener.local_addr()?.port(), CONTAINERS)?;
    probe.expect_served(id, &listener)
}

fn later_listener(probe: &mut Probe<'_>) -> anyhow::Result<()> {
    let first = probe.listen(0)?;
    let port = first.local_addr()?.port();
    let id = probe.attach("later", port, CONTAINERS)?;
    drop(first);
    expect_refused(probe.connect(port)?, "a connection while nothing listened")?;
    let second = probe.listen(port)?;
    probe.expect_served(id, &second)
}

fn foreign_listener(probe: &mut Probe<'_>) -> anyhow::Result<()> {
    let foreign = probe.scratch.in_container(|| TcpListener::bind(loopback(0)))??;
    let port = foreign.local_addr()?.port();
    probe.attach("foreign", port, CONTAINERS)?;
    drop(foreign);
    let again = probe.scratch.in_container(move || TcpListener::bind(loopback(port)))??;
    let registered = probe.state.listeners()?.iter().any(|(key, _)| key.port == port);
    ensure!(!registered, "a listener of another network namespace was registered");
    expect_refused(probe.connect(port)?, "a connection meant for another namespace's listener")?;
    drop(again);
    Ok(())
}

fn refused_sources(probe: &mut Probe<'_>) -> anyhow::Result<()> {
    let listener = probe.listen(0)?;
    let port = listener.local_addr()?.port();
    let id = probe.attach("scoped", port, SOMEBODY_ELSE)?;
    expect_refused(probe.connect(port)?, "a source outside the allow-list")?;
    let denied = probe.state.stats(id)?.denied;
    // More than one where the host was so slow that TCP asked again.
    ensure!(denied > 0, "the refused connection was not counted as denied");
    let open = probe.listen(0)?;
    let port = open.local_addr()?.port();
    probe.attach("open", port, CONTAINERS)?;
    let answer = probe.scratch.host.run(|| ask(SocketAddr::new(GATEWAY.into(), port)))?;
    expect_refused(answer, "a connection from the host itself")
}

fn denied_event(channel: &mut Events) -> anyhow::Result<()> {
    let events = channel.drain()?;
    ensure!(
        events.iter().any(|event| event.kind == EventKind::Denied
            && event.source.is_some_and(|source| source.ip() == CONTAINER)),
        "no event told of the denied connection; {} others did arrive",
        events.len()
    );
    Ok(())
}
