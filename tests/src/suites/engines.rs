//! `docker::networks::*` and `engine::*`: which networks a name stands for, and engines that are not this host's.
//!
//! Invariant: what is refused leaves nothing behind, and says where to go instead.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Test;
use super::newer::OnEngine;
use crate::harness::api_server::{ApiServer, say};
use crate::harness::cli::{Cli, Finding, expect_refusal, note_run};
use crate::harness::client::refused;
use crate::harness::docker::Engine;
use crate::harness::netns::Netns;
use crate::harness::proc::run_in;
use crate::harness::redis::{Redis, ping};
use crate::harness::rig::{Moved, expect_moved};
use crate::harness::topology::at;

pub(super) const TESTS: &[Test] = &[
    Test::on_host("docker::networks::globs_and_all_stand_for_those_there_are", || on_engine(globs_and_all)),
    Test::on_host("docker::networks::without_a_gateway_are_left_as_their_owner_wants", without_gateway),
    Test::on_host("docker::networks::of_a_swarm_admit_containers_by_name", || on_engine(swarm)),
    Test::on_host("engine::in_another_namespace_is_refused", another_namespace),
    Test::on_host("engine::rootless_and_desktop_are_told_by_their_setting", rootless),
    Test::on_host("engine::on_another_machine_is_refused", another_machine),
];

/// What is tried with a newer release too, on one engine.
pub(super) const ESSENTIAL: &[OnEngine] = &[("globs", globs_and_all), ("swarm", swarm)];

/// A network whose bridge gets no address of the host.
const CLOSED: [&str; 4] = ["--opt", "com.docker.network.bridge.inhibit_ipv4=true", "closed", "--internal"];

fn on_engine(body: fn(&Engine) -> Result<()>) -> Result<()> {
    let engine = Engine::start()?;
    let outcome = body(&engine);
    engine.noted(outcome)
}

fn served(engine: &Engine, network: &str, container: &str) -> Result<()> {
    let gateway = at(engine.gateway(network)?, 6379);
    expect_moved(&engine.cli(), &format!("{network}-redis-6379"), Moved::accepted(1), || {
        pongs(engine, container, gateway)
    })
}

fn pongs(engine: &Engine, container: &str, gateway: SocketAddr) -> Result<()> {
    ping(&engine.netns(container)?, gateway)
}

fn names(engine: &Engine) -> Result<Vec<String>> {
    Ok(engine.cli().status()?.into_iter().map(|attachment| attachment.name).collect())
}

fn globs_and_all(engine: &Engine) -> Result<()> {
    let _redis = Redis::open(&engine.host)?;
    let cli = engine.cli();
    for network in ["web-1", "web-2", "appnet"] {
        engine.docker(&["network", "create", network])?;
        engine.container(&format!("in-{network}"), &["--network", network])?;
    }
    let nothing = ["attach", "redis", "--network", "db-*"];
    cli.refused(&nothing, 1, &["db-*", "appnet, bridge, web-1, web-2"])?;
    engine.host.nothing_pinned().context("after a refusal")?;
    cli.ok(&["attach", "redis", "--network", "web-*", "--network", "web-1"])?;
    ensure!(names(engine)? == ["web-1-redis-6379", "web-2-redis-6379"], "{:?}", names(engine)?);
    for network in ["web-1", "web-2"] {
        served(engine, network, &format!("in-{network}"))?;
    }
    refused(&engine.netns("in-appnet")?, at(engine.gateway("appnet")?, 6379))?;
    engine.docker(&[&["network", "create"], CLOSED.as_slice()].concat())?;
    let report = cli.json(&["attach", "redis", "--network", "all"])?;
    ensure!(names(engine)?.len() == 4, "{:?}", names(engine)?);
    served(engine, "appnet", "in-appnet")?;
    let findings = Finding::list(&report)?;
    let left_out = findings.iter().find(|finding| finding.code == "network-left-out");
    let cause = &left_out.with_context(|| format!("no word of the closed network: {report}"))?.cause;
    ensure!(cause.contains("closed") && cause.contains("inhibit_ipv4"), "the cause is {cause}");
    // One that was named is refused, and takes no other down.
    let output = cli.run(&["attach", "redis", "--network", "all", "--network", "closed"])?;
    let refusal = "failed to attach to network closed";
    ensure!(output.code == Some(1) && output.stderr.contains(refusal), "it says {}", output.stderr);
    ensure!(!output.stdout.contains("network closed"), "it is told of twice: {}", output.stdout);
    ensure!(names(engine)?.len() == 4, "{:?}", names(engine)?);
    served(engine, "appnet", "in-appnet")
}

fn without_gateway() -> Result<()> {
    let engine = Engine::start()?;
    engine.docker(&[&["network", "create"], CLOSED.as_slice()].concat())?;
    let output = engine.cli().run(&["attach", "redis", "--network", "closed"])?;
    expect_refusal(&output, 1, &["closed", "inhibit_ipv4", "choose another network"])?;
    ensure!(!output.stderr.contains("ip address add"), "it undoes what the owner wants: {}", output.stderr);
    engine.host.nothing_pinned()
}

