//! `bench relay`: is the project's relay the fastest of its kind?
//!
//! Every relay has a gateway port of its own, and behind it a service of its own on loopback, the same code as behind
//! all others: what a service accepted went through its relay. "direct" is the same service bound on the gateway.
//! The baseline of a measure is the peer with the highest median rate in it. So the relay is not compared with one
//! peer that is weak somewhere, nor with a different, lucky one in every round.
//! Invariants: a relay of which nothing is required may refuse to start, which is said; whatever ends the run, no relay
//! is left running.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::load::{self, Measure};
use super::report::Report;
use super::service::LoadService;
use super::target::{Role, Share, Target};
use super::{DIRECT, Options};
use crate::harness::foreground::Foreground;
use crate::harness::peers::{Peer, PeerKind};
use crate::harness::rig::Rig;
use crate::harness::topology::{GATEWAY_A, at, local};

/// The first relay's gateway port; the others follow.
const FRONT: u16 = 7110;
/// The service behind the first relay; the others follow.
const BACK: u16 = 7210;
/// The project's relays, what each must reach relative to the best peer.
const OURS: [(&str, Role); 2] =
    [("splice", Role::Judged(Share { required: 1.0, aim: Some(1.3) })), ("sockmap", Role::Context)];
const MEASURES: [Measure; 5] =
    [Measure::Put, Measure::Get, Measure::RoundTrips, Measure::Exchange, Measure::Connect];

/// One relay with the service behind it.
struct Row {
    name: &'static str,
    role: Role,
    address: SocketAddr,
    service: LoadService,
    relay: Relay,
}

enum Relay {
    Ours { process: Foreground, attachment: String },
    Peer(Peer),
}

impl Relay {
    fn pid(&self) -> u32 {
        match self {
            Self::Ours { process, .. } => process.pid(),
            Self::Peer(peer) => peer.pid(),
        }
    }

    fn attachment(&self) -> Option<&str> {
        match self {
            Self::Ours { attachment, .. } => Some(attachment),
            Self::Peer(_) => None,
        }
    }
}

/// The whole run.
pub(super) fn run(options: &Options) -> Result<Report> {
    let rig = Rig::new()?;
    load::prepare_clients(&rig.net)?;
    let direct = LoadService::start(&rig.net.host, at(GATEWAY_A, DIRECT))?;
    let ours = OURS.map(|(name, role)| (name, role, None));
    let peers = PeerKind::ALL.map(|kind| (kind.name(), Role::Baseline, Some(kind)));
    let mut rows = Vec::new();
    for ((name, role, kind), index) in ours.into_iter().chain(peers).zip(0..) {
        let (front, back) = (FRONT + index, BACK + index);
        let service = LoadService::start(&rig.net.host, local(back))?;
        let address = at(GATEWAY_A, front);
        let relay = match kind {
            Some(kind) => Peer::start(kind, &rig.net.host, address, local(back)).map(Relay::Peer),
            None => our_relay(&rig, name, front, back),
        };
        match relay {
            Ok(relay) => rows.push(Row { name, role, address, service, relay }),
            Err(error) if role == Role::Context => eprintln!("{name} is not measured: {error:#}"),
            Err(error) => return Err(error),
        }
    }
    let mut targets = vec![Target {
        name: "direct",
        net: &rig.net,
        address: at(GATEWAY_A, DIRECT),
        service: &direct,
        attachment: None,
        relay: None,
        role: Role::Context,
    }];
    targets.extend(rows.iter().map(|row| Target {
        name: row.name,
        net: &rig.net,
        address: row.address,
        service: &row.service,
        attachment: row.relay.attachment(),
        relay: Some(row.relay.pid()),
        role: row.role,
    }));
    let report = super::measure(rig.cli(), &targets, &MEASURES, options)?;
    stop(&rig, rows)?;
    Ok(report)
}

/// Starts our relay with one datapath. It is forced where the kernel is one that `auto` would not use it on.
fn our_relay(rig: &Rig, datapath: &'static str, front: u16, back: u16) -> Result<Relay> {
    let spec = format!("load={front}:{back}");
    let process =
        Foreground::start(&rig.cli(), &[&spec, "--bridge", "br-a", "--datapath", datapath, "--force"])?;
    let relay = Relay::Ours { process, attachment: format!("br-a-load-{front}") };
    expect_datapath(rig, &relay, datapath)?;
    Ok(relay)
}

/// The datapath is still the one that is measured.
fn expect_datapath(rig: &Rig, relay: &Relay, datapath: &str) -> Result<()> {
    let Some(name) = relay.attachment() else { return Ok(()) };
    let attachment = rig.cli().attachment(name)?;
    ensure!(
        attachment.datapath == datapath,
        "{name} uses datapath {} instead of {datapath}",
        attachment.datapath
    );
    Ok(())
}

/// Our relays end on their own when asked to; peers are killed with their guards.
fn stop(rig: &Rig, rows: Vec<Row>) -> Result<()> {
    for row in &rows {
        expect_datapath(rig, &row.relay, row.name)?;
    }
    for row in rows {
        if let Relay::Ours { mut process, .. } = row.relay {
            process.signal(Signal::SIGTERM);
            let status = process.end().with_context(|| format!("relay {}", row.name))?;
            ensure!(status.success(), "relay {} ended with {status}: {}", row.name, process.said());
        }
    }
    Ok(())
}
