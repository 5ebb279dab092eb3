//! A quick look at speed: the benchmark's own load, a second each in turns, without its rounds and statistics.
//!
//! Invariants: socat is a peer only where it is installed; its process and the attachment end with the step.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::stage::Stage;
use crate::bench::interrupt;
use crate::bench::load::{Cell, Measure, prepare_clients};
use crate::bench::service::LoadService;
use crate::harness::netns::Netns;
use crate::harness::proc::Guarded;
use crate::harness::topology::{GATEWAY_A, at, local};
use crate::harness::wait::{patience, until};

const DIRECT: u16 = 7100;
const STEERED: u16 = 7101;
const SOCAT: u16 = 7102;
/// Each target's turn at each measure, as often as there are passes.
const TIME: Duration = Duration::from_millis(200);
const PASSES: usize = 5;
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
    let mut cells = vec![[Cell::default(); MEASURES.len()]; targets.len()];
    for _ in 0..PASSES {
        for (cells, (name, address)) in cells.iter_mut().zip(&targets) {
            load(stage, *address, cells, [&direct, &steered]).with_context(|| (*name).to_owned())?;
        }
    }
    let mut rows = vec![header()];
    for (cells, (name, _)) in cells.iter().zip(&targets) {
        let rates = MEASURES.iter().zip(cells).map(|(measure, cell)| measure.show(cell.rate()));
        rows.push(std::iter::once((*name).to_owned()).chain(rates).collect());
    }
    for line in crate::bench::table(&rows).lines() {
        println!("   {line}");
    }
    stage.fact("a second each, an indication only: `cargo xtask bench steer` measures it properly");
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

/// Every measure against one target, and the proof that its connections took the path to it.
fn load(stage: &Stage, address: SocketAddr, cells: &mut [Cell], services: [&LoadService; 2]) -> Result<()> {
    let count =
        || -> Result<[u64; 3]> { Ok([services[0].accepted(), services[1].accepted(), accepted(stage)?]) };
    let before = count()?;
    let mut connections = 0;
    for (measure, sum) in MEASURES.iter().zip(cells) {
        let cell = measure.run(&stage.rig.net, address, TIME)?;
        interrupt::check()?;
        *sum += cell;
        connections += cell.connections;
    }
    let path = match address.port() {
        DIRECT => [1, 0, 0],
        STEERED => [0, 1, 1],
        _ => [0, 1, 0],
    };
    let now = count()?;
    let expected = [0, 1, 2].map(|index| before[index] + path[index] * connections);
    ensure!(now == expected, "connections took another path: the counters are {now:?}, not {expected:?}");
    Ok(())
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
