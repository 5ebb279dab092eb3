//! `daemon::*` beside a real Docker engine, whose networks, containers and server come and go.
//!
//! Invariant: every connection is proved by the counters, and Redis names the container's own address.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::Test;
use super::docker::endpoint;
use crate::harness::client::refused;
use crate::harness::daemon::{Daemon, until_gone, until_ready};
use crate::harness::docker::Engine;
use crate::harness::redis::{Redis, Session, ping};
use crate::harness::rig::{Moved, expect_moved};
use crate::harness::wait::{patience, until};

pub(super) const TESTS: &[Test] = &[
    Test::on_host("daemon::follows_networks_that_are_made_again_and_new_ones", || on_engine(networks)),
    Test::on_host("daemon::follows_allowed_containers_through_restarts", || on_engine(allowed)),
    Test::on_host("daemon::waits_for_an_engine_and_outlives_it", || on_engine(engine_comes_and_goes)),
    Test::on_host("daemon::labels_get_what_the_file_allows", || on_engine(labels)),
];

const DEFAULT: &str = "bridge-redis-6379";

fn on_engine(body: fn(&mut Engine) -> Result<()>) -> Result<()> {
    let mut engine = Engine::start()?;
    let outcome = body(&mut engine);
    engine.noted(outcome)
}

/// A file that attaches Redis to networks of this engine.
fn config(engine: &Engine, networks: &str, more: &str) -> String {
    format!(
        "[docker]\nhost = \"{}\"\n[[attach]]\nservice = \"redis\"\nnetworks = [{networks}]\n{more}\n",
        engine.endpoint()
    )
}

/// A container is served on its network, by steering.
fn pongs(engine: &Engine, container: &str, network: &str) -> Result<()> {
    let name = format!("{network}-redis-6379");
    let served = || ping(&engine.netns(container)?, endpoint(engine, network)?);
    expect_moved(&engine.cli(), &name, Moved::accepted(1), served)
        .with_context(|| format!("{container} on {network}"))
}

/// Waits until the attachment to a network is ready at the network's present gateway.
fn until_attached(engine: &Engine, network: &str) -> Result<()> {
    let (name, gateway) = (format!("{network}-redis-6379"), engine.gateway(network)?.to_string());
    let bridge = engine.bridge(network)?;
    until(&format!("{name} is ready at {gateway} on {bridge}"), patience(15), || {
        let all = engine.cli().status()?;
        let found = all.iter().find(|one| one.name == name);
        let is_ready = found.is_some_and(|one| {
            one.state == "ready" && one.gateways.contains(&gateway) && one.raw["bridge"] == *bridge
        });
        Ok(is_ready.then_some(()))
    })
}

fn networks(engine: &mut Engine) -> Result<()> {
    let _redis = Redis::open(&engine.host)?;
    let cli = engine.cli();
    engine.container("c1", &[])?;
    let _daemon = Daemon::start(&cli, &config(engine, "\"bridge\", \"app\", \"web-*\"", ""))?;
    until_ready(&cli, DEFAULT)?;
    let mut open = Session::open(&engine.netns("c1")?, endpoint(engine, "bridge")?)?;
    for subnet in ["172.31.1.0/24", "172.31.2.0/24", "172.31.2.0/24"] {
        for network in ["app", "web-1"] {
            let options = if network == "app" { &["--subnet", subnet][..] } else { &[] };
            engine.docker(&[&["network", "create", network], options].concat())?;
            engine.container(&format!("in-{network}"), &["--network", network])?;
            until_attached(engine, network)?;
            pongs(engine, &format!("in-{network}"), network)?;
        }
        for network in ["app", "web-1"] {
            engine.docker(&["rm", "--force", &format!("in-{network}")])?;
            engine.docker(&["network", "rm", network])?;
        }
        until_gone(&cli, "web-1-redis-6379")?;
        let app = cli.attachment("app-redis-6379")?;
        ensure!(app.state == "waiting-for-bridge", "the named network's is {}", app.state);
    }
    let pong = open.command("PING")?;
    ensure!(pong == "+PONG", "the connection that was open all the time hears {pong}");
    pongs(engine, "c1", "bridge")
}

