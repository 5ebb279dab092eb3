//! `docker::container::*`: a container that is restarted has a new network namespace, and what was attached in the old
//! one is shown, healed and removed.
//!
//! Invariants: after each restart a connection is refused until something attached again; who heals is a verb, or
//! `--foreground` by itself.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::Test;
use crate::harness::containers::{ATTACH, NAME, Stage};
use crate::harness::foreground::Foreground;
use crate::harness::proc::Guarded;
use crate::harness::rig::{Moved, expect_moved};
use crate::harness::topology::at;
use crate::harness::wait::{patience, until};

pub(super) const TESTS: &[Test] = &[
    Test::on_host("docker::container::restart_is_shown_and_attach_heals_it", || Stage::run(healed_by_hand)),
    Test::on_host("docker::container::what_a_stopped_container_left_is_detached", || {
        Stage::run(detached_when_gone)
    }),
    Test::on_host("docker::container::what_is_not_attached_again_stays_shown", || Stage::run(stays_shown)),
    Test::on_host("docker::container::foreground_follows_restarts", || Stage::run(followed)),
    Test::on_host("docker::container::foreground_follows_to_another_network", || Stage::run(networks)),
    Test::on_host("docker::container::foreground_outlives_docker_itself", || Stage::run(docker_restarts)),
    Test::on_host("docker::container::killed_attach_leaves_all_or_nothing", || Stage::run(killed)),
];

/// The state a restart leaves behind, with the way out.
fn waits(stage: &Stage) -> Result<()> {
    let attachment = stage.only("waiting-for-bridge")?;
    let detail = attachment.raw["detail"].as_str().unwrap_or_default();
    for needle in ["container web was stopped or restarted", "attach again", "--container web --foreground"] {
        ensure!(detail.contains(needle), "the detail does not say {needle}: {detail}");
    }
    attachment.expect_finding("container-gone")
}

fn healed_by_hand(stage: &mut Stage) -> Result<()> {
    let cli = stage.engine.cli();
    cli.ok(&ATTACH)?;
    stage.served()?;
    for _ in 0..2 {
        stage.restart("web")?;
        waits(stage)?;
        stage.refuses("peer")?;
        // Another verb that takes the lock does not take it for garbage.
        cli.ok(&["attach", "redis", "--network", "app"])?;
        cli.ok(&["detach", "redis"])?;
        waits(stage)?;
        let planned = cli.ok(&[&ATTACH[..], &["--dry-run"]].concat())?;
        ensure!(planned.contains(&format!("remove {NAME} of an earlier run")), "the plan is {planned}");
        cli.ok(&ATTACH)?;
        stage.only("ready")?;
        stage.served()?;
    }
    cli.ok(&["detach", NAME])?;
    stage.refuses("peer")?;
    stage.nothing_left()
}

fn detached_when_gone(stage: &mut Stage) -> Result<()> {
    let cli = stage.engine.cli();
    for arguments in [["detach", NAME], ["detach", "--all"]] {
        cli.ok(&ATTACH)?;
        cli.ok(&["attach", "second=7002", "--container", "web"])?;
        stage.engine.docker(&["stop", "--time", "0", "web"])?;
        cli.ok(&["detach", "second"])?;
        waits(stage)?;
        cli.ok(&arguments)?;
        stage.nothing_left()?;
        stage.restart("web")?;
    }
    // Made anew: the same name, another container.
    cli.ok(&ATTACH)?;
    stage.engine.docker(&["rm", "--force", "web"])?;
    waits(stage)?;
    stage.httpd("web", &["--network", "app"])?;
    cli.ok(&ATTACH)?;
    stage.served()?;
    cli.ok(&["detach", "--all"])?;
    stage.nothing_left()
}

/// Also when a new namespace, of this container or of another one, is given the inode of the old one, as is usual.
fn stays_shown(stage: &mut Stage) -> Result<()> {
    const SECOND: &str = "web.app-second-7002";
    const OTHER: &str = "other.app-tcp-7001";
    let cli = stage.engine.cli();
    let states = || -> Result<Vec<(String, String)>> {
        Ok(cli.status()?.into_iter().map(|one| (one.name, one.state)).collect())
    };
    let expect = |expected: &[(&str, &str)]| -> Result<()> {
        let found = states()?;
        let same =
            found.iter().map(|(name, state)| (name.as_str(), state.as_str())).eq(expected.iter().copied());
        ensure!(same, "status shows {found:?} instead of {expected:?}");
        Ok(())
    };
    cli.ok(&["attach", "7001", "second=7002", "--container", "web"])?;
    stage.engine.docker(&["stop", "--time", "0", "web"])?;
    stage.httpd("other", &["--network", "app"])?;
    cli.ok(&["attach", "7001", "--container", "other"])?;
    expect(&[(OTHER, "ready"), (SECOND, "waiting-for-bridge"), (NAME, "waiting-for-bridge")])?;
    stage.restart("web")?;
    cli.ok(&ATTACH)?;
    expect(&[(OTHER, "ready"), (SECOND, "waiting-for-bridge"), (NAME, "ready")])?;
    stage.served()?;
    cli.ok(&["attach", "second=7002", "--container", "web"])?;
    expect(&[(OTHER, "ready"), (SECOND, "waiting-for-listener"), (NAME, "ready")])?;
    for container in ["web", "other"] {
        stage.engine.docker(&["stop", "--time", "0", container])?;
    }
    cli.ok(&["detach", "second"])?;
    expect(&[(OTHER, "waiting-for-bridge"), (NAME, "waiting-for-bridge")])?;
    cli.ok(&["detach", "7001"])?;
    stage.nothing_left()
}

