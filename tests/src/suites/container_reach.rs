//! `docker::container::*`: a service on a container's own 127.0.0.1 is reached by the container's peers.
//!
//! Invariant: before it is attached the same connection is refused, and while it is attached nothing is there on the
//! host: no listener, no program, no rule.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Test;
use crate::harness::client::{answers, refused};
use crate::harness::containers::{ATTACH, NAME, Stage};
use crate::harness::proc::run_in;
use crate::harness::rig::{Moved, expect_moved, expect_moved_tc};
use crate::harness::service::{Peer, Service};
use crate::harness::sys::mptcp_listener;
use crate::harness::topology::{at, local};

pub(super) const TESTS: &[Test] = &[
    Test::on_host("docker::container::sibling_reaches_the_loopback_service", || Stage::run(sibling)),
    Test::on_host("docker::container::service_sees_the_siblings_address", || Stage::run(addresses)),
    Test::on_host("docker::container::service_that_restarts_inside_is_followed_by_the_kernel", || {
        Stage::run(restart)
    }),
    Test::on_host("docker::container::mptcp_listener_is_steered_to", || Stage::run(mptcp)),
    Test::on_host("docker::container::each_network_has_an_attachment_and_ipv6_works", || {
        Stage::run(networks)
    }),
    Test::on_host("docker::container::two_containers_with_one_port_each", || Stage::run(two)),
    Test::on_host("docker::container::detach_all_takes_containers_too", || Stage::run(detach_all)),
    Test::on_host("docker::container::nothing_is_opened_on_the_host", || Stage::run(host_untouched)),
    Test::on_host("docker::container::dry_run_shows_the_namespace_and_changes_nothing", || {
        Stage::run(dry_run)
    }),
    Test::on_host("docker::container::service_inside_can_be_shown_local_clients", || Stage::run(looks_local)),
];

fn sibling(stage: &mut Stage) -> Result<()> {
    let cli = stage.engine.cli();
    stage.refuses("peer")?;
    cli.ok(&ATTACH)?;
    let attachment = stage.only("ready")?;
    let address = stage.engine.address("web", "app")?.to_string();
    let raw = &attachment.raw;
    ensure!(raw["container"] == "web" && raw["network"] == "app", "container or network: {raw}");
    ensure!(raw["bridge"] == "eth0" && attachment.gateways == [address.clone()], "not at {address}: {raw}");
    stage.served()?;
    let log = stage.engine.complaints("web")?;
    let peer = stage.engine.address("peer", "app")?.to_string();
    ensure!(log.contains(&peer), "the service saw no {peer}: {log}");
    cli.ok(&ATTACH)?;
    stage.served()?;
    // The container's name alone.
    let said = cli.ok(&["detach", "web"])?;
    ensure!(said == format!("detached {NAME}\n"), "detach said {said}");
    stage.refuses("peer")?;
    stage.nothing_left()
}

fn addresses(stage: &mut Stage) -> Result<()> {
    let (web, peer) = (stage.engine.netns("web")?, stage.engine.netns("peer")?);
    let cli = stage.engine.cli();
    cli.ok(&["attach", "7002", "--container", "web", "--network", "app"])?;
    let name = "web.app-tcp-7002";
    let to = at(stage.engine.address("web", "app")?, 7002);
    expect_moved(&cli, name, Moved::no_listener(1), || refused(&peer, to))?;
    let service = Service::start(&web, local(7002))?;
    let remote = expect_moved(&cli, name, Moved::accepted(1), || answers(&peer, to))?;
    ensure!(remote.ip() == stage.engine.address("peer", "app")?, "the client's own address is {remote}");
    ensure!(service.peers() == [Peer { remote, local: to }], "the service saw {:?}", service.peers());
    // Of all its loopback ports only the attached one.
    stage.refuses("peer")?;
    cli.ok(&["detach", name]).map(drop)
}

