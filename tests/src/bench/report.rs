//! The result as tables for people and as JSON for programs.
//!
//! Invariant: both say the same; rates carry their spread, and a verdict its requirement.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::rounds::{Series, Verdict};
use super::stats::Summary;
use super::target::Target;
use super::verbs::Timing;

/// Everything one run found out.
pub(super) struct Report<'a> {
    pub(super) machine: Machine,
    /// The load averages when the run ended.
    pub(super) load_after: String,
    /// Seconds of a cell.
    pub(super) seconds: f64,
    pub(super) targets: &'a [Target<'a>],
    pub(super) series: Vec<Series>,
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

impl Report<'_> {
    /// Whether every requirement is met.
    pub(super) fn passed(&self) -> bool {
        self.verdicts().all(|verdict| verdict.passed)
            && self.timings.iter().all(|timing| timing.passed() != Some(false))
    }

    fn verdicts(&self) -> impl Iterator<Item = Verdict> {
        self.judged().filter_map(|(series, index)| verdict(series, index, &self.targets[index]))
    }

    /// Every series with every target but the baseline.
    fn judged(&self) -> impl Iterator<Item = (&Series, usize)> {
        self.series.iter().flat_map(|series| (1..self.targets.len()).map(move |index| (series, index)))
    }

    /// The tables.
    pub(super) fn text(&self) -> String {
        let Machine { kernel, cpus, load } = &self.machine;
        let baseline = self.targets[0].name;
        let mut text = format!(
            "\nkernel {kernel}, {cpus} CPUs, load average before {load}, after {}\n\
             rate relative to {baseline}, {} s per cell, in slices ({} …), Reno congestion control\n\n",
            self.load_after,
            self.seconds,
            self.order()
        );
        let header = [
            "MEASURE",
            "TARGET",
            "MEDIAN",
            baseline,
            "UNIT",
            "MEDIANS",
            "PAIRS",
            "QUARTILES",
            "RANGE",
            "ROUNDS",
            "REQUIRED",
            "VERDICT",
        ];
        let mut rows = vec![header.map(str::to_uppercase).to_vec()];
        rows.extend(self.judged().map(|(series, index)| self.row(series, index)));
        text.push_str(&table(&rows));
        text.push_str(
            "MEDIANS: ratio of the two medians; PAIRS: median of the per-round ratios, which is judged\n\n",
        );
        let header = ["VERB", "RUNS", "MEDIAN", "RANGE", "REQUIRED", "VERDICT"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        rows.extend(self.timings.iter().map(Timing::row));
        text.push_str(&table(&rows));
        if self.verdicts().any(|verdict| !verdict.sure) {
            text.push_str("\n(*) the interval of the median still contains the requirement: too few rounds, or a busy machine\n");
        }
        text
    }

    fn order(&self) -> String {
        let there = self.targets.iter().map(|target| target.name);
        there.clone().chain(there.rev()).collect::<Vec<_>>().join(" ")
    }

    fn row(&self, series: &Series, index: usize) -> Vec<String> {
        let (measure, target) = (series.measure, &self.targets[index]);
        let [baseline, rate] = [0, index].map(|index| Summary::of(&series.rates[index]).median);
        let pairs = Summary::of(&series.ratios(index));
        vec![
            measure.name().to_owned(),
            target.name.to_owned(),
            measure.show(rate),
            measure.show(baseline),
            measure.unit().to_owned(),
            format!("{:.3}", rate / baseline),
            format!("{:.3}", pairs.median),
            format!("{:.3}-{:.3}", pairs.lower_quartile, pairs.upper_quartile),
            format!("{:.3}-{:.3}", pairs.min, pairs.max),
            series.rates[index].len().to_string(),
            target.required.map_or_else(|| "-".to_owned(), |least| format!(">= {least}")),
            verdict(series, index, target).map_or_else(
                || "-".to_owned(),
                |verdict| format!("{}{}", word(verdict.passed), if verdict.sure { "" } else { " (*)" }),
            ),
        ]
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        json!({
            "version": 1,
            "passed": self.passed(),
            "machine": {
                "kernel": self.machine.kernel, "cpus": self.machine.cpus,
                "load_before": self.machine.load, "load_after": self.load_after,
            },
            "seconds": self.seconds,
            "baseline": self.targets[0].name,
            "measures": self.judged().map(|(series, index)| self.measure_json(series, index)).collect::<Vec<_>>(),
            "verbs": self.timings.iter().map(Timing::json).collect::<Vec<_>>(),
        })
    }

    fn measure_json(&self, series: &Series, index: usize) -> Value {
        let target = &self.targets[index];
        let verdict = verdict(series, index, target);
        json!({
            "measure": series.measure.name(),
            "target": target.name,
            "baseline_per_second": series.rates[0],
            "target_per_second": series.rates[index],
            "ratio_of_medians": Summary::of(&series.rates[index]).median / Summary::of(&series.rates[0]).median,
            "pair_ratios": series.ratios(index),
            "median_of_pair_ratios": Summary::of(&series.ratios(index)).median,
            "required": target.required,
            "passed": verdict.as_ref().map(|verdict| verdict.passed),
            "sure": verdict.as_ref().map(|verdict| verdict.sure),
        })
    }
}

fn verdict(series: &Series, index: usize, target: &Target<'_>) -> Option<Verdict> {
    Some(Verdict::of(&series.ratios(index), target.required?))
}

impl Timing {
    /// `None` where nothing is required.
    fn passed(&self) -> Option<bool> {
        Some(Summary::of(&self.seconds).median < self.limit?.as_secs_f64())
    }

    fn row(&self) -> Vec<String> {
        let summary = Summary::of(&self.seconds);
        let millis = |seconds: f64| format!("{:.0}", seconds * 1e3);
        vec![
            self.what.to_owned(),
            self.seconds.len().to_string(),
            format!("{:.1} ms", summary.median * 1e3),
            format!("{}-{} ms", millis(summary.min), millis(summary.max)),
            self.limit.map_or_else(|| "-".to_owned(), |limit| format!("< {} ms", limit.as_millis())),
            self.passed().map_or("-", word).to_owned(),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "verb": self.what,
            "seconds": self.seconds,
            "median": Summary::of(&self.seconds).median,
            "required_below": self.limit.map(|limit| limit.as_secs_f64()),
            "passed": self.passed(),
        })
    }
}

fn word(passed: bool) -> &'static str {
    if passed { "ok" } else { "BELOW" }
}

/// Left-aligned columns, two spaces apart.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}
