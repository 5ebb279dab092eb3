//! `podman::*`: a real Podman, rootful, with netavark's networks.
//!
//! Invariant: interfaces and gateways are what the kernel has, never what Docker would have called them.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};

use super::Test;
use crate::harness::client::refused;
use crate::harness::podman::Podman;
use crate::harness::redis::{Redis, ping};
use crate::harness::release::Release;
use crate::harness::rig::{Moved, expect_moved};

pub(super) const TESTS: &[Test] = &[
    Test::on_host("podman::default_network_is_podmans", || on_podman(default_network)),
    Test::on_host("podman::network_by_name_and_container_by_name", || on_podman(by_name)),
    Test::on_host("podman::bridge_that_is_made_again_is_attached_again", || on_podman(made_again)),
    Test::on_host("podman::newer::serves_as_the_installed_one", newer),
];

/// What holds on a service with network `appnet`, and what that is called.
type OnPodman = (&'static str, fn(&Podman) -> Result<()>);

/// What is tried with a newer release too, on one service.
const ESSENTIAL: [OnPodman; 3] =
    [("default network", default_network), ("by name", by_name), ("made again", made_again)];

const DEFAULT: &str = "podman-redis-6379";
const APPNET: &str = "appnet-redis-6379";

/// A service with network `appnet`, and Redis on the host.
fn on_podman(body: fn(&Podman) -> Result<()>) -> Result<()> {
    let podman = Podman::start(Release::Installed)?;
    let _redis = Redis::open(&podman.host)?;
    podman.run(&["network", "create", "--disable-dns", "appnet"])?;
    body(&podman)
}

/// With the engine's own name server on the network's gateway, as a network has it by default.
fn newer() -> Result<()> {
    let podman = Podman::start(Release::Newer)?;
    let _redis = Redis::open(&podman.host)?;
    let version = podman.run(&["version", "--format", "{{.Server.Version}}"])?;
    ensure!(!version.starts_with("4."), "the newer release is {version}");
    podman.run(&["network", "create", "appnet"])?;
    for (what, body) in ESSENTIAL {
        body(&podman).with_context(|| what)?;
        podman.cli().ok(&["detach", "--all"])?;
        podman.run(&["rm", "--force", "--time", "0", "--all"])?;
    }
    Ok(())
}

/// Redis at the gateway that status shows for an attachment.
fn gateway(podman: &Podman, name: &str) -> Result<SocketAddr> {
    let attachment = podman.cli().attachment(name)?;
    let [gateway] = &attachment.gateways[..] else { anyhow::bail!("not one gateway: {}", attachment.raw) };
    Ok(SocketAddr::new(gateway.parse::<IpAddr>()?, 6379))
}

fn served(podman: &Podman, name: &str, container: &str) -> Result<()> {
    let (gateway, netns) = (gateway(podman, name)?, podman.netns(container)?);
    expect_moved(&podman.cli(), name, Moved::accepted(1), || ping(&netns, gateway))
}

fn default_network(podman: &Podman) -> Result<()> {
    let cli = podman.cli();
    cli.refused(&["attach", "redis"], 1, &["podman0", "first container", "start a container"])?;
    podman.container("c1", &[])?;
    podman.container("c2", &["--network", "appnet"])?;
    for network in [&[][..], &["--network", "podman"], &["--network", "bridge"]] {
        cli.ok(&[&["attach", "redis"], network].concat())?;
        let attachment = cli.attachment(DEFAULT)?;
        let raw = &attachment.raw;
        ensure!(attachment.state == "ready" && raw["bridge"] == "podman0", "{raw}");
        served(podman, DEFAULT, "c1")?;
        let at = gateway(podman, DEFAULT)?;
        expect_moved(&cli, DEFAULT, Moved::NOTHING, || refused(&podman.netns("c2")?, at))?;
        cli.ok(&["detach", DEFAULT])?;
        refused(&podman.netns("c1")?, at)?;
    }
    cli.ok(&["attach", "redis", "--network", "all"])?;
    served(podman, DEFAULT, "c1")?;
    served(podman, APPNET, "c2")
}

fn by_name(podman: &Podman) -> Result<()> {
    let cli = podman.cli();
    for container in ["c2", "c3"] {
        podman.container(container, &["--network", "appnet"])?;
    }
    cli.ok(&["attach", "redis", "--network", "appnet", "--allow", "c2"])?;
    let attachment = cli.attachment(APPNET)?;
    ensure!(attachment.allow == ["c2"], "the list is {:?}", attachment.allow);
    served(podman, APPNET, "c2")?;
    let at = gateway(podman, APPNET)?;
    expect_moved(&cli, APPNET, Moved::denied(1), || refused(&podman.netns("c3")?, at))?;
    let unknown = ["attach", "redis", "--network", "nosuchnet"];
    cli.refused(&unknown, 1, &["nosuchnet", "appnet", "podman"])?;
    cli.refused(&["attach", "redis", "--network", "podman", "--allow", "c2"], 1, &["podman"])
}

/// netavark removes a bridge with its last container and makes it again for the next: same name, same address.
fn made_again(podman: &Podman) -> Result<()> {
    let cli = podman.cli();
    let attach = ["attach", "redis", "--network", "appnet"];
    podman.container("c2", &["--network", "appnet"])?;
    cli.ok(&attach)?;
    served(podman, APPNET, "c2")?;
    let at = gateway(podman, APPNET)?;
    podman.run(&["rm", "--force", "--time", "0", "c2"])?;
    let waits = || -> Result<()> {
        let attachment = cli.attachment(APPNET)?;
        ensure!(attachment.state == "waiting-for-bridge", "{}", attachment.raw);
        attachment.expect_finding("bridge-gone")
    };
    waits().context("while the bridge is gone")?;
    podman.container("c2", &["--network", "appnet"])?;
    waits().context("when another bridge has its name")?;
    refused(&podman.netns("c2")?, at)?;
    cli.ok(&attach)?;
    ensure!(gateway(podman, APPNET)? == at, "the gateway is another one");
    served(podman, APPNET, "c2")
}
