//! How soon the daemon follows what happens, and what it costs while nothing does.
//!
//! Invariants: an event's time is the engine's or the moment before the change; an attachment's is when the daemon's
//! line about it arrived, which it writes once the kernel steers. Both are of this machine's clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::stats::Summary;
use super::tables::table;
use crate::harness::daemon::Daemon;
use crate::harness::docker::Engine;
use crate::harness::memory::resident;
use crate::harness::rig::Rig;
use crate::harness::wait::{patience, until};

/// Networks and bridges that are made.
const ROUNDS: usize = 50;
/// Bridges, and services on each, of the large file.
const BRIDGES: usize = 100;
const SERVICES: usize = 10;
/// Restarts beside the large file.
const RESTARTS: usize = 5;
/// How long the idle daemon is watched.
const IDLE: Duration = Duration::from_secs(60);
const MIB: f64 = 1024.0 * 1024.0;

struct Row {
    what: &'static str,
    unit: &'static str,
    values: Vec<f64>,
    /// What the median, and the greatest, may be.
    limits: (f64, f64),
}

impl Row {
    fn passed(&self) -> bool {
        let Summary { median, max, .. } = Summary::of(&self.values);
        median <= self.limits.0 && max <= self.limits.1
    }

    fn cells(&self) -> Vec<String> {
        let Summary { min, median, max, .. } = Summary::of(&self.values);
        let passed = if self.passed() { "yes" } else { "NO" };
        let limits = format!("{} / {}", self.limits.0, self.limits.1);
        let spread = format!("{min:.2}–{max:.2}");
        vec![self.what.into(), self.unit.into(), format!("{median:.2}"), spread, limits, passed.into()]
    }

    fn json(&self) -> Value {
        json!({
            "what": self.what, "unit": self.unit, "values": self.values, "passed": self.passed(),
            "required": { "median": self.limits.0, "max": self.limits.1 },
        })
    }
}

/// Measures, prints, and says whether every requirement is met.
pub(super) fn run(file: Option<&str>) -> Result<bool> {
    let mut rows = vec![networks()?, bridges()?];
    rows.extend(many()?);
    let header =
        ["", "unit", "median", "spread", "median / most allowed", "passed"].map(str::to_owned).to_vec();
    let cells: Vec<_> = [header].into_iter().chain(rows.iter().map(Row::cells)).collect();
    print!("{}", table(&cells));
    if let Some(file) = file {
        let document = json!({ "version": 1, "rows": rows.iter().map(Row::json).collect::<Vec<_>>() });
        std::fs::write(file, format!("{document:#}\n")).with_context(|| format!("failed to write {file}"))?;
    }
    Ok(rows.iter().all(Row::passed))
}

/// Milliseconds from `since` to the daemon's line that it attached this.
fn attached(daemon: &Daemon, name: &str, since: SystemTime) -> Result<f64> {
    let line = format!("attached {name}");
    let at = until(&line, patience(20), || {
        let lines = daemon.lines();
        Ok(lines.iter().find(|(at, said)| *at >= since && said.ends_with(&line)).map(|(at, _)| *at))
    })?;
    Ok(at.duration_since(since).unwrap_or_default().as_secs_f64() * 1e3)
}

/// From the engine's event of a new network.
fn networks() -> Result<Row> {
    let engine = Engine::start()?;
    let config = format!(
        "[docker]\nhost = \"{}\"\n[[attach]]\nservice = \"redis\"\nnetworks = [\"bridge\", \"n*\"]\n",
        engine.endpoint()
    );
    let daemon = Daemon::start(&engine.cli(), &config)?;
    let events =
        ["events", "--filter", "type=network", "--filter", "event=create", "--format", "{{.TimeNano}}"];
    let mut events = engine.docker_spawn(&events)?;
    let lines = events.lines()?;
    let mut values = Vec::new();
    for round in 0..ROUNDS {
        let network = format!("n{round}");
        engine.docker(&["network", "create", &network])?;
        let at = lines.recv_timeout(patience(10)).context("the engine tells no event")?;
        let at = Duration::from_nanos(at.trim().parse().context("the engine's event has no time")?);
        values.push(attached(&daemon, &format!("{network}-redis-6379"), UNIX_EPOCH + at)?);
        engine.docker(&["network", "rm", &network])?;
    }
    Ok(Row { what: "network made, engine's event to attached", unit: "ms", values, limits: (200.0, 1000.0) })
}

/// From before a bridge is made.
fn bridges() -> Result<Row> {
    let rig = Rig::new()?;
    let daemon = Daemon::start(&rig.cli(), "[[attach]]\nservice = \"7001\"\nbridges = [\"br-x\"]\n")?;
    let mut values = Vec::new();
    for _ in 0..ROUNDS {
        let since = SystemTime::now();
        rig.net.host.ip("link add br-x type bridge\naddr add 172.30.9.1/24 dev br-x\nlink set br-x up\n")?;
        values.push(attached(&daemon, "br-x-tcp-7001", since)?);
        rig.net.host.ip("link del br-x\n")?;
    }
    Ok(Row { what: "bridge made, command to attached", unit: "ms", values, limits: (200.0, 1000.0) })
}

/// With 1,000 attachments: a restart, memory, and an idle minute.
fn many() -> Result<Vec<Row>> {
    let rig = Rig::new()?;
    let names: Vec<String> = (0..BRIDGES).map(|at| format!("br-m{at}")).collect();
    for (at, name) in names.iter().enumerate() {
        rig.net.host.ip(&format!(
            "link add {name} type bridge\naddr add 10.99.{at}.1/24 dev {name}\nlink set {name} up\n"
        ))?;
    }
    let list = names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let config: String = (0..SERVICES)
        .map(|at| format!("[[attach]]\nservice = \"{}\"\nbridges = [{list}]\n", 10_000 + at))
        .collect();
    let mut daemon = Daemon::start(&rig.cli(), &config)?;
    let mut restarts = Vec::new();
    for _ in 0..RESTARTS {
        let directory = daemon.stop(Signal::SIGKILL)?;
        let start = Instant::now();
        daemon = Daemon::start_in(&rig.cli(), directory)?;
        restarts.push(start.elapsed().as_secs_f64());
    }
    // What a pass leaves behind is given back by then.
    let before = cpu(daemon.pid())?;
    std::thread::sleep(IDLE);
    let busy = (cpu(daemon.pid())? - before) / IDLE.as_secs_f64() * 100.0;
    let memory = resident(daemon.pid())? as f64 / MIB;
    rig.cli().ok(&["detach", "--all"])?;
    let row = |what, unit, values, limit| Row { what, unit, values, limits: (limit, limit) };
    Ok(vec![
        row("1,000 attachments: killed, started to ready", "s", restarts, 2.0),
        row("1,000 attachments: resident memory", "MiB", vec![memory], 32.0),
        row("1,000 attachments: processor while idle", "%", vec![busy], 0.1),
    ])
}

/// Seconds of processor time that a process used so far.
fn cpu(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/schedstat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))?;
    let nanoseconds = text.split_whitespace().next().and_then(|first| first.parse::<f64>().ok());
    Ok(nanoseconds.with_context(|| format!("odd {path}: {text}"))? / 1e9)
}
