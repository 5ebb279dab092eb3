//! The result of a run: whether it passed, and all of it for people and for programs.
//!
//! Invariant: both say the same; rates carry their spread, and a verdict its requirement.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::rounds::{Run, Series, Verdict};
use super::stats::Summary;
use super::tables;
use super::verbs::Timing;

/// Everything one run found out.
pub(super) struct Report {
    pub(super) machine: Machine,
    /// The load averages when the run ended.
    pub(super) load_after: String,
    /// Seconds of a cell.
    pub(super) seconds: f64,
    pub(super) series: Vec<Series>,
    /// Verbs of the binary, where the bench times them.
    pub(super) timings: Vec<Timing>,
}

/// Where, and how busy it was.
pub(super) struct Machine {
    kernel: String,
    cpus: usize,
    load: String,
}

impl Machine {
    /// Looks around.
    pub(super) fn look() -> Result<Self> {
        Ok(Self {
            kernel: nix::sys::utsname::uname()?.release().to_string_lossy().into_owned(),
            cpus: std::thread::available_parallelism()?.get(),
            load: load_average()?,
        })
    }
}

/// The load averages of the last 1, 5 and 15 minutes.
pub(super) fn load_average() -> Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg").context("failed to read the load average")?;
    Ok(text.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
}

/// A run next to the baseline of its series.
pub(super) struct Compared<'a> {
    pub(super) series: &'a Series,
    pub(super) run: &'a Run,
    pub(super) baseline: &'a Run,
    pub(super) verdict: Option<Verdict>,
}

impl Report {
    /// Whether every requirement is met.
    pub(super) fn passed(&self) -> Result<bool> {
        let compared = self.compared()?;
        Ok(compared.iter().filter_map(|row| row.verdict.as_ref()).all(|verdict| verdict.passed)
            && self.timings.iter().all(|timing| timing.passed() != Some(false)))
    }

    /// Every series with every target but the series' own baseline.
    pub(super) fn compared(&self) -> Result<Vec<Compared<'_>>> {
        let mut rows = Vec::new();
        for series in &self.series {
            let baseline = series.baseline()?;
            let others = series.runs.iter().filter(|run| run.name != baseline.name);
            rows.extend(others.map(|run| {
                let verdict = run.verdict(baseline);
                Compared { series, run, baseline, verdict }
            }));
        }
        Ok(rows)
    }

    /// The tables.
    pub(super) fn text(&self) -> Result<String> {
        let Machine { kernel, cpus, load } = &self.machine;
        let mut text = format!(
            "\nkernel {kernel}, {cpus} CPUs, load average before {load}, after {}\n\
             {} s per cell, in slices ({} …), Reno congestion control\n\n",
            self.load_after,
            self.seconds,
            self.order()
        );
        text.push_str(&tables::rates(&self.compared()?));
        text.push_str(&tables::costs(&self.series));
        text.push_str(&tables::verbs(&self.timings));
        Ok(text)
    }

    fn order(&self) -> String {
        let runs = self.series.first().map(|series| series.runs.as_slice()).unwrap_or_default();
        let there = runs.iter().map(|run| run.name);
        there.clone().chain(there.rev()).collect::<Vec<_>>().join(" ")
    }

    /// For programs.
    pub(super) fn json(&self) -> Result<Value> {
        Ok(json!({
            "version": 1,
            "passed": self.passed()?,
            "machine": {
                "kernel": self.machine.kernel, "cpus": self.machine.cpus,
                "load_before": self.machine.load, "load_after": self.load_after,
            },
            "seconds": self.seconds,
            "measures": self.compared()?.iter().map(Compared::json).collect::<Vec<_>>(),
            "costs": self.series.iter().flat_map(costs_json).collect::<Vec<_>>(),
            "verbs": self.timings.iter().map(Timing::json).collect::<Vec<_>>(),
        }))
    }
}

impl Compared<'_> {
    fn json(&self) -> Value {
        let Self { series, run, baseline, verdict } = self;
        let ratios = run.ratios(baseline);
        let share = run.role.share();
        json!({
            "measure": series.measure.name(),
            "target": run.name,
            "baseline": baseline.name,
            "baseline_per_second": baseline.rates(),
            "target_per_second": run.rates(),
            "ratio_of_medians": run.median() / baseline.median(),
            "pair_ratios": ratios,
            "median_of_pair_ratios": Summary::of(&ratios).median,
            "required": share.map(|share| share.required),
            "passed": verdict.as_ref().map(|verdict| verdict.passed),
            "sure": verdict.as_ref().map(|verdict| verdict.sure),
            "aim": share.and_then(|share| share.aim),
            "aim_met": verdict.as_ref().and_then(|verdict| verdict.aim_met),
        })
    }
}

/// Processor time of every target, per unit of work, round by round.
fn costs_json(series: &Series) -> Vec<Value> {
    let (unit, name) = series.measure.work();
    let cost = |run: &Run| {
        let (relay, machine): (Vec<_>, Vec<_>) = run.turns.iter().map(|turn| turn.cost(unit)).unzip();
        let (measure, target) = (series.measure.name(), run.name);
        json!({ "measure": measure, "target": target, "unit": name, "relay": relay, "machine": machine })
    };
    series.runs.iter().map(cost).collect()
}