/// With no bridge-user in between.
fn restart(stage: &mut Stage) -> Result<()> {
    const START: &str = "echo $$ > /pid; exec /bin/httpd -f -p 127.0.0.1:7001 -h /";
    stage.engine.container("second", &["--network", "app"])?;
    let start = || -> Result<()> {
        stage.engine.docker(&["exec", "--detach", "second", "/bin/sh", "-c", START])?;
        stage.listens("second")
    };
    let cli = stage.engine.cli();
    cli.ok(&["attach", "7001", "--container", "second"])?;
    let name = "second.app-tcp-7001";
    let peer = stage.engine.netns("peer")?;
    for _ in 0..3 {
        let to = stage.port_of("second")?;
        expect_moved(&cli, name, Moved::no_listener(1), || refused(&peer, to))?;
        start()?;
        expect_moved(&cli, name, Moved::accepted(2), || {
            stage.gets("peer", "second")?;
            stage.gets("peer", "second")
        })?;
        stage.engine.docker(&["exec", "second", "/bin/sh", "-c", "read pid < /pid; kill -9 $pid"])?;
    }
    cli.ok(&["detach", "second"]).map(drop)
}

fn mptcp(stage: &mut Stage) -> Result<()> {
    let (web, peer) = (stage.engine.netns("web")?, stage.engine.netns("peer")?);
    web.sysctl("net/mptcp/enabled", "1")?;
    let service = Service::serve(web.run(|| mptcp_listener(local(7003)))?)?;
    let cli = stage.engine.cli();
    cli.ok(&["attach", "7003", "--container", "web"])?;
    let name = "web.app-tcp-7003";
    let to = at(stage.engine.address("web", "app")?, 7003);
    for _ in 0..3 {
        let remote = expect_moved_tc(&cli, name, Moved::accepted(1), || answers(&peer, to))?;
        ensure!(service.peers().last() == Some(&Peer { remote, local: to }), "it saw {:?}", service.peers());
    }
    cli.ok(&["detach", "7003"])?;
    refused(&peer, to)
}

/// The service inside sees a local client; the host's service on the same port does not.
fn looks_local(stage: &mut Stage) -> Result<()> {
    let (web, peer) = (stage.engine.netns("web")?, stage.engine.netns("peer")?);
    let (inside, outside) =
        (Service::start(&web, local(7004))?, Service::start(&stage.engine.host, local(7004))?);
    let cli = stage.engine.cli();
    cli.ok(&["attach", "7004", "--container", "web", "--identity", "loopback"])?;
    cli.ok(&["attach", "7004", "--network", "app"])?;
    let to = at(stage.engine.address("web", "app")?, 7004);
    let from = expect_moved(&cli, "web.app-tcp-7004", Moved::accepted(1), || answers(&peer, to))?;
    let local_client = Peer { remote: local(from.port()), local: local(7004) };
    ensure!(inside.peers() == [local_client], "the service inside saw {:?}", inside.peers());
    let gateway = at(stage.engine.gateway("app")?, 7004);
    let remote = expect_moved(&cli, "app-tcp-7004", Moved::accepted(1), || answers(&peer, gateway))?;
    ensure!(outside.peers() == [Peer { remote, local: gateway }], "the host's saw {:?}", outside.peers());
    cli.ok(&["detach", "7004"])?;
    refused(&peer, to)
}

fn networks(stage: &mut Stage) -> Result<()> {
    let engine = &stage.engine;
    engine.docker(&["network", "create", "--ipv6", "--subnet", "fd00:66::/64", "six"])?;
    engine.docker(&["network", "connect", "six", "web"])?;
    engine.container("six-peer", &["--network", "six"])?;
    let cli = engine.cli();
    let none = [&ATTACH[..], &["--network", "db-*"]].concat();
    cli.refused(&none, 1, &["web", "db-*", "it is on app, six"])?;
    for (networks, expected) in [
        (&["--network", "s*", "--network", "six"][..], &["web.six-tcp-7001"][..]),
        (&["--network", "all"], &[NAME, "web.six-tcp-7001"]),
        (&[], &[NAME, "web.six-tcp-7001"]),
    ] {
        cli.ok(&[&ATTACH[..], networks].concat())?;
        let names: Vec<_> = cli.status()?.into_iter().map(|attachment| attachment.name).collect();
        ensure!(names == expected, "{networks:?} attached {names:?}");
    }
    stage.served()?;
    let to = at(engine.address("web", "six")?, 7001);
    expect_moved(&cli, "web.six-tcp-7001", Moved::accepted(1), || {
        engine.nc("six-peer", to, "GET / HTTP/1.0\r\n\r\n").map(drop)
    })?;
    cli.ok(&["detach", "7001"])?;
    let service = Service::start(&engine.netns("web")?, "[::1]:7006".parse::<std::net::SocketAddr>()?)?;
    cli.ok(&["attach", "7006:[::1]:7006", "--container", "web", "--network", "six"])?;
    let attachment = cli.attachment("web.six-tcp-7006")?;
    let address = attachment.gateways.first().context("no IPv6 address")?;
    let to = format!("[{address}]:7006").parse::<std::net::SocketAddr>()?;
    let six_peer = engine.netns("six-peer")?;
    let remote = expect_moved(&cli, "web.six-tcp-7006", Moved::accepted(1), || answers(&six_peer, to))?;
    ensure!(service.peers() == [Peer { remote, local: to }], "the service saw {:?}", service.peers());
    cli.ok(&["detach", "--all"])?;
    stage.nothing_left()
}

