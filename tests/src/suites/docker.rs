//! `docker::*`: a real Docker engine, two networks, real containers.
//!
//! Invariant: names, bridges, gateways and container addresses come from the engine itself, never
//! from assumptions about its defaults.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};

use super::Test;
use super::newer::OnEngine;
use crate::harness::client::{connect, refused};
use crate::harness::docker::Engine;
use crate::harness::go_server::{GoServer, Http};
use crate::harness::redis::{Redis, ping};
use crate::harness::rig::{Moved, expect_moved, expect_moved_tc};
use crate::harness::topology::{at, at6, local, reaches};

pub(super) const TESTS: &[Test] = &[
    Test::on_host("docker::default_network_reaches_redis", || on_engine(default_network)),
    Test::on_host("docker::other_network_is_refused_everywhere", || on_engine(other_network)),
    Test::on_host("docker::network_by_name", || on_engine(network_by_name)),
    Test::on_host("docker::several_networks_at_once", || on_engine(several_networks)),
    Test::on_host("docker::unknown_network_lists_the_known", || on_engine(unknown_network)),
    Test::on_host("docker::published_port_names_its_container", || on_engine(published_port)),
    Test::on_host("docker::allow_a_container_by_name", || on_engine(allow_container)),
    Test::on_host("docker::containers_that_swap_addresses_keep_their_names", || {
        on_engine(swapped_containers)
    }),
    Test::on_host("docker::unknown_container_is_refused", || on_engine(unknown_container)),
    Test::on_host("docker::go_server_with_an_mptcp_listener_is_steered_to", || on_engine(go_server)),
    Test::on_host("docker::removed_network_is_waited_for", || on_engine(removed_network)),
    Test::on_host("docker::network_with_ipv6_serves_both_families", || on_engine(ipv6_network)),
];

const DEFAULT: &str = "bridge-redis-6379";

/// What is tried with a newer release too, on one engine; the last takes a network away.
pub(super) const ESSENTIAL: &[OnEngine] = &[
    ("default network", default_network),
    ("network by name", network_by_name),
    ("allow by name", allow_container),
    ("swapped addresses", swapped_containers),
    ("both families", ipv6_network),
    ("removed network", removed_network),
];

/// Starts an engine that is prepared.
fn on_engine(body: fn(&Engine) -> Result<()>) -> Result<()> {
    let engine = Engine::start()?;
    let outcome = prepare(&engine).and_then(|()| body(&engine));
    engine.noted(outcome)
}

/// Makes a container `c1` on the default network and `c2` on `appnet`.
pub(super) fn prepare(engine: &Engine) -> Result<()> {
    engine.docker(&["network", "create", "appnet"])?;
    engine.container("c1", &[])?;
    engine.container("c2", &["--network", "appnet"])
}

/// Redis behind the gateway of a network.
pub(super) fn endpoint(engine: &Engine, network: &str) -> Result<SocketAddr> {
    Ok(at(engine.gateway(network)?, 6379))
}

/// `container` gets a PONG by its own busybox, and Redis names its address.
pub(super) fn pongs(engine: &Engine, container: &str, network: &str) -> Result<()> {
    let address = engine.address(container, network)?;
    pongs_at(engine, container, endpoint(engine, network)?, &address.to_string())
}

fn pongs_at(engine: &Engine, container: &str, gateway: SocketAddr, address: &str) -> Result<()> {
    let said = engine.nc(container, gateway, "PING\r\nCLIENT LIST\r\nQUIT\r\n")?;
    ensure!(said.starts_with("+PONG\r\n"), "{container} heard {said:?}");
    ensure!(said.contains(&format!(" addr={address}:")), "redis does not name {address}: {said}");
    Ok(())
}

fn default_network(engine: &Engine) -> Result<()> {
    let _redis = Redis::open(&engine.host)?;
    let cli = engine.cli();
    cli.ok(&["attach", "redis"])?;
    let attachment = cli.attachment(DEFAULT)?;
    ensure!(attachment.state == "ready", "state is {}", attachment.state);
    ensure!(attachment.raw["network"] == "bridge", "network is {}", attachment.raw["network"]);
    ensure!(attachment.raw["bridge"] == "docker0", "bridge is {}", attachment.raw["bridge"]);
    let gateway = engine.gateway("bridge")?.to_string();
    ensure!(
        attachment.gateways == [gateway.clone()],
        "gateways are {:?}, not {gateway}",
        attachment.gateways
    );
    expect_moved(&cli, DEFAULT, Moved::accepted(1), || pongs(engine, "c1", "bridge"))?;
    cli.ok(&["detach", "--all"])?;
    refused(&engine.netns("c1")?, endpoint(engine, "bridge")?)
}

fn other_network(engine: &Engine) -> Result<()> {
    let _redis = Redis::open(&engine.host)?;
    let cli = engine.cli();
    cli.ok(&["attach", "redis"])?;
    let stranger = engine.netns("c2")?;
    let before = cli.attachment(DEFAULT)?.counters;
    for network in ["bridge", "appnet"] {
        refused(&stranger, endpoint(engine, network)?)?;
    }
    let after = cli.attachment(DEFAULT)?.counters;
    ensure!(before.accepted == after.accepted, "accepted went from {before:?} to {after:?}");
    expect_moved(&cli, DEFAULT, Moved::accepted(1), || pongs(engine, "c1", "bridge"))
}