/// Waits until the attachment is ready again, and proves it.
fn heals(stage: &Stage, relay: &Foreground) -> Result<()> {
    let ready = || Ok(stage.only("ready").ok().map(drop));
    until("the attachment is ready again", patience(20), ready)
        .with_context(|| format!("the process said: {}", relay.said()))?;
    stage.served()
}

fn followed(stage: &mut Stage) -> Result<()> {
    let cli = stage.engine.cli();
    let mut process = Foreground::start(&cli, &ATTACH[1..])?;
    ensure!(process.report()["attachments"][0]["name"] == NAME, "the report is {}", process.report());
    stage.served()?;
    for _ in 0..2 {
        stage.restart("web")?;
        heals(stage, &process)?;
    }
    stage.engine.docker(&["stop", "--time", "0", "web"])?;
    process.says(&["web", "not running"])?;
    waits(stage)?;
    stage.restart("web")?;
    heals(stage, &process)?;
    let again =
        process.said().lines().filter(|line| line.contains(&format!("attached {NAME} again"))).count();
    ensure!(again == 3, "it says {again} times that it attached again: {}", process.said());
    process.signal(Signal::SIGTERM);
    let status = process.end()?;
    ensure!(status.code() == Some(0), "it ended with {status}");
    // What it attached stays, as with any attach.
    stage.served()?;
    cli.ok(&["detach", "web"])?;
    stage.nothing_left()
}

/// A container that joins a network is served there, too, by the same process.
fn networks(stage: &mut Stage) -> Result<()> {
    const FAR: &str = "web.other-tcp-7001";
    let cli = stage.engine.cli();
    stage.engine.docker(&["network", "create", "other"])?;
    stage.engine.container("far", &["--network", "other"])?;
    let mut process = Foreground::start(&cli, &ATTACH[1..])?;
    stage.served()?;
    // It comes back on another interface, with everything else as it was.
    stage.engine.docker(&["network", "disconnect", "app", "web"])?;
    process.says(&["web", "address on no network"])?;
    stage.engine.docker(&["network", "connect", "app", "web"])?;
    heals(stage, &process)?;
    stage.engine.docker(&["network", "connect", "other", "web"])?;
    process.says(&["attached", FAR, "again"])?;
    let to = at(stage.engine.address("web", "other")?, 7001);
    expect_moved(&cli, FAR, Moved::accepted(1), || stage.gets_at("far", to))?;
    process.signal(Signal::SIGTERM);
    ensure!(process.end()?.code() == Some(0), "it did not end well: {}", process.said());
    cli.ok(&["detach", "--all"])?;
    stage.nothing_left()
}

fn docker_restarts(stage: &mut Stage) -> Result<()> {
    let mut process = Foreground::start(&stage.engine.cli(), &ATTACH[1..])?;
    stage.engine.stop_server()?;
    process.says(&["failed to", "Docker"])?;
    stage.engine.start_server_again()?;
    for container in ["web", "peer"] {
        stage.engine.docker(&["start", container])?;
    }
    stage.listens("web")?;
    heals(stage, &process)?;
    process.signal(Signal::SIGINT);
    ensure!(process.end()?.code() == Some(0), "it did not end well: {}", process.said());
    stage.engine.cli().ok(&["detach", "--all"])?;
    stage.nothing_left()
}

fn killed(stage: &mut Stage) -> Result<()> {
    let cli = stage.engine.cli();
    let start = std::time::Instant::now();
    cli.ok(&ATTACH)?;
    let whole = start.elapsed();
    cli.ok(&["detach", "web"])?;
    let (mut died, steps) = (0, 16);
    for step in 0..steps {
        let mut command = cli.command(&ATTACH)?;
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = Guarded::new(stage.engine.host.spawn(&mut command)?);
        // The delay is what is being tested, not a wait for something.
        std::thread::sleep(whole * (step * 7 % steps) / steps + Duration::from_millis(1));
        died += u32::from(process.stop(Signal::SIGKILL)?.code().is_none());
        match cli.status()?.len() {
            0 => stage.refuses("peer")?,
            _ => stage.served()?,
        }
        if step % 2 == 0 {
            cli.ok(&ATTACH)?;
            stage.served()?;
        }
        cli.ok(&["detach", "--all"])?;
        stage.nothing_left().with_context(|| format!("after step {step}"))?;
    }
    ensure!(died > steps / 4, "only {died} of {steps} processes died in the middle");
    Ok(())
}
