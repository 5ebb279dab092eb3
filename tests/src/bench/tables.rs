//! The result as tables for people.
//!
//! Invariant: a number never comes without its unit and its spread.

use super::report::Compared;
use super::rounds::{Run, Series, Verdict};
use super::stats::Summary;
use super::verbs::Timing;

/// Rates relative to the baseline.
pub(super) fn rates(compared: &[Compared<'_>]) -> String {
    let header = [
        "MEASURE",
        "TARGET",
        "MEDIAN",
        "AGAINST",
        "MEDIAN",
        "UNIT",
        "MEDIANS",
        "PAIRS",
        "QUARTILES",
        "RANGE",
        "ROUNDS",
        "REQUIRED",
        "AIM",
        "VERDICT",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(compared.iter().map(rate));
    let mut text = table(&rows);
    text.push_str(
        "AGAINST: the baseline; where there are several, the one with the highest median\n\
         MEDIANS: ratio of the two medians; PAIRS: median of the per-round ratios, which is judged\n",
    );
    if compared.iter().filter_map(|row| row.verdict.as_ref()).any(|verdict| !verdict.sure) {
        text.push_str(
            "(*) the interval of the median still contains the requirement: too few rounds, or a busy machine\n",
        );
    }
    text
}

fn rate(compared: &Compared<'_>) -> Vec<String> {
    let Compared { series, run, baseline, verdict } = compared;
    let (measure, share) = (series.measure, run.role.share());
    let pairs = Summary::of(&run.ratios(baseline));
    vec![
        measure.name().to_owned(),
        run.name.to_owned(),
        measure.show(run.median()),
        baseline.name.to_owned(),
        measure.show(baseline.median()),
        measure.unit().to_owned(),
        format!("{:.3}", run.median() / baseline.median()),
        format!("{:.3}", pairs.median),
        format!("{:.3}-{:.3}", pairs.lower_quartile, pairs.upper_quartile),
        format!("{:.3}-{:.3}", pairs.min, pairs.max),
        run.turns.len().to_string(),
        share.map_or_else(dash, |share| format!(">= {}", share.required)),
        share.and_then(|share| share.aim).map_or_else(dash, |aim| format!(">= {aim}")),
        verdict.as_ref().map_or_else(dash, judgement),
    ]
}

fn judgement(verdict: &Verdict) -> String {
    let aim = match verdict.aim_met {
        Some(true) => ", aim met",
        Some(false) => ", aim missed",
        None => "",
    };
    format!("{}{aim}{}", word(verdict.passed), if verdict.sure { "" } else { " (*)" })
}

/// Processor time per unit of work.
pub(super) fn costs(series: &[Series]) -> String {
    let header = ["MEASURE", "TARGET", "RELAY CPU", "QUARTILES", "MACHINE CPU", "QUARTILES", "UNIT"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(series.iter().flat_map(|series| series.runs.iter().map(|run| cost(series, run))));
    format!(
        "\n{}RELAY CPU: user and system time of the relay's processes. MACHINE CPU: everything that ran meanwhile, \
         both ends of\nthe connection, softirqs and the kernel's own threads included\n",
        table(&rows)
    )
}

fn cost(series: &Series, run: &Run) -> Vec<String> {
    let (unit, name) = series.measure.work();
    let (relay, machine): (Vec<_>, Vec<_>) = run.turns.iter().map(|turn| turn.cost(unit)).unzip();
    let relay: Option<Vec<f64>> = relay.into_iter().collect();
    let mut row = vec![series.measure.name().to_owned(), run.name.to_owned()];
    for seconds in [relay, Some(machine)] {
        let summary = seconds.map(|seconds| Summary::of(&seconds));
        row.push(summary.map_or_else(dash, |s| format!("{:.3}", s.median)));
        row.push(summary.map_or_else(dash, |s| format!("{:.3}-{:.3}", s.lower_quartile, s.upper_quartile)));
    }
    row.push(name.to_owned());
    row
}

/// What the binary's verbs took; nothing where none was timed.
pub(super) fn verbs(timings: &[Timing]) -> String {
    if timings.is_empty() {
        return String::new();
    }
    let header = ["VERB", "RUNS", "MEDIAN", "RANGE", "REQUIRED", "VERDICT"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(timings.iter().map(verb));
    format!("\n{}", table(&rows))
}

fn verb(timing: &Timing) -> Vec<String> {
    let summary = Summary::of(&timing.seconds);
    let millis = |seconds: f64| format!("{:.0}", seconds * 1e3);
    vec![
        timing.what.to_owned(),
        timing.seconds.len().to_string(),
        format!("{:.1} ms", summary.median * 1e3),
        format!("{}-{} ms", millis(summary.min), millis(summary.max)),
        timing.limit.map_or_else(dash, |limit| format!("< {} ms", limit.as_millis())),
        timing.passed().map_or_else(dash, |passed| word(passed).to_owned()),
    ]
}

fn dash() -> String {
    "-".to_owned()
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
