//! `docker::host_gateway::*` and `gateway::*`: addresses of the host that containers use besides their network's own
//! gateway, with a real Docker engine, and `--gateway` on the test network.
//!
//! Invariant: an address is served to the attached network alone: whoever comes over another bridge gets a reset, and
//! the counters move for the containers of the attached network only.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};

use super::Test;
use super::newer::OnEngine;
use super::refusals::{lone_host, refuse};
use crate::harness::client::{answers, connect, refused};
use crate::harness::docker::Engine;
use crate::harness::foreground::Foreground;
use crate::harness::go_server::{GoServer, Http};
use crate::harness::redis::Redis;
use crate::harness::rig::{Moved, Rig, expect_moved, expect_moved_tc};
use crate::harness::service::Service;
use crate::harness::topology::{GATEWAY_A, GATEWAY_B, UPLINK, at, local};
use crate::harness::wait::kernel_at_least;

pub(super) const TESTS: &[Test] = &[
    Test::on_host("docker::host_gateway::is_served_on_a_users_network", || on_engine(by_name)),
    Test::on_host("docker::host_gateway::admits_whom_the_network_admits", || on_engine(allow_list)),
    Test::on_host("docker::host_gateway::reaches_an_mptcp_listener", || on_engine(mptcp)),
    Test::on_host("docker::host_gateway::is_relayed_too", || on_engine(relayed)),
    Test::on_host("docker::host_gateway::is_left_out_where_somebody_else_has_the_port", || on_engine(taken)),
    Test::new("gateway::another_address_of_the_host_is_served", another_address),
    Test::new("gateway::what_cannot_be_served_is_refused", unfit_addresses),
];

const NAME: &str = "appnet-redis-6379";
/// What published compose files write.
const EXTRA_HOST: [&str; 2] = ["--add-host", "host.docker.internal:host-gateway"];

/// What is tried with a newer release too, on one engine.
pub(super) const ESSENTIAL: &[OnEngine] =
    &[("host-gateway", by_name), ("host-gateway and an allow-list", allow_list)];

fn on_engine(body: fn(&Engine) -> Result<()>) -> Result<()> {
    let engine = Engine::start()?;
    let outcome = prepare(&engine).and_then(|()| body(&engine));
    engine.noted(outcome)
}

/// Makes `app` and `other` on network `appnet`, which both have the name, and `c1` on the default network.
pub(super) fn prepare(engine: &Engine) -> Result<()> {
    let on_appnet = [&["--network", "appnet"], EXTRA_HOST.as_slice()].concat();
    engine.docker(&["network", "create", "appnet"])?;
    engine.container("app", &on_appnet)?;
    engine.container("other", &on_appnet)?;
    engine.container("c1", &EXTRA_HOST)
}

fn at_docker0(engine: &Engine) -> Result<SocketAddr> {
    Ok(at(engine.gateway("bridge")?, 6379))
}

/// A container is served at this name or address.
fn pongs(engine: &Engine, container: &str, host: &str) -> Result<()> {
    let said = engine.nc_host(container, host, 6379, "PING\r\nQUIT\r\n")?;
    ensure!(said.starts_with("+PONG"), "{container} heard {said:?} at {host}");
    Ok(())
}

fn by_name(engine: &Engine) -> Result<()> {
    let _redis = Redis::open(&engine.host)?;
    let cli = engine.cli();
    cli.ok(&["attach", "redis", "--network", "appnet"])?;
    let attachment = cli.attachment(NAME)?;
    let expected = ["appnet", "bridge"].map(|network| engine.gateway(network).map(|one| one.to_string()));
    let [own, docker0] = expected;
    ensure!(attachment.gateways == [own?, docker0?], "the gateways are {:?}", attachment.gateways);
    ensure!(attachment.state == "ready" && attachment.findings.is_empty(), "{}", attachment.raw);
    let own = engine.gateway("appnet")?.to_string();
    for host in ["host.docker.internal", own.as_str()] {
        expect_moved(&cli, NAME, Moved::accepted(1), || pongs(engine, "app", host))?;
    }
    // The name alone admits nobody: nothing is attached on the default network.
    expect_moved(&cli, NAME, Moved::NOTHING, || refused(&engine.netns("c1")?, at_docker0(engine)?))?;
    // Each network has its own attachment at the same address.
    cli.ok(&["attach", "redis", "--network", "bridge"])?;
    expect_moved(&cli, NAME, Moved::NOTHING, || pongs(engine, "c1", "host.docker.internal"))?;
    expect_moved(&cli, "bridge-redis-6379", Moved::NOTHING, || pongs(engine, "app", "host.docker.internal"))?;
    cli.ok(&["detach", NAME])?;
    refused(&engine.netns("app")?, at_docker0(engine)?)?;
    expect_moved(&cli, "bridge-redis-6379", Moved::accepted(1), || {
        pongs(engine, "c1", "host.docker.internal")
    })
}

fn allow_list(engine: &Engine) -> Result<()> {
    let _redis = Redis::open(&engine.host)?;
    let cli = engine.cli();
    cli.ok(&["attach", "redis", "--network", "appnet", "--allow", "app"])?;
    expect_moved(&cli, NAME, Moved::accepted(1), || pongs(engine, "app", "host.docker.internal"))?;
    expect_moved(&cli, NAME, Moved::denied(1), || refused(&engine.netns("other")?, at_docker0(engine)?))?;
    // The host's own connections there are its own affair.
    expect_moved(&cli, NAME, Moved::NOTHING, || refused(&engine.host, at_docker0(engine)?))
}