fn two(stage: &mut Stage) -> Result<()> {
    const OTHER: &str = "other.app-tcp-7001";
    stage.httpd("other", &["--network", "app"])?;
    let cli = stage.engine.cli();
    cli.ok(&ATTACH)?;
    cli.refused(&["events"], 1, &["only inside containers", "--container (web)"])?;
    cli.ok(&["attach", "7001", "--container", "other"])?;
    for (name, container) in [(NAME, "web"), (OTHER, "other")] {
        expect_moved(&cli, name, Moved::accepted(1), || stage.gets("peer", container))?;
    }
    let counters = cli.attachment(NAME)?.counters;
    cli.ok(&["detach", OTHER])?;
    refused(&stage.engine.netns("peer")?, stage.port_of("other")?)?;
    stage.served()?;
    ensure!(cli.attachment(NAME)?.counters.accepted == counters.accepted + 1, "it counted others");
    // The port means it wherever it is.
    cli.ok(&["attach", "7001", "--container", "other"])?;
    let said = cli.ok(&["detach", "7001"])?;
    ensure!(said == format!("detached {OTHER}\ndetached {NAME}\n"), "detach said {said}");
    stage.nothing_left()
}

fn detach_all(stage: &mut Stage) -> Result<()> {
    let cli = stage.engine.cli();
    cli.ok(&ATTACH)?;
    cli.ok(&["attach", "redis", "--network", "app"])?;
    ensure!(cli.status()?.len() == 2, "status does not show both");
    let said = cli.ok(&["detach", "--all"])?;
    ensure!(said == format!("detached app-redis-6379\ndetached {NAME}\n"), "detach said {said}");
    stage.refuses("peer")?;
    stage.nothing_left()
}

fn host_untouched(stage: &mut Stage) -> Result<()> {
    let host = &stage.engine.host;
    let before = host.listening()?;
    stage.engine.cli().ok(&ATTACH)?;
    stage.served()?;
    ensure!(
        host.listening()? == before,
        "the host listens on {:?} now, {before:?} before",
        host.listening()?
    );
    host.nothing_pinned().context("on the host")?;
    for address in
        [local(7001), at(stage.engine.gateway("app")?, 7001), at(stage.engine.gateway("bridge")?, 7001)]
    {
        refused(host, address)?;
    }
    let output = run_in(host, Command::new("bpftool").args(["--json", "link", "show"]))?;
    output.success()?;
    let links: serde_json::Value = serde_json::from_str(&output.stdout)?;
    let inodes: Vec<_> =
        links.as_array().context("no list")?.iter().filter_map(|l| l["netns_ino"].as_u64()).collect();
    ensure!(!inodes.contains(&host.inode()), "a program is attached to the host's namespace: {links}");
    ensure!(
        inodes.contains(&stage.engine.netns("web")?.inode()),
        "none is attached to the container's: {links}"
    );
    stage.engine.cli().ok(&["detach", "--all"]).map(drop)
}

fn dry_run(stage: &mut Stage) -> Result<()> {
    let cli = stage.engine.cli();
    let said = cli.ok(&[&ATTACH[..], &["--dry-run"]].concat())?;
    let first = said.lines().next().unwrap_or_default();
    ensure!(first.starts_with("in the network namespace of container web (pid "), "it says {first}");
    let address = stage.engine.address("web", "app")?;
    ensure!(said.contains(&format!("{address}:7001 on eth0 to 127.0.0.1:7001")), "no rule: {said}");
    stage.nothing_left()?;
    stage.refuses("peer")
}