/// Containers that are restarted in another order get each other's address, and stay who they are.
fn allowed(engine: &mut Engine) -> Result<()> {
    let _redis = Redis::open(&engine.host)?;
    let cli = engine.cli();
    engine.container("friend", &[])?;
    engine.container("stranger", &[])?;
    let gateway = endpoint(engine, "bridge")?;
    let more = "allow = [\"friend\", \"later\"]";
    let _daemon = Daemon::start(&cli, &config(engine, "\"bridge\"", more))?;
    pongs(engine, "friend", "bridge")?;
    let waits = until_waits(engine)?;
    ensure!(waits.contains("later"), "it tells {waits}");
    let address = engine.address("friend", "bridge")?;
    engine.docker(&["stop", "--time", "0", "friend", "stranger"])?;
    engine.docker(&["start", "stranger"])?;
    engine.docker(&["start", "friend"])?;
    ensure!(engine.address("stranger", "bridge")? == address, "the addresses were not swapped");
    refused(&engine.netns("stranger")?, gateway)?;
    let listed = || -> Result<Option<()>> {
        let list = cli.attachment(DEFAULT)?.raw["allowed_containers"].to_string();
        Ok(list.contains(&engine.address("friend", "bridge")?.to_string()).then_some(()))
    };
    until("the list has the friend's new run", patience(15), listed)?;
    pongs(engine, "friend", "bridge")?;
    refused(&engine.netns("stranger")?, gateway)?;
    engine.container("later", &[])?;
    until("the list has who came later", patience(15), || {
        Ok(cli.attachment(DEFAULT)?.allow.contains(&"later".to_owned()).then_some(()))
    })?;
    pongs(engine, "later", "bridge")
}

/// What `status` tells of a container that may connect and is not there.
fn until_waits(engine: &Engine) -> Result<String> {
    until("status tells whom it waits for", patience(10), || {
        let output = engine.cli().run(&["status"])?;
        let line = output.stderr.lines().find(|line| line.contains("may connect")).map(str::to_owned);
        Ok(line)
    })
}

fn engine_comes_and_goes(engine: &mut Engine) -> Result<()> {
    let _redis = Redis::open(&engine.host)?;
    engine.container("c1", &["--restart", "always"])?;
    let file = config(engine, "\"all\"", "");
    engine.stop_server()?;
    let daemon = Daemon::start(&engine.cli(), &file)?;
    daemon.says(&["docker.sock"])?;
    engine.start_server_again()?;
    until_attached(engine, "bridge")?;
    until("the container is back", patience(15), || Ok(engine.netns("c1").ok().map(drop)))?;
    pongs(engine, "c1", "bridge")?;
    engine.stop_server()?;
    // A link comes and goes: a reason to look, while no engine answers.
    engine.host.ip("link add extra0 type bridge\nlink del extra0\n")?;
    until_ready(&engine.cli(), DEFAULT)?;
    let daemon = daemon.restart(&engine.cli(), Signal::SIGTERM)?;
    until_ready(&engine.cli(), DEFAULT)?;
    engine.start_server_again()?;
    engine.docker(&["network", "create", "new"])?;
    engine.container("c2", &["--network", "new"])?;
    until_attached(engine, "new")?;
    pongs(engine, "c2", "new")?;
    drop(daemon);
    Ok(())
}

/// A container asks for itself alone, and gets what the file allows and no more; with its end it is over.
fn labels(engine: &mut Engine) -> Result<()> {
    let _redis = Redis::open(&engine.host)?;
    let cli = engine.cli();
    let config =
        format!("[docker]\nhost = \"{}\"\nlabels = true\nallow-labels = [\"redis\"]\n", engine.endpoint());
    let daemon = Daemon::start(&cli, &config)?;
    ensure!(cli.status()?.is_empty(), "nobody asked for anything");
    engine.container("stranger", &[])?;
    engine.container("web", &["--label", "bridge-user.attach=redis,5432"])?;
    until_ready(&cli, DEFAULT)?;
    pongs(engine, "web", "bridge")?;
    refused(&engine.netns("stranger")?, endpoint(engine, "bridge")?)?;
    daemon.says(&["container web", "5432", "allow-labels"])?;
    engine.docker(&["rm", "--force", "web"])?;
    until_gone(&cli, DEFAULT)?;
    engine.docker(&["network", "create", "--label", "bridge-user.attach=redis", "lab"])?;
    engine.container("any", &["--network", "lab"])?;
    until_attached(engine, "lab")?;
    pongs(engine, "any", "lab")?;
    // The file does not follow labels any more.
    daemon.write("")?;
    until_gone(&cli, "lab-redis-6379")
}
