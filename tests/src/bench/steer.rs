//! `bench steer`: is a steered connection as fast as a direct one?
//!
//! One topology with Docker-like NAT rules holds both sides: the same service bound on the gateway itself ("direct",
//! the limit) and on loopback behind an attachment ("steer"). Direct connections also pass the attached program, which
//! finds no rule for them; "bare" is a direct connection on an equal host where nothing is attached, and shows what
//! that costs (the listener tracking on the root cgroup it shares, as every namespace does). The same again for MPTCP
//! listeners: one bound on the gateway ("mptcp") and one on loopback ("steer-tc"). Then what the loopback identity
//! costs each connection ("loopback", of "container"); the programs for it are attached to the root cgroup, so all
//! connections pass them in both. Invariant: whatever ends it, nothing stays attached.

use anyhow::{Result, ensure};

use super::load::{self, Measure};
use super::report::Report;
use super::service::LoadService;
use super::target::{Role, Share, Target};
use super::{DIRECT, Options, verbs};
use crate::harness::rig::Rig;
use crate::harness::topology::{GATEWAY_A, Topology, at, local};

/// Port of the service that listens on loopback only.
const STEERED: u16 = 7101;
/// A steered connection must reach this share of a direct one's rate.
const SHARE: Share = Share { required: 0.97, aim: None };
/// Ports of the same two with MPTCP.
const DIRECT_MPTCP: u16 = 7102;
const STEERED_MPTCP: u16 = 7103;
const SHARE_MPTCP: Share = Share { required: 0.95, aim: None };
/// Ports on the gateway of one service, with either identity.
const REAL: u16 = 7104;
const LOCAL: u16 = 7105;
const SHARE_LOCAL: Share = Share { required: 0.99, aim: None };
const MEASURES: [Measure; 4] = [Measure::Put, Measure::Get, Measure::RoundTrips, Measure::Connect];

/// The whole run.
pub(super) fn run(options: &Options) -> Result<Report> {
    let rig = Rig::new()?;
    let other = Topology::new()?;
    for net in [&rig.net, &other] {
        load::prepare_clients(net)?;
    }
    let direct = LoadService::start(&rig.net.host, at(GATEWAY_A, DIRECT))?;
    let steered = LoadService::start(&rig.net.host, local(STEERED))?;
    let bare = LoadService::start(&other.host, at(GATEWAY_A, DIRECT))?;
    eprintln!("verbs");
    let timings = verbs::run(&rig)?;
    rig.attach("load=7101")?;
    rig.expect_state("br-a-load-7101", "ready")?;
    let plain = Target {
        name: "direct",
        net: &rig.net,
        address: at(GATEWAY_A, DIRECT),
        service: &direct,
        attachment: None,
        relay: None,
        role: Role::Baseline,
    };
    let targets = [
        plain,
        Target {
            name: "steer",
            address: at(GATEWAY_A, STEERED),
            service: &steered,
            attachment: Some("br-a-load-7101"),
            role: Role::Judged(SHARE),
            ..plain
        },
        Target { name: "bare", net: &other, service: &bare, role: Role::Context, ..plain },
    ];
    let report = super::measure(rig.cli(), &targets, &MEASURES, options)?;
    let mptcp = measure_mptcp(&rig, options)?;
    let identity = measure_identity(&rig, options)?;
    let series = report.series.into_iter().chain(mptcp.series).chain(identity.series).collect();
    Ok(Report { timings, series, load_after: identity.load_after, ..report })
}

fn measure_identity(rig: &Rig, options: &Options) -> Result<Report> {
    let service = LoadService::start(&rig.net.host, local(REAL))?;
    rig.attach("real=7104")?;
    rig.attach_with("local=7105:7104", &["--identity", "loopback"])?;
    let real = Target {
        name: "container",
        net: &rig.net,
        address: at(GATEWAY_A, REAL),
        service: &service,
        attachment: Some("br-a-real-7104"),
        relay: None,
        role: Role::Baseline,
    };
    let local = Target {
        name: "loopback",
        address: at(GATEWAY_A, LOCAL),
        attachment: Some("br-a-local-7105"),
        role: Role::Judged(SHARE_LOCAL),
        ..real
    };
    super::measure(rig.cli(), &[real, local], &[Measure::Connect], options)
}

fn measure_mptcp(rig: &Rig, options: &Options) -> Result<Report> {
    let direct = LoadService::start_mptcp(&rig.net.host, at(GATEWAY_A, DIRECT_MPTCP))?;
    let steered = LoadService::start_mptcp(&rig.net.host, local(STEERED_MPTCP))?;
    rig.attach("load=7103")?;
    let name = "br-a-load-7103";
    let attachment = rig.cli().attachment(name)?;
    ensure!(attachment.datapath == "steer-tc", "{name} uses datapath {}", attachment.datapath);
    let plain = Target {
        name: "mptcp",
        net: &rig.net,
        address: at(GATEWAY_A, DIRECT_MPTCP),
        service: &direct,
        attachment: None,
        relay: None,
        role: Role::Baseline,
    };
    let steered = Target {
        name: "steer-tc",
        address: at(GATEWAY_A, STEERED_MPTCP),
        service: &steered,
        attachment: Some(name),
        role: Role::Judged(SHARE_MPTCP),
        ..plain
    };
    super::measure(rig.cli(), &[plain, steered], &MEASURES, options)
}