/// Containers on an overlay network reach their host over a bridge that they are not listed on.
fn swarm(engine: &Engine) -> Result<()> {
    let _redis = Redis::open(&engine.host)?;
    let cli = engine.cli();
    cli.refused(
        &["attach", "redis", "--network", "docker_gwbridge"],
        1,
        &["docker_gwbridge", "joins a swarm"],
    )?;
    engine
        .host
        .ip("link add up0 type veth peer name up1\nlink set up1 up\naddr add 198.51.100.1/24 dev up0\n\
         link set up0 up")?;
    engine.docker(&["swarm", "init", "--advertise-addr", "198.51.100.1"])?;
    engine.docker(&["network", "create", "--driver", "overlay", "--attachable", "over"])?;
    for container in ["s1", "s2"] {
        engine.container(container, &["--network", "over"])?;
    }
    cli.ok(&["attach", "redis", "--network", "docker_gwbridge", "--allow", "s1"])?;
    served(engine, "docker_gwbridge", "s1")?;
    let gateway = at(engine.gateway("docker_gwbridge")?, 6379);
    let name = "docker_gwbridge-redis-6379";
    expect_moved(&cli, name, Moved::denied(1), || refused(&engine.netns("s2")?, gateway))?;
    cli.refused(&["attach", "redis", "--network", "bridge", "--allow", "s1"], 1, &["s1", "bridge", "over"])
}

/// Both namespaces have a docker0 with the same address.
fn another_namespace() -> Result<()> {
    let engine = Engine::start()?;
    let here = Netns::new()?;
    here.ip("link add docker0 type bridge\naddr add 172.17.0.1/16 dev docker0\nlink set docker0 up")?;
    let cli = Cli::new(&here).with_docker(&engine.endpoint());
    let output = cli.run(&["attach", "redis"])?;
    let way = "nsenter --net=/proc/";
    expect_refusal(&output, 1, &["dockerd", "another network namespace", "docker0", way, "DOCKER_HOST"])?;
    here.nothing_pinned()?;
    // The way out that it names is one.
    let _redis = Redis::open(&engine.host)?;
    let (_, rest) = output.stderr.split_once("--net=").context("no namespace is named")?;
    let namespace = rest.split_whitespace().next().context("no namespace is named")?;
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={namespace}")).arg(crate::harness::cli::binary()?).args(["attach", "redis"]);
    let output = run_in(&here, command.env("DOCKER_HOST", engine.endpoint()))?;
    note_run(&["attach", "redis"], &output);
    output.success()?;
    engine.container("c1", &[])?;
    served(&engine, "bridge", "c1")
}

/// Engines whose kind cannot be had on demand: a stand-in says what they say.
fn rootless() -> Result<()> {
    let here = Netns::new()?;
    here.ip("link add docker0 type bridge\naddr add 172.17.0.1/16 dev docker0\nlink set docker0 up")?;
    let rootless = json!(["name=seccomp,profile=default", "name=rootless"]);
    for (engine, version, system, options, needles) in [
        ("Engine", "28.5.0", "Debian", rootless.clone(), ["rootless Docker", "DISABLE_HOST_LOOPBACK=false"]),
        ("Engine", "28.5.0", "Docker Desktop", json!([]), ["Docker Desktop", "host.docker.internal:PORT"]),
        (
            "Podman Engine",
            "4.3.1",
            "debian",
            rootless.clone(),
            ["rootless Podman", "slirp4netns:allow_host_loopback"],
        ),
        ("Podman Engine", "5.8.0", "fedora", rootless, ["rootless Podman", "pasta:--map-host-loopback"]),
    ] {
        let version = json!({"Version": version, "ApiVersion": "1.41", "MinAPIVersion": "1.24",
            "Components": [{"Name": engine, "Version": version}]});
        let info = json!({"OperatingSystem": system, "SecurityOptions": options});
        let server = stand_in(version, info)?;
        let cli = Cli::new(&here).with_docker(&server.endpoint());
        cli.refused(&["attach", "redis"], 1, &needles)?;
    }
    here.nothing_pinned()
}

fn stand_in(version: Value, info: Value) -> Result<ApiServer> {
    ApiServer::start(move |path, stream| {
        let answer = if path.ends_with("/version") { &version } else { &info };
        say(stream, &answer.to_string())
    })
}

/// Its networks are asked for at the engine itself, so that one is reached here at an address that is not the host's.
fn another_machine() -> Result<()> {
    let engine = Engine::start_with(&["--host", "tcp://0.0.0.0:2375", "--tls=false"])?;
    let here = Netns::new()?;
    engine.host.ip(&format!(
        "link add up0 type veth peer name eth0 netns {}\naddr add 198.51.100.1/24 dev up0\n\
                             link set up0 up",
        here.path()
    ))?;
    here.ip("addr add 198.51.100.2/24 dev eth0\nlink set eth0 up\nlink add docker0 type bridge\n\
             addr add 172.17.0.1/16 dev docker0\nlink set docker0 up")?;
    let cli = Cli::new(&here).with_docker("tcp://198.51.100.1:2375");
    cli.refused(
        &["attach", "redis"],
        1,
        &["198.51.100.1", "no address of this network namespace", "on that machine"],
    )?;
    here.nothing_pinned()
}
