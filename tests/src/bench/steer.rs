//! `bench steer`: is a steered connection as fast as a direct one?
//!
//! One topology with Docker-like NAT rules holds both sides: the same service bound on the gateway itself ("direct",
//! the limit) and on loopback behind an attachment ("steer"). Direct connections also pass the attached program, which
//! finds no rule for them; "bare" is a direct connection on an equal host where nothing is attached, and shows what that
//! costs (the listener tracking on the root cgroup it shares, as every namespace does).
//! Invariant: whatever ends it, nothing stays attached.

use anyhow::Result;

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
    Ok(Report { timings, ..super::measure(rig.cli(), &targets, &MEASURES, options)? })
}
