//! `events::*`: the kernel's event channel names what happened, without flooding.
//!
//! Invariant: events are read through the binary only, and every waited-for line has a deadline.

use std::process::Stdio;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::unistd::{SysconfVar, sysconf};
use serde_json::Value;

use super::Test;
use crate::harness::client::{answers, refused};
use crate::harness::proc::Guarded;
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::Service;
use crate::harness::topology::{A1, A1_6, A2, GATEWAY_A, GATEWAY_A6, at, at6, local};
use crate::harness::transcript::note;
use crate::harness::wait::{patience, scaled, until};

pub(super) const TESTS: &[Test] = &[
    Test::new("events::denied_connection_is_named", denied_is_named).in_kernels(),
    Test::new("events::missing_listener_is_named", no_listener_is_named),
    Test::new("events::ipv6_clients_are_named", ipv6_is_named),
    Test::new("events::each_has_its_time_also_as_json", times),
    Test::new("events::denied_flood_is_rate_limited", flood_is_limited),
    Test::new("events::steered_connections_at_debug_level_only", accepted_at_debug),
    Test::new("events::follower_goes_on_after_a_detach_and_an_attach", follower_goes_on),
];

const NAME: &str = "br-a-tcp-7001";

/// Starts `events --follow`.
fn follow(rig: &Rig) -> Result<(Guarded, Receiver<String>)> {
    follow_as(rig, "text")
}

fn follow_as(rig: &Rig, format: &str) -> Result<(Guarded, Receiver<String>)> {
    let mut command = rig.cli().command(&["events", "--follow", "--output", format])?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut process = Guarded::new(rig.net.host.spawn(&mut command)?);
    let lines = process.lines()?;
    Ok((process, lines))
}

/// Waits for a line that contains all of `needles`, in any letter case.
fn expect_line(lines: &Receiver<String>, needles: &[&str]) -> Result<String> {
    let deadline = Instant::now() + patience(10);
    let mut seen = Vec::new();
    loop {
        let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
            bail!("no event line with {needles:?}, only {seen:?}");
        };
        note(format!("event: {line}"));
        let lower = line.to_lowercase();
        if needles.iter().all(|needle| lower.contains(&needle.to_lowercase())) {
            return Ok(line);
        }
        seen.push(line);
    }
}

fn gateway() -> String {
    format!("{GATEWAY_A}:7001")
}

fn denied_is_named() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    rig.attach_with("7001", &["--allow", "172.30.1.11/32"])?;
    let (mut process, lines) = follow(&rig)?;
    rig.expect(NAME, Moved::denied(1), || refused(&rig.net.a2, at(GATEWAY_A, 7001)))?;
    expect_line(&lines, &["warn", "denied", &A2.to_string(), &gateway()])?;
    ensure!(process.ended()?.is_none(), "events --follow ended by itself");
    Ok(())
}

/// As when a unit restarts: too fast for the follower to see that nothing was attached in between, which is certain
/// while it is stopped.
fn follower_goes_on() -> Result<()> {
    let rig = Rig::new()?;
    rig.attach("7001")?;
    let (process, lines) = follow(&rig)?;
    for round in 0..2 {
        rig.expect(NAME, Moved::no_listener(1), || refused(&rig.net.a1, at(GATEWAY_A, 7001)))?;
        expect_line(&lines, &[&A1.to_string(), &gateway()]).with_context(|| format!("in round {round}"))?;
        process.signal(Signal::SIGSTOP);
        rig.cli().ok(&["detach", "--all"])?;
        rig.attach("7001")?;
        process.signal(Signal::SIGCONT);
    }
    Ok(())
}

