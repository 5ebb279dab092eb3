//! `bridge-user attach --foreground` as a running process: what it reports, says, holds and costs.
//!
//! Invariants: started means that its report arrived, so it accepts; it dies with its guard, and what
//! it said on stderr goes into the transcript.

use std::process::ExitStatus;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::cli::Cli;
use super::log::Log;
use super::memory;
use super::proc::Guarded;
use super::sys::map_keys;
use super::transcript::note;
use super::wait::{patience, until};

/// A relay process.
pub(crate) struct Foreground {
    process: Guarded,
    said: Log,
    report: Value,
}

impl Foreground {
    /// Runs `attach` with these arguments and `--foreground`, and waits for its report.
    pub(crate) fn start(cli: &Cli<'_>, arguments: &[&str]) -> Result<Self> {
        let all = [&["attach"], arguments, &["--foreground", "--output", "json"]].concat();
        let mut child = cli.spawn(&all)?;
        let said = Log::of(child.stderr.take().context("the relay has no stderr pipe")?);
        let process = Guarded::new(child);
        let mut relay = Self { process, said, report: Value::Null };
        let lines = relay.process.lines()?;
        let line = lines.recv_timeout(patience(15));
        let line = line.with_context(|| format!("no report from the relay, which said: {}", relay.said()))?;
        relay.report = serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?;
        ensure!(relay.report["version"] == 1, "the report is not version 1: {line}");
        Ok(relay)
    }

    /// The document it printed when it was ready.
    pub(crate) fn report(&self) -> &Value {
        &self.report
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Everything it wrote to stderr so far.
    pub(crate) fn said(&self) -> String {
        self.said.text()
    }

    /// Waits until a line on stderr contains every needle; returns the line.
    pub(crate) fn says(&self, needles: &[&str]) -> Result<String> {
        self.said.says("the relay", needles, patience(5))
    }

    /// Sends `signal` and goes on.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits for it to end by itself.
    pub(crate) fn end(&mut self) -> Result<ExitStatus> {
        let process = &mut self.process;
        until("the relay ends", patience(20), || process.ended())
            .with_context(|| format!("it said: {}", self.said()))
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> Result<bool> {
        Ok(self.process.ended()?.is_none())
    }

    /// Resident memory in bytes.
    pub(crate) fn resident(&self) -> Result<u64> {
        memory::resident(self.pid())
    }

    /// Open descriptors.
    pub(crate) fn open_files(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count())
    }

    /// Entries in all BPF hash maps and socket hash maps it holds.
    pub(crate) fn map_entries(&self) -> Result<usize> {
        // BPF_MAP_TYPE_HASH, PERCPU_HASH, LRU_HASH, LRU_PERCPU_HASH, SOCKHASH.
        const HASHES: [&str; 5] = ["1", "5", "9", "10", "18"];
        let mut maps = std::collections::BTreeSet::new();
        for entry in std::fs::read_dir(format!("/proc/{}/fdinfo", self.pid()))? {
            // A connection's descriptor may be gone by now; maps stay.
            let Ok(info) = std::fs::read_to_string(entry?.path()) else { continue };
            let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            if let (Some(id), Some(kind)) = (field("map_id:"), field("map_type:"))
                && HASHES.contains(&kind)
            {
                maps.insert(id.parse::<u32>().context("odd map id")?);
            }
        }
        let mut entries = 0;
        for map in maps {
            entries += map_keys(map)?.unwrap_or(0);
        }
        Ok(entries)
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        note(format!("the relay with pid {} said: {}", self.pid(), self.said()));
    }
}