fn network_by_name(engine: &Engine) -> Result<()> {
    let _redis = Redis::open(&engine.host)?;
    let cli = engine.cli();
    cli.ok(&["attach", "redis", "--network", "appnet"])?;
    let name = "appnet-redis-6379";
    let bridge = engine.bridge("appnet")?;
    let attachment = cli.attachment(name)?;
    ensure!(
        attachment.raw["bridge"] == bridge.as_str(),
        "bridge is {}, not {bridge}",
        attachment.raw["bridge"]
    );
    expect_moved(&cli, name, Moved::accepted(1), || pongs(engine, "c2", "appnet"))?;
    refused(&engine.netns("c1")?, endpoint(engine, "bridge")?)
}

fn several_networks(engine: &Engine) -> Result<()> {
    let _redis = Redis::open(&engine.host)?;
    let cli = engine.cli();
    cli.ok(&["attach", "redis", "--network", "bridge", "--network", "appnet"])?;
    ensure!(cli.status()?.len() == 2, "two networks are two attachments");
    expect_moved(&cli, DEFAULT, Moved::accepted(1), || pongs(engine, "c1", "bridge"))?;
    expect_moved(&cli, "appnet-redis-6379", Moved::accepted(1), || pongs(engine, "c2", "appnet"))?;
    refused(&engine.netns("c1")?, endpoint(engine, "appnet")?)?;
    cli.ok(&["detach", "appnet-redis-6379"])?;
    expect_moved(&cli, DEFAULT, Moved::accepted(1), || pongs(engine, "c1", "bridge"))?;
    // The service name alone reaches what is left of it.
    cli.ok(&["detach", "redis"])?;
    ensure!(cli.status()?.is_empty(), "detach redis left attachments");
    Ok(())
}

fn unknown_network(engine: &Engine) -> Result<()> {
    let arguments = ["attach", "redis", "--network", "nosuchnet"];
    engine.cli().refused(&arguments, 1, &["nosuchnet", "appnet", "bridge"])?;
    engine.host.nothing_pinned().context("after a refusal")?;
    Ok(())
}

fn published_port(engine: &Engine) -> Result<()> {
    engine.container("web", &["--publish", "6379:80"])?;
    engine.cli().refused(&["attach", "redis"], 1, &["6379", "published", "web"])?;
    engine.host.nothing_pinned().context("after a refusal")?;
    Ok(())
}

fn allow_container(engine: &Engine) -> Result<()> {
    let _redis = Redis::open(&engine.host)?;
    engine.container("c3", &[])?;
    let cli = engine.cli();
    cli.ok(&["attach", "redis", "--allow", "c1"])?;
    let attachment = cli.attachment(DEFAULT)?;
    ensure!(attachment.allow == ["c1"], "the list is {:?}", attachment.allow);
    let address = engine.address("c1", "bridge")?.to_string();
    let shown = &attachment.raw["allowed_containers"][0];
    ensure!(shown["name"] == "c1" && shown["address"] == address.as_str(), "{shown}, not {address}");
    expect_moved(&cli, DEFAULT, Moved::accepted(1), || pongs(engine, "c1", "bridge"))?;
    expect_moved(&cli, DEFAULT, Moved::denied(2), || {
        let shut_out = engine.netns("c3")?;
        (0..2).try_for_each(|_| refused(&shut_out, endpoint(engine, "bridge")?))
    })
}

/// Both containers start again in another order, and swap addresses: nobody inherits the name.
fn swapped_containers(engine: &Engine) -> Result<()> {
    let _redis = Redis::open(&engine.host)?;
    engine.container("c3", &[])?;
    let cli = engine.cli();
    let attach = ["attach", "redis", "--allow", "c1"];
    cli.ok(&attach)?;
    expect_moved(&cli, DEFAULT, Moved::accepted(1), || pongs(engine, "c1", "bridge"))?;
    let before = [engine.address("c1", "bridge")?, engine.address("c3", "bridge")?];
    engine.docker(&["stop", "--time", "0", "c1", "c3"])?;
    engine.docker(&["start", "c3"])?;
    engine.docker(&["start", "c1"])?;
    let after = [engine.address("c3", "bridge")?, engine.address("c1", "bridge")?];
    ensure!(after == before, "they did not swap addresses: {before:?}, then {after:?}");
    let gateway = endpoint(engine, "bridge")?;
    for container in ["c3", "c1"] {
        let netns = engine.netns(container)?;
        expect_moved(&cli, DEFAULT, Moved::denied(1), || refused(&netns, gateway))?;
    }
    let attachment = cli.attachment(DEFAULT)?;
    ensure!(attachment.state == "failed", "{}", attachment.raw);
    attachment.expect_finding("named-run-ended")?;
    cli.ok(&attach)?;
    expect_moved(&cli, DEFAULT, Moved::accepted(1), || pongs(engine, "c1", "bridge"))?;
    expect_moved(&cli, DEFAULT, Moved::denied(1), || refused(&engine.netns("c3")?, gateway))
}

