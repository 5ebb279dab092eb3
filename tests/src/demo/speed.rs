//! A quick look at speed: the benchmark's own load, a second each, without its rounds and statistics.
//!
//! Invariants: socat is a peer only where it is installed; its process and the attachment end with the step.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::stage::Stage;
use crate::bench::interrupt;
use crate::bench::load::{Measure, prepare_clients};
use crate::bench::service::LoadService;
use crate::harness::netns::Netns;
use crate::harness::proc::Guarded;
use crate::harness::topology::{GATEWAY_A, at, local};
use crate::harness::wait::{patience, until};

const DIRECT: u16 = 7100;
const STEERED: u16 = 7101;
const SOCAT: u16 = 7102;
const TIME: Duration = Duration::from_millis(900);
const MEASURES: [Measure; 3] = [Measure::Put, Measure::Get, Measure::Connect];

/// Shows the rates side by side.
pub(super) fn compare(stage: &Stage) -> Result<()> {
    let net = &stage.rig.net;
    prepare_clients(net)?;
    let direct = LoadService::start(&net.host, at(GATEWAY_A, DIRECT))?;
    let steered = LoadService::start(&net.host, local(STEERED))?;
    stage.bridge_user(&format!("attach load={STEERED} --bridge br-a"))?;
    let socat = start_socat(&net.host)?;
    let mut targets = vec![
        ("bound on the gateway (the limit)", at(GATEWAY_A, DIRECT)),
        ("loopback, bridge-user", at(GATEWAY_A, STEERED)),
    ];
    targets.extend(socat.as_ref().map(|_| ("loopback, socat", at(GATEWAY_A, SOCAT))));
    let mut rows = vec![header()];
    for (name, address) in targets {
        let before = (direct.accepted(), steered.accepted(), accepted(stage)?);
        let (row, connections) = row(stage, name, address)?;
        let moved = (
            direct.accepted() - before.0,
            steered.accepted() - before.1,
            accepted(stage)?.saturating_sub(before.2),
        );
        let expected = match address.port() {
            DIRECT => (connections, 0, 0),
            STEERED => (0, connections, connections),
            _ => (0, connections, 0),
        };
        ensure!(
            moved == expected,
            "{name}: connections took another path: {moved:?} instead of {expected:?}"
        );
        rows.push(row);
    }
    for line in crate::bench::table(&rows).lines() {
        println!("   {line}");
    }
    stage.fact("one short run each, an indication only: `cargo xtask bench steer` measures it properly");
    if socat.is_none() {
        stage.fact("socat is not installed, so it is not compared");
    }
    drop(socat);
    stage.bridge_user("detach load")?;
    Ok(())
}

fn header() -> Vec<String> {
    let columns = MEASURES.iter().map(|measure| format!("{} {}", measure.name(), measure.unit()));
    std::iter::once("service".to_owned()).chain(columns).collect()
}

/// All measures of one target, and the connections they took.
fn row(stage: &Stage, name: &str, address: SocketAddr) -> Result<(Vec<String>, u64)> {
    let mut row = vec![name.to_owned()];
    let mut connections = 0;
    for measure in MEASURES {
        let cell = measure.run(&stage.rig.net, address, TIME)?;
        interrupt::check()?;
        row.push(measure.show(cell.rate()));
        connections += cell.connections;
    }
    Ok((row, connections))
}

/// Connections steered to the load service so far.
fn accepted(stage: &Stage) -> Result<u64> {
    Ok(stage.rig.cli().attachment(&format!("br-a-load-{STEERED}"))?.counters.accepted)
}

/// The usual recipe, if the program is there.
fn start_socat(host: &Netns) -> Result<Option<Guarded>> {
    let mut command = Command::new("socat");
    command.arg(format!("TCP-LISTEN:{SOCAT},bind={GATEWAY_A},reuseaddr,fork,backlog=1024"));
    command.arg(format!("TCP:127.0.0.1:{STEERED}")).stdin(Stdio::null());
    let process = match host.spawn(&mut command) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        started => Guarded::new(started.context("failed to start socat")?),
    };
    until("socat listens", patience(5), || {
        Ok(host.listening()?.contains(&at(GATEWAY_A, SOCAT)).then_some(()))
    })?;
    Ok(Some(process))
}
