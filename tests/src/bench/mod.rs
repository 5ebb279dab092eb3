//! `suite bench steer [--rounds N] [--seconds S] [--json FILE]`: is a steered connection as fast as a direct one?
//!
//! One topology with Docker-like NAT rules holds both sides: the same service bound on the gateway itself ("direct",
//! the limit) and on loopback behind an attachment ("steer"). Direct connections also pass the attached program, which
//! finds no rule for them; "bare" is a direct connection on an equal host where nothing is attached, and shows what that
//! costs (the listener tracking on the root cgroup it shares, as every namespace does). Later datapaths and peers are
//! more rows in [`steer`]'s list.
//! Invariants: nothing else of the suite runs meanwhile; a path that was not taken fails the run; whatever ends it,
//! nothing stays attached.

pub(crate) mod interrupt;
pub(crate) mod load;
mod report;
mod rounds;
pub(crate) mod service;
mod stats;
mod target;
mod verbs;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

pub(crate) use report::table;
use report::{Machine, Report, load_average};
use rounds::Bench;
use service::LoadService;
use target::Target;

use crate::harness::rig::Rig;
use crate::harness::topology::{GATEWAY_A, Topology, at, local};

/// Port of the service that is bound on the gateway.
const DIRECT: u16 = 7100;
/// Port of the service that listens on loopback only.
const STEERED: u16 = 7101;
/// A steered connection must reach this share of a direct one's rate.
const REQUIRED: f64 = 0.97;

/// What was asked for.
#[derive(Debug, PartialEq)]
struct Options {
    rounds: usize,
    seconds: f64,
    json: Option<String>,
}

/// Runs, prints, and returns the process's exit code.
pub(crate) fn main(arguments: &[String]) -> i32 {
    let options = match parse(arguments) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("suite bench: {error:#}: use bench steer [--rounds N] [--seconds S] [--json FILE]");
            return 2;
        }
    };
    match steer(&options) {
        Ok(true) => 0,
        Ok(false) => {
            eprintln!("suite bench: a requirement is not met");
            1
        }
        Err(_) if interrupt::requested() => 130,
        Err(error) => {
            eprintln!("suite bench: {error:#}");
            1
        }
    }
}

fn parse(arguments: &[String]) -> Result<Options> {
    let mut options = Options { rounds: 8, seconds: 1.0, json: None };
    let mut arguments = arguments.iter().map(String::as_str);
    match arguments.next() {
        Some("steer") => {}
        Some(other) => bail!("unknown bench {other}"),
        None => bail!("no bench named"),
    }
    while let Some(option) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{option} needs a value"))?;
        match option {
            "--rounds" => options.rounds = value.parse().context("--rounds needs a number")?,
            "--seconds" => options.seconds = value.parse().context("--seconds needs a number")?,
            "--json" => options.json = Some(value.to_owned()),
            _ => bail!("unknown option {option}"),
        }
    }
    ensure!((1..=1000).contains(&options.rounds), "--rounds must be 1 to 1000");
    ensure!((0.1..=3600.0).contains(&options.seconds), "--seconds must be 0.1 to 3600");
    Ok(options)
}

/// The whole run; whether every requirement is met.
fn steer(options: &Options) -> Result<bool> {
    let _alone = crate::prepare()?;
    interrupt::catch()?;
    let machine = Machine::look()?;
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
        required: None,
    };
    let targets = [
        plain,
        Target {
            name: "steer",
            address: at(GATEWAY_A, STEERED),
            service: &steered,
            attachment: Some("br-a-load-7101"),
            required: Some(REQUIRED),
            ..plain
        },
        Target { name: "bare", net: &other, service: &bare, ..plain },
    ];
    let cell = Duration::from_secs_f64(options.seconds);
    let series = Bench::new(rig.cli(), &targets)?.run(options.rounds, cell)?;
    let (seconds, load_after) = (options.seconds, load_average()?);
    let report = Report { machine, load_after, seconds, targets: &targets, series, timings };
    print!("{}", report.text());
    if let Some(file) = &options.json {
        std::fs::write(file, format!("{:#}\n", report.json()))
            .with_context(|| format!("failed to write {file}"))?;
    }
    Ok(report.passed())
}
