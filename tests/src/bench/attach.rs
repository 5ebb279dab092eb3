//! How long an attach takes by how many services it attaches, and beside how many others.
//!
//! Invariant: each run starts from the number of attachments that its row says.

use std::time::Duration;

use anyhow::{Context, Result};
use bridge_common::maps::MAX_ATTACHMENTS;
use serde_json::{Value, json};

use super::stats::Summary;
use super::tables::table;
use super::verbs::timed;
use crate::harness::rig::Rig;

/// Services in one attach.
const SIZES: [u32; 6] = [1, 16, 128, 1024, 2048, MAX_ATTACHMENTS];
/// Runs of each row.
const RUNS: usize = 5;
/// What each attachment of a large attach may take.
const EACH: Duration = Duration::from_millis(1);
const FIRST_PORT: u32 = 10_000;

struct Row {
    what: String,
    seconds: Vec<f64>,
    /// Attachments that the time is divided by.
    each_of: Option<u32>,
    limit: Option<Duration>,
}

impl Row {
    fn median(&self) -> f64 {
        Summary::of(&self.seconds).median / f64::from(self.each_of.unwrap_or(1))
    }

    fn passed(&self) -> Option<bool> {
        Some(self.median() <= self.limit?.as_secs_f64())
    }

    fn cells(&self) -> Vec<String> {
        let Summary { min, median, max, .. } = Summary::of(&self.seconds);
        let ms = |seconds: f64| format!("{:.1}", seconds * 1e3);
        let each = self.each_of.map_or_else(String::new, |_| format!("{:.3}", self.median() * 1e3));
        let passed = self.passed().map_or("", |passed| if passed { "yes" } else { "NO" });
        vec![self.what.clone(), ms(median), format!("{}–{}", ms(min), ms(max)), each, passed.to_owned()]
    }

    fn json(&self) -> Value {
        let limit = self.limit.map(|limit| limit.as_secs_f64());
        json!({
            "what": self.what, "seconds": self.seconds, "median": self.median(),
            "attachments": self.each_of, "required": limit, "passed": self.passed(),
        })
    }
}

/// Measures, prints, and says whether every requirement is met.
pub(super) fn run(file: Option<&str>) -> Result<bool> {
    let rig = Rig::new()?;
    let mut rows = Vec::new();
    for size in SIZES {
        let mut row = Row {
            what: format!("attach, {size} at once"),
            seconds: Vec::new(),
            each_of: Some(size),
            limit: (size >= 1024).then_some(EACH),
        };
        for _ in 0..RUNS {
            row.seconds.push(attach(&rig, 0, size)?);
            timed(&rig, &["detach", "--all"])?;
        }
        rows.push(row);
    }
    rows.extend(beside_many(&rig)?);
    let header = ["", "ms", "spread", "ms for each", "passed"].map(str::to_owned).to_vec();
    let cells: Vec<_> = [header].into_iter().chain(rows.iter().map(Row::cells)).collect();
    print!("{}", table(&cells));
    if let Some(file) = file {
        let document = json!({ "version": 1, "rows": rows.iter().map(Row::json).collect::<Vec<_>>() });
        std::fs::write(file, format!("{document:#}\n")).with_context(|| format!("failed to write {file}"))?;
    }
    Ok(rows.iter().all(|row| row.passed() != Some(false)))
}

/// The verbs beside as many attachments as there can be.
fn beside_many(rig: &Rig) -> Result<Vec<Row>> {
    let many = MAX_ATTACHMENTS - 1;
    attach(rig, 0, many)?;
    let row = |what: &str| Row { what: what.to_owned(), seconds: Vec::new(), each_of: None, limit: None };
    let mut rows = [
        row("attach, one more beside 4,095"),
        row("status, 4,096"),
        row("detach, one of 4,096"),
        row("detach, all 4,096"),
    ];
    for _ in 0..RUNS {
        rows[0].seconds.push(attach(rig, many, 1)?);
        rows[1].seconds.push(timed(rig, &["status"])?.as_secs_f64());
        rows[2].seconds.push(timed(rig, &["detach", &(FIRST_PORT + many).to_string()])?.as_secs_f64());
    }
    for _ in 0..RUNS {
        rows[3].seconds.push(timed(rig, &["detach", "--all"])?.as_secs_f64());
        attach(rig, 0, MAX_ATTACHMENTS)?;
    }
    timed(rig, &["detach", "--all"])?;
    Ok(rows.into())
}

/// Seconds that an attach of `count` services takes, from number `first` on.
fn attach(rig: &Rig, first: u32, count: u32) -> Result<f64> {
    let ports: Vec<String> = (first..first + count).map(|at| (FIRST_PORT + at).to_string()).collect();
    let arguments: Vec<&str> =
        ["attach", "--bridge", "br-a"].into_iter().chain(ports.iter().map(String::as_str)).collect();
    Ok(timed(rig, &arguments)?.as_secs_f64())
}