fn unknown_container(engine: &Engine) -> Result<()> {
    engine.cli().refused(&["attach", "redis", "--allow", "nosuchcontainer"], 1, &["nosuchcontainer"])?;
    // A container that is not on the network has no address there to admit.
    engine.cli().refused(&["attach", "redis", "--allow", "c2"], 1, &["c2", "bridge"])?;
    engine.host.nothing_pinned().context("after a refusal")?;
    Ok(())
}

/// With the engine's own NAT rules, and two networks that find the same server.
fn go_server(engine: &Engine) -> Result<()> {
    engine.host.sysctl("net/mptcp/enabled", "1")?;
    let _server = GoServer::start(&engine.host, local(7001), &[])?;
    let cli = engine.cli();
    cli.ok(&["attach", "go=7001", "--network", "bridge", "--network", "appnet"])?;
    for (network, container) in [("bridge", "c1"), ("appnet", "c2")] {
        let gateway = at(engine.gateway(network)?, 7001);
        let said = expect_moved_tc(&cli, &format!("{network}-go-7001"), Moved::accepted(1), || {
            Http::new(connect(&engine.netns(container)?, gateway)?).get("/peer")
        })?;
        let address = engine.address(container, network)?.to_string();
        ensure!(said.starts_with(&address) && said.contains(&gateway.to_string()), "the server says {said}");
    }
    Ok(())
}

fn removed_network(engine: &Engine) -> Result<()> {
    let _redis = Redis::open(&engine.host)?;
    let cli = engine.cli();
    cli.ok(&["attach", "redis", "--network", "appnet"])?;
    let name = "appnet-redis-6379";
    let (client, gateway) = (engine.netns("c2")?, endpoint(engine, "appnet")?);
    expect_moved(&cli, name, Moved::accepted(1), || ping(&client, gateway))?;
    engine.docker(&["rm", "--force", "c2"])?;
    engine.docker(&["network", "rm", "appnet"])?;
    let attachment = cli.attachment(name)?;
    ensure!(attachment.state == "waiting-for-bridge", "state is {}", attachment.state);
    let detail = attachment.raw["detail"].as_str().unwrap_or_default();
    ensure!(!detail.is_empty(), "waiting-for-bridge has no detail: {}", attachment.raw);
    attachment.expect_finding("bridge-gone")?;
    cli.ok(&["detach", name])?;
    ensure!(cli.status()?.is_empty(), "detach left the attachment of a removed network");
    Ok(())
}

/// A service on both loopback addresses, at the network's gateway of each family.
fn ipv6_network(engine: &Engine) -> Result<()> {
    const NETWORK: &str = "net6";
    const FOUR: &str = "net6-redis-6379";
    const SIX: &str = "net6-six-6380";
    let _redis = Redis::start(&engine.host, 6379, &["--protected-mode", "no", "--bind", "127.0.0.1", "::1"])?;
    engine.docker(&["network", "create", "--ipv6", "--subnet", "fd00:30:d::/64", NETWORK])?;
    for container in ["c6", "d6"] {
        engine.container(container, &["--network", NETWORK])?;
    }
    let gateway6 = engine.gateway6(NETWORK)?;
    for container in ["c6", "d6"] {
        // A new address takes a moment before it can be used.
        reaches(&engine.netns(container)?, at6(gateway6, 1))?;
    }
    let cli = engine.cli();
    let specs = ["attach", "redis", "six=6380:[::1]:6379", "--network", NETWORK];
    cli.ok(&[&specs, ["--allow", "c6"].as_slice()].concat())?;
    let (address, address6) = (engine.address("c6", NETWORK)?, engine.address6("c6", NETWORK)?);
    let four = (FOUR, endpoint(engine, NETWORK)?, address.to_string());
    let six = (SIX, at6(gateway6, 6380), format!("[{address6}]"));
    for (name, gateway, client) in [four, six] {
        let attachment = cli.attachment(name)?;
        let has_own = attachment.gateways.contains(&gateway.ip().to_string());
        let is_family = |text: &String| text.contains(':') == gateway.is_ipv6();
        ensure!(has_own && attachment.gateways.iter().all(is_family), "{name} has {:?}", attachment.gateways);
        ensure!(attachment.allow == ["c6"], "the list is {:?}", attachment.allow);
        expect_moved(&cli, name, Moved::accepted(1), || pongs_at(engine, "c6", gateway, &client))?;
        expect_moved(&cli, name, Moved::denied(1), || refused(&engine.netns("d6")?, gateway))?;
    }
    refused(&engine.netns("c1")?, endpoint(engine, NETWORK)?)?;
    // Without a list, both subnets of the network are.
    cli.ok(&specs)?;
    for (name, gateway) in [(FOUR, endpoint(engine, NETWORK)?), (SIX, at6(gateway6, 6380))] {
        expect_moved(&cli, name, Moved::accepted(1), || ping(&engine.netns("d6")?, gateway))?;
    }
    Ok(())
}
