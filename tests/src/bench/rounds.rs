//! Rounds: every measure against every target, there and back again, and more rounds while a verdict is open.
//!
//! A round runs each measure in short slices, in the order `direct steer steer direct` over and over, so that a machine
//! that gets slower or faster meanwhile does so for both alike; one round gives one rate, and one ratio, per target.
//! Invariant: rates of different rounds are never compared, only ratios are.

use std::cmp::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};

use super::interrupt;
use super::load::{Cell, Measure};
use super::stats;
use super::target::{Counts, Target};
use crate::harness::cli::Cli;

/// How many times the wanted rounds there may be in all.
pub(super) const LIMIT: usize = 3;
/// A cell of the discarded warm-up.
const WARM_UP: Duration = Duration::from_millis(400);
/// About how long one target is loaded before it is the next one's turn.
const SLICE: Duration = Duration::from_millis(100);

/// What one measure came to: rates per round, by target.
pub(super) struct Series {
    pub(super) measure: Measure,
    /// The first target's are the baseline.
    pub(super) rates: Vec<Vec<f64>>,
}

impl Series {
    /// Rates of a target relative to the baseline's of the same round.
    pub(super) fn ratios(&self, target: usize) -> Vec<f64> {
        self.rates[target].iter().zip(&self.rates[0]).map(|(rate, baseline)| rate / baseline).collect()
    }

    fn rounds(&self) -> usize {
        self.rates[0].len()
    }

    /// Whether more rounds could change a verdict.
    fn open(&self, targets: &[Target<'_>]) -> bool {
        targets.iter().enumerate().any(|(index, target)| {
            target.required.is_some_and(|least| stats::side(&self.ratios(index), least).is_none())
        })
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

    /// All measures, at least `rounds` times.
    pub(super) fn run(&mut self, rounds: usize, cell: Duration) -> Result<Vec<Series>> {
        let rates = vec![Vec::new(); self.targets.len()];
        let mut all = Measure::ALL.map(|measure| Series { measure, rates: rates.clone() });
        eprintln!("warm-up");
        for series in &all {
            self.round(series.measure, WARM_UP)?;
        }
        for round in 1..=rounds * LIMIT {
            let due: Vec<_> = all.iter_mut().filter(|s| round <= rounds || s.open(self.targets)).collect();
            if due.is_empty() {
                break;
            }
            if round > rounds {
                eprint!("undecided, ");
            }
            eprint!("round {round}:");
            for series in due {
                let cells = self.round(series.measure, cell)?;
                for (rates, cell) in series.rates.iter_mut().zip(&cells) {
                    rates.push(cell.rate());
                }
                self.show_last(series);
            }
            eprintln!();
        }
        Ok(all.into())
    }

    /// One measure against every target for `time` each, in order and then in the opposite order, over and over.
    fn round(&mut self, measure: Measure, time: Duration) -> Result<Vec<Cell>> {
        let passes = (time.as_secs_f64() / (2.0 * SLICE.as_secs_f64())).round().max(1.0);
        let slice = time.div_f64(2.0 * passes);
        let mut cells = vec![Cell::default(); self.targets.len()];
        for _ in 0..passes as u32 {
            let there = 0..self.targets.len();
            for index in there.clone().chain(there.rev()) {
                let target = &self.targets[index];
                let outcome = measure.run(target.net, target.address, slice);
                interrupt::check()?;
                cells[index] += outcome.with_context(|| format!("target {}", target.name))?;
            }
        }
        let now = Counts::read(self.targets, &self.cli)?;
        self.counts.advance(now, self.targets, &cells)?;
        Ok(cells)
    }

    fn show_last(&self, series: &Series) {
        eprint!("  {}", series.measure.name());
        for index in 1..self.targets.len() {
            eprint!(" {:.3}", series.ratios(index)[series.rounds() - 1]);
        }
    }
}

/// Whether a target does what is required, and whether the series says so for sure.
pub(super) struct Verdict {
    pub(super) passed: bool,
    pub(super) sure: bool,
}

impl Verdict {
    /// By the median of the per-round ratios.
    pub(super) fn of(ratios: &[f64], required: f64) -> Self {
        let sure = stats::side(ratios, required);
        let passed =
            sure.map_or(stats::Summary::of(ratios).median >= required, |side| side == Ordering::Greater);
        Self { passed, sure: sure.is_some() }
    }
}
