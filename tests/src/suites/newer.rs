//! `docker::newer::*`: a newer release of Docker than the installed one, and what its users set.
//!
//! Invariants: the engine is the one that `cargo xtask setup` unpacked; what also holds with the installed one is the
//! same code, and runs on one engine, which is emptied in between.

use anyhow::{Context, Result, ensure};

use super::{Test, docker, engines, host_gateway, placeholders};
use crate::harness::cli::expect_refusal;
use crate::harness::docker::Engine;
use crate::harness::redis::{Redis, ping};
use crate::harness::release::Release;
use crate::harness::rig::{Moved, expect_moved};
use crate::harness::topology::{at6, reaches};

pub(super) const TESTS: &[Test] = &[
    Test::on_host("docker::newer::serves_as_the_installed_one", essentials),
    Test::on_host("docker::newer::holds_ports_without_its_proxy", || placeholders::dockerd(Release::Newer)),
    Test::on_host("docker::newer::serves_without_dockers_firewall", || {
        on_newer(&["--iptables=false", "--ip6tables=false"], without_firewall)
    }),
    Test::on_host("docker::newer::serves_while_dockerd_is_away", || {
        on_newer(&["--live-restore"], live_restore)
    }),
    Test::on_host("docker::newer::default_network_with_ipv6_serves_both_families", || {
        on_newer(&["--ipv6", "--fixed-cidr-v6", "fd00:30:e::/64"], ipv6_by_default)
    }),
];

/// What holds on an engine that has been prepared, and what that is called.
pub(super) type OnEngine = (&'static str, fn(&Engine) -> Result<()>);

const DEFAULT: &str = "bridge-redis-6379";

fn on_newer(options: &'static [&'static str], body: fn(&mut Engine) -> Result<()>) -> Result<()> {
    let mut engine = Engine::start_release(Release::Newer, options)?;
    let outcome = docker::prepare(&engine).and_then(|()| body(&mut engine));
    engine.noted(outcome)
}

fn essentials() -> Result<()> {
    let engine = Engine::start_release(Release::Newer, &[])?;
    let outcome = each(&engine, docker::prepare, docker::ESSENTIAL)
        .and_then(|()| each(&engine, host_gateway::prepare, host_gateway::ESSENTIAL))
        .and_then(|()| each(&engine, |_| Ok(()), &[("isolated", isolated)]))
        .and_then(|()| each(&engine, |_| Ok(()), engines::ESSENTIAL));
    engine.noted(outcome)
}

/// A network whose containers shall reach nothing of the host. Docker knows that kind since 28; for one before that it
/// is a network like others.
fn isolated(engine: &Engine) -> Result<()> {
    const MODE: &str = "com.docker.network.bridge.gateway_mode_ipv4=isolated";
    let _redis = Redis::open(&engine.host)?;
    engine.docker(&["network", "create", "--internal", "--opt", MODE, "alone"])?;
    let attach = ["attach", "redis", "--network", "alone"];
    if engine.version()? < 28 {
        return engine.cli().ok(&attach).map(drop);
    }
    let output = engine.cli().run(&attach)?;
    expect_refusal(&output, 1, &["alone", MODE, "choose another network"])?;
    ensure!(!output.stderr.contains("ip address add"), "it undoes what the owner wants: {}", output.stderr);
    engine.host.nothing_pinned()
}

/// Containers that a body adds are removed after it; what was prepared, at the end.
fn each(engine: &Engine, prepare: fn(&Engine) -> Result<()>, bodies: &[OnEngine]) -> Result<()> {
    prepare(engine)?;
    let prepared = engine.containers()?;
    for (what, body) in bodies {
        body(engine).with_context(|| *what)?;
        engine.cli().ok(&["detach", "--all"])?;
        let added = engine.containers()?.into_iter().filter(|container| !prepared.contains(container));
        engine.remove(&added.collect::<Vec<_>>())?;
    }
    engine.remove(&engine.containers()?)?;
    engine.docker(&["network", "prune", "--force"]).map(drop)
}

/// `c1` is served on the default network, and the counters say so.
fn served(engine: &Engine) -> Result<()> {
    expect_moved(&engine.cli(), DEFAULT, Moved::accepted(1), || docker::pongs(engine, "c1", "bridge"))
}

fn ready(engine: &Engine) -> Result<()> {
    let attachment = engine.cli().attachment(DEFAULT)?;
    ensure!(attachment.state == "ready" && attachment.findings.is_empty(), "{}", attachment.raw);
    Ok(())
}

fn without_firewall(engine: &mut Engine) -> Result<()> {
    let _redis = Redis::open(&engine.host)?;
    engine.cli().ok(&["attach", "redis"])?;
    ready(engine)?;
    served(engine)
}

/// Containers, bridges and what is attached to them outlive the daemon.
fn live_restore(engine: &mut Engine) -> Result<()> {
    let _redis = Redis::open(&engine.host)?;
    let (client, gateway) = (engine.netns("c1")?, docker::endpoint(engine, "bridge")?);
    let cli = |engine: &Engine| engine.cli().attachment(DEFAULT);
    engine.cli().ok(&["attach", "redis", "--allow", "c1"])?;
    served(engine)?;
    engine.stop_server()?;
    let away = cli(engine)?;
    ensure!(away.state == "ready", "while dockerd is away: {}", away.raw);
    expect_moved(&engine.cli(), DEFAULT, Moved::accepted(1), || ping(&client, gateway))?;
    engine.start_server_again()?;
    ready(engine)?;
    served(engine)
}

fn ipv6_by_default(engine: &mut Engine) -> Result<()> {
    let _redis = Redis::start(&engine.host, 6379, &["--protected-mode", "no", "--bind", "127.0.0.1", "::1"])?;
    let (client, gateway) = (engine.netns("c1")?, at6(engine.gateway6("bridge")?, 6380));
    // A new address takes a moment before it can be used.
    reaches(&client, gateway)?;
    engine.cli().ok(&["attach", "redis", "six=6380:[::1]:6379"])?;
    served(engine)?;
    let six = "bridge-six-6380";
    expect_moved(&engine.cli(), six, Moved::accepted(1), || ping(&client, gateway))
}