fn no_listener_is_named() -> Result<()> {
    let rig = Rig::new()?;
    rig.attach("7001")?;
    let (_process, lines) = follow(&rig)?;
    rig.expect(NAME, Moved::no_listener(1), || refused(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    expect_line(&lines, &["warn", "listener", &A1.to_string(), &gateway()])?;
    Ok(())
}

fn ipv6_is_named() -> Result<()> {
    let rig = Rig::new()?;
    rig.attach("7001:::1:7001")?;
    let (_process, lines) = follow(&rig)?;
    rig.expect(NAME, Moved::no_listener(1), || refused(&rig.net.a1, at6(GATEWAY_A6, 7001)))?;
    expect_line(&lines, &["warn", "listener", &A1_6.to_string(), &at6(GATEWAY_A6, 7001).to_string()])?;
    Ok(())
}

/// The wall clock, as `events` writes it.
fn wall_clock() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

/// Events are read later than they happen, and say when they did.
fn times() -> Result<()> {
    let rig = Rig::new()?;
    rig.attach("7001")?;
    let attempt = || rig.expect(NAME, Moved::no_listener(1), || refused(&rig.net.a1, at(GATEWAY_A, 7001)));
    let before = wall_clock();
    attempt()?;
    let after = wall_clock();
    let later = Instant::now() + Duration::from_millis(1100);
    until("some time has passed", patience(10), || Ok((Instant::now() > later).then_some(())))?;
    let gathered = rig.cli().ok(&["events", "--output", "json"])?;
    ensure!(gathered.lines().count() == 1, "gathered are {gathered}");
    expect_json(gathered.trim_end(), (&before, &after))?;
    // A processor writes one line per second.
    let (process, lines) = follow_as(&rig, "json")?;
    let line = until("an event comes", patience(10), || {
        attempt()?;
        Ok(lines.try_iter().next())
    })?;
    expect_json(&line, (&after, &wall_clock()))?;
    drop(process);
    let text = until("an event is there", patience(10), || {
        attempt()?;
        let text = rig.cli().ok(&["events"])?;
        Ok((!text.is_empty()).then_some(text))
    })?;
    let (time, rest) = text.split_once(' ').context("no time")?;
    ensure!(
        *time > *after && rest.starts_with("WARN no-listener ") && rest.contains(&format!("[{NAME}]")),
        "{text}"
    );
    Ok(())
}

/// One that happened in this span of time, whose texts have an order.
fn expect_json(line: &str, (first, last): (&str, &str)) -> Result<()> {
    let event: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
    let time = event["time"].as_str().unwrap_or_default();
    ensure!((first..=last).contains(&time), "the time is {time}, not in {first} to {last}");
    ensure!(event["level"] == "warn" && event["attachment"] == NAME, "it is {event}");
    ensure!(event["destination"] == gateway(), "it is {event}");
    let from = event["source"].as_str().unwrap_or_default();
    ensure!(from.starts_with(&format!("{A1}:")), "it is {event}");
    let message = format!("no-listener {from} -> {}:", gateway());
    ensure!(event["message"].as_str().is_some_and(|text| text.starts_with(&message)), "it is {event}");
    Ok(())
}

/// A processor writes one line per second. `events` without `--follow` prints what has gathered and ends.
fn flood_is_limited() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    rig.attach_with("7001", &["--allow", "172.30.1.11/32"])?;
    let online = sysconf(SysconfVar::_NPROCESSORS_ONLN)?.context("the number of processors is unknown")?;
    let cpus = usize::try_from(online)?;
    // Each may come by another processor.
    let attempts = scaled(100).max(50).max(8 * cpus);
    let seconds = rig.expect(NAME, Moved::denied(attempts), || {
        let start = Instant::now();
        (0..attempts).try_for_each(|_| refused(&rig.net.a2, at(GATEWAY_A, 7001)))?;
        Ok(usize::try_from(start.elapsed().as_secs())?)
    })?;
    let printed = rig.cli().ok(&["events"])?;
    let lines = printed.lines().filter(|line| line.contains(&A2.to_string())).count();
    let limit = cpus * (seconds + 2);
    ensure!(
        (1..=limit).contains(&lines) && lines < attempts,
        "{attempts} denied connections in {seconds} s gave {lines} lines, at most {limit} were expected"
    );
    Ok(())
}

fn accepted_at_debug() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    let quiet = rig.cli().ok(&["events"])?;
    ensure!(!quiet.contains(&A1.to_string()), "the default level prints steered connections: {quiet}");
    rig.cli().ok(&["detach", NAME])?;
    rig.attach_with("7001", &["--event-level", "debug"])?;
    let (_process, lines) = follow(&rig)?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    expect_line(&lines, &["steered", &A1.to_string(), &gateway()])?;
    Ok(())
}
