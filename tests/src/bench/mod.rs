//! `suite bench steer|relay|attach|fair|reconcile [--rounds N] [--seconds S] [--json FILE]`: how fast the datapaths
//! are, next to what else there is, alternating in one run; how long attaches of many services take, and how soon the
//! daemon follows.
//!
//! [`attach`] times attaches of many services · [`reconcile`] the daemon · [`steer`], [`relay`] and [`fair`] say which
//! targets there are ·
//! [`rounds`] loads them in turns · [`load`] and [`service`] are the two ends of a connection · [`target`] proves the
//! path · [`cpu`] what it cost · [`stats`] and [`report`] what came of it.
//! Invariants: nothing else of the suite runs meanwhile; a path that was not taken fails the run.

mod attach;
mod cpu;
mod fair;
pub(crate) mod interrupt;
pub(crate) mod load;
mod reconcile;
mod relay;
mod report;
mod rounds;
pub(crate) mod service;
mod stats;
mod steer;
mod tables;
mod target;
mod verbs;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use load::Measure;
use report::{Machine, Report, load_average};
use rounds::Bench;
pub(crate) use tables::table;
use target::Target;

use crate::harness::cli::Cli;

/// Port of the service that is bound on the gateway.
const DIRECT: u16 = 7100;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    Steer,
    Relay,
    Attach,
    Fair,
    Reconcile,
}

/// What was asked for.
#[derive(Debug, PartialEq)]
struct Options {
    what: What,
    rounds: usize,
    seconds: f64,
    json: Option<String>,
}

/// Runs, prints, and returns the process's exit code.
pub(crate) fn main(arguments: &[String]) -> i32 {
    let options = match parse(arguments) {
        Ok(options) => options,
        Err(error) => {
            eprintln!(
                "suite bench: {error:#}: use bench steer|relay|attach|fair|reconcile [--rounds N] [--seconds S] \
                 [--json FILE]"
            );
            return 2;
        }
    };
    match run(&options) {
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
    let mut arguments = arguments.iter().map(String::as_str);
    let what = match arguments.next() {
        Some("steer") => What::Steer,
        Some("relay") => What::Relay,
        Some("attach") => What::Attach,
        Some("fair") => What::Fair,
        Some("reconcile") => What::Reconcile,
        Some(other) => bail!("unknown bench {other}"),
        None => bail!("no bench named"),
    };
    let mut options = Options { what, rounds: 8, seconds: 1.0, json: None };
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
fn run(options: &Options) -> Result<bool> {
    let _alone = crate::prepare()?;
    interrupt::catch()?;
    let report = match options.what {
        What::Steer => steer::run(options)?,
        What::Relay => relay::run(options)?,
        What::Attach => return attach::run(options.json.as_deref()),
        What::Fair => fair::run(options)?,
        What::Reconcile => return reconcile::run(options.json.as_deref()),
    };
    print!("{}", report.text()?);
    if let Some(file) = &options.json {
        std::fs::write(file, format!("{:#}\n", report.json()?))
            .with_context(|| format!("failed to write {file}"))?;
    }
    report.passed()
}

/// Loads the targets; `cli` is where their attachments are.
fn measure(cli: Cli<'_>, targets: &[Target<'_>], measures: &[Measure], options: &Options) -> Result<Report> {
    let machine = Machine::look()?;
    let cell = Duration::from_secs_f64(options.seconds);
    let series = Bench::new(cli, targets)?.run(measures, options.rounds, cell)?;
    Ok(Report { machine, load_after: load_average()?, seconds: options.seconds, series, timings: Vec::new() })
}
