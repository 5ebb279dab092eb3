//! Rounds: every measure against every target, there and back again, and more rounds while a verdict is open.
//!
//! A round runs each measure in short slices, in the order `direct steer steer direct` over and over, so that a machine
//! that gets slower or faster meanwhile does so for all alike; one round gives one rate, and one ratio, per target.
//! Invariants: rates of single rounds are compared within the round only; the medians that choose a baseline are over
//! the same rounds for every target.

use std::cmp::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};

use super::cpu::Usage;
use super::interrupt;
use super::load::{Cell, Measure};
use super::stats;
use super::target::{Counts, Role, Share, Target};
use crate::harness::cli::Cli;

/// How many times the wanted rounds there may be in all.
pub(super) const LIMIT: usize = 3;
/// A cell of the discarded warm-up.
const WARM_UP: Duration = Duration::from_millis(400);
/// About how long one target is loaded before it is the next one's turn.
const SLICE: Duration = Duration::from_millis(100);

/// A target's part of a round.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turn {
    cell: Cell,
    usage: Usage,
}

impl Turn {
    /// Per second.
    pub(super) fn rate(&self) -> f64 {
        self.cell.rate()
    }

    /// Seconds of processor time, of the relay and of the machine, per unit of work.
    pub(super) fn cost(&self, unit: f64) -> (Option<f64>, f64) {
        let per_unit = |time: Duration| time.as_secs_f64() * unit / self.cell.amount() as f64;
        (self.usage.relay.map(per_unit), per_unit(self.usage.machine))
    }
}

/// A target, and its turns round by round.
pub(super) struct Run {
    pub(super) name: &'static str,
    pub(super) role: Role,
    pub(super) turns: Vec<Turn>,
}

impl Run {
    /// Rates, round by round.
    pub(super) fn rates(&self) -> Vec<f64> {
        self.turns.iter().map(Turn::rate).collect()
    }

    /// The median rate.
    pub(super) fn median(&self) -> f64 {
        stats::Summary::of(&self.rates()).median
    }

    /// Rates relative to those of `baseline` in the same rounds.
    pub(super) fn ratios(&self, baseline: &Self) -> Vec<f64> {
        self.rates().iter().zip(baseline.rates()).map(|(rate, baseline)| rate / baseline).collect()
    }

    /// By the ratios to `baseline`, if something is required.
    pub(super) fn verdict(&self, baseline: &Self) -> Option<Verdict> {
        let share = self.role.share()?;
        Some(Verdict::of(&self.ratios(baseline), share))
    }
}

/// What one measure came to.
pub(super) struct Series {
    pub(super) measure: Measure,
    pub(super) runs: Vec<Run>,
}

impl Series {
    fn new(measure: Measure, targets: &[Target<'_>]) -> Self {
        let run = |target: &Target<'_>| Run { name: target.name, role: target.role, turns: Vec::new() };
        Self { measure, runs: targets.iter().map(run).collect() }
    }

    /// The run all others are compared with: of those meant for it, the one with the highest median rate.
    pub(super) fn baseline(&self) -> Result<&Run> {
        let candidates = self.runs.iter().filter(|run| run.role == Role::Baseline);
        let best = candidates.max_by(|one, other| one.median().total_cmp(&other.median()));
        best.context("no target is a baseline")
    }

    /// Whether more rounds could change a verdict.
    fn open(&self) -> Result<bool> {
        let baseline = self.baseline()?;
        Ok(self.runs.iter().filter_map(|run| run.verdict(baseline)).any(|verdict| !verdict.sure))
    }
}

/// The targets and what their counters showed last.
pub(super) struct Bench<'a> {
    cli: Cli<'a>,
    targets: &'a [Target<'a>],
    counts: Counts,
}

impl<'a> Bench<'a> {
    /// Reads the counters the loads are to move, with `cli` those of the attachments.
    pub(super) fn new(cli: Cli<'a>, targets: &'a [Target<'a>]) -> Result<Self> {
        let counts = Counts::read(targets, &cli)?;
        Ok(Self { cli, targets, counts })
    }

    /// All of `measures`, at least `rounds` times.
    pub(super) fn run(&mut self, measures: &[Measure], rounds: usize, cell: Duration) -> Result<Vec<Series>> {
        let mut all: Vec<_> = measures.iter().map(|measure| Series::new(*measure, self.targets)).collect();
        eprintln!("warm-up");
        for measure in measures {
            self.round(*measure, WARM_UP)?;
        }
        for round in 1..=rounds * LIMIT {
            let mut due = Vec::new();
            for series in &mut all {
                if round <= rounds || series.open()? {
                    due.push(series);
                }
            }
            if due.is_empty() {
                break;
            }
            if round > rounds {
                eprint!("undecided, ");
            }
            eprint!("round {round}:");
            for series in due {
                let round = self.round(series.measure, cell)?;
                for (run, turn) in series.runs.iter_mut().zip(round) {
                    run.turns.push(turn);
                }
                show_last(series)?;
            }
            eprintln!();
        }
        Ok(all)
    }

    /// One measure against every target for `time` each, in order and then in the opposite order, over and over.
    fn round(&mut self, measure: Measure, time: Duration) -> Result<Vec<Turn>> {
        let passes = (time.as_secs_f64() / (2.0 * SLICE.as_secs_f64())).round().max(1.0);
        let slice = time.div_f64(2.0 * passes);
        let mut turns = vec![Turn::default(); self.targets.len()];
        for _ in 0..passes as u32 {
            let there = 0..self.targets.len();
            for index in there.clone().chain(there.rev()) {
                let target = &self.targets[index];
                let outcome = Usage::of(target.relay, || measure.run(target.net, target.address, slice));
                interrupt::check()?;
                let (cell, usage) = outcome.with_context(|| format!("target {}", target.name))?;
                turns[index].cell += cell;
                turns[index].usage += usage;
            }
        }
        let now = Counts::read(self.targets, &self.cli)?;
        self.counts.advance(now, self.targets, turns.iter().map(|turn| &turn.cell))?;
        Ok(turns)
    }
}

/// Ratios of every target that is no baseline.
fn show_last(series: &Series) -> Result<()> {
    let baseline = series.baseline()?;
    eprint!("  {}", series.measure.name());
    for run in series.runs.iter().filter(|run| run.role != Role::Baseline) {
        if let Some(ratio) = run.ratios(baseline).last() {
            eprint!(" {ratio:.3}");
        }
    }
    Ok(())
}

/// Whether a target does what is required, and whether the series says so for sure.
pub(super) struct Verdict {
    pub(super) passed: bool,
    pub(super) sure: bool,
    /// Whether it also does what is aimed at, if anything is.
    pub(super) aim_met: Option<bool>,
}

impl Verdict {
    /// By the median of the per-round ratios.
    fn of(ratios: &[f64], share: Share) -> Self {
        let median = stats::Summary::of(ratios).median;
        let sure = stats::side(ratios, share.required);
        let passed = sure.map_or(median >= share.required, |side| side == Ordering::Greater);
        Self { passed, sure: sure.is_some(), aim_met: share.aim.map(|aim| median >= aim) }
    }
}