fn mptcp(engine: &Engine) -> Result<()> {
    engine.host.sysctl("net/mptcp/enabled", "1")?;
    let _server = GoServer::start(&engine.host, local(7001), &[])?;
    let cli = engine.cli();
    cli.ok(&["attach", "go=7001", "--network", "appnet"])?;
    let gateway = at(engine.gateway("bridge")?, 7001);
    let said = expect_moved_tc(&cli, "appnet-go-7001", Moved::accepted(1), || {
        Http::new(connect(&engine.netns("app")?, gateway)?).get("/peer")
    })?;
    let address = engine.address("app", "appnet")?.to_string();
    ensure!(said.starts_with(&address) && said.contains(&gateway.to_string()), "the server says {said}");
    refused(&engine.netns("c1")?, gateway)
}

fn relayed(engine: &Engine) -> Result<()> {
    let _redis = Redis::open(&engine.host)?;
    let cli = engine.cli();
    let networks = ["redis", "--network", "appnet", "--network", "bridge", "--datapath", "splice"];
    let _relay = Foreground::start(&cli, &networks)?;
    for (container, name) in [("app", NAME), ("c1", "bridge-redis-6379")] {
        let accepted = || Ok::<_, anyhow::Error>(cli.attachment(name)?.counters.accepted);
        let before = accepted()?;
        pongs(engine, container, "host.docker.internal")?;
        ensure!(accepted()? == before + 1, "{name} did not count {container}");
    }
    Ok(())
}

/// What listens there stays what answers there; the network's own gateway is served all the same.
fn taken(engine: &Engine) -> Result<()> {
    let _redis = Redis::open(&engine.host)?;
    let docker0 = at_docker0(engine)?;
    let other = Service::start(&engine.host, docker0)?;
    let cli = engine.cli();
    let report = cli.ok(&["attach", "redis", "--network", "appnet"])?;
    for needle in ["note: appnet-redis-6379:", "host-gateway", &docker0.to_string()] {
        ensure!(report.contains(needle), "attach does not say {needle}: {report}");
    }
    let own = engine.gateway("appnet")?.to_string();
    ensure!(cli.attachment(NAME)?.gateways == [own.clone()], "{}", cli.attachment(NAME)?.raw);
    expect_moved(&cli, NAME, Moved::accepted(1), || pongs(engine, "app", &own))?;
    expect_moved(&cli, NAME, Moved::NOTHING, || answers(&engine.netns("app")?, docker0).map(drop))?;
    ensure!(other.peers().len() == 1, "the other service saw {:?}", other.peers());
    drop(other);
    cli.ok(&["attach", "redis", "--network", "appnet"])?;
    expect_moved(&cli, NAME, Moved::accepted(1), || pongs(engine, "app", "host.docker.internal"))
}

const ON_BR_A: &str = "br-a-tcp-7001";

fn another_address() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    let uplink = UPLINK.to_string();
    if !kernel_at_least(5, 17)? {
        let arguments = ["attach", "7001", "--bridge", "br-a", "--gateway", &uplink];
        return rig.cli().refused(&arguments, 1, &[&uplink, "5.17"]);
    }
    rig.attach_with("7001", &["--gateway", &uplink, "--gateway", &GATEWAY_B.to_string()])?;
    let attachment = rig.expect_state(ON_BR_A, "ready")?;
    ensure!(attachment.gateways.len() == 3 && attachment.findings.is_empty(), "{}", attachment.raw);
    for gateway in [GATEWAY_A, UPLINK, GATEWAY_B] {
        rig.expect(ON_BR_A, Moved::accepted(1), || answers(&rig.net.a1, at(gateway, 7001)))?;
    }
    let before = service.peers().len();
    for (stranger, gateway) in [(&rig.net.outside, UPLINK), (&rig.net.b1, GATEWAY_B), (&rig.net.b1, UPLINK)] {
        rig.expect(ON_BR_A, Moved::NOTHING, || refused(stranger, at(gateway, 7001)))?;
    }
    rig.expect(ON_BR_A, Moved::NOTHING, || refused(&rig.net.host, at(UPLINK, 7001)))?;
    ensure!(service.peers().len() == before, "the service saw a stranger: {:?}", service.peers());
    // An address that the host has no more is told of, and given up by attaching without it.
    rig.net.host.ip(&format!("addr del {UPLINK}/24 dev up0"))?;
    rig.expect_state(ON_BR_A, "ready")?.expect_finding("gateway-removed")?;
    rig.attach("7001")?;
    let left = rig.expect_state(ON_BR_A, "ready")?;
    ensure!(left.gateways == [GATEWAY_A.to_string()], "the gateways are {:?}", left.gateways);
    refused(&rig.net.a1, at(GATEWAY_B, 7001))
}

fn unfit_addresses() -> Result<()> {
    let host = lone_host()?;
    let attach = |gateway: &'static str| ["attach", "7001", "--bridge", "br-a", "--gateway", gateway];
    let there = GATEWAY_A.to_string();
    refuse(&host, &attach("192.0.2.7"), 1, &["192.0.2.7", "no address of this host", &there])?;
    refuse(&host, &attach("127.0.0.2"), 2, &["127.0.0.2", "loopback"])?;
    refuse(&host, &attach("::1"), 2, &["::1", "loopback"])?;
    host.ip("addr add 192.0.2.7/32 dev dummy0\naddr add 2001:db8::7/64 dev dummy0 nodad")?;
    if !kernel_at_least(5, 17)? {
        return refuse(&host, &attach("192.0.2.7"), 1, &["192.0.2.7", "5.17"]);
    }
    refuse(&host, &attach("2001:db8::7"), 1, &["2001:db8::7", "family"])?;
    let _owner = Service::start(&host, at(Ipv4Addr::new(192, 0, 2, 7), 7001))?;
    refuse(&host, &attach("192.0.2.7"), 1, &["7001", "already bound", "192.0.2.7"])
}
