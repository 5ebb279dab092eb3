//! `named::*`: a container that is allowed by name gets in, and nobody else: not with its address, not by forging it.
//!
//! Invariant: the two containers are on one bridge, and whoever is refused has reached the gateway before.

use std::net::{SocketAddr, SocketAddrV4};

use anyhow::{Context, Result, ensure};
use bridge_common::{maps::ConnectionKey, names::TICKETS};

use super::Test;
use crate::harness::cli::Cli;
use crate::harness::client::{answers, dial_on, ended_by_service, exchange, hold, refused, round};
use crate::harness::fake_docker::FakeDocker;
use crate::harness::foreground::Foreground;
use crate::harness::netns::Netns;
use crate::harness::pinned;
use crate::harness::rig::{Moved, Rig, expect_moved, expect_moved_tc};
use crate::harness::service::{Peer, Service};
use crate::harness::sys::{mptcp_connect, mptcp_listener};
use crate::harness::topology::{A1, A2, GATEWAY_A, at, local};

pub(super) const TESTS: &[Test] = &[
    Test::new("named::the_container_gets_in_and_its_neighbour_does_not", only_the_container).in_kernels(),
    Test::new("named::whoever_gets_its_address_is_refused", swapped_addresses).in_kernels(),
    Test::new("named::a_later_run_waits_for_another_attach", later_run).in_kernels(),
    Test::new("named::a_neighbour_that_takes_the_address_gets_nothing", forging_neighbour).in_kernels(),
    Test::with_mptcp("named::mptcp_listeners_and_clients", mptcp).in_kernels(),
    Test::new("named::handshakes_with_syn_cookies", syn_cookies),
    Test::new("named::names_and_networks_in_one_list", mixed),
    Test::new("named::ipv6_sockets_to_ipv4_addresses", ipv6_socket),
    Test::new("named::a_relay_admits_the_container_alone", relayed),
    Test::new("named::a_ticket_ends_with_its_connection", tickets_end),
];

const NAME: &str = "app-tcp-7001";

fn gateway() -> SocketAddr {
    at(GATEWAY_A, 7001)
}

/// The rig, with a1 as container `web` and a2 as container `peer` of network `app`.
struct Stage {
    rig: Rig,
    docker: FakeDocker,
}

impl Stage {
    fn new() -> Result<Self> {
        let rig = Rig::new()?;
        let mut docker = FakeDocker::start()?;
        docker.run("web", &rig.net.a1, A1)?;
        docker.run("peer", &rig.net.a2, A2)?;
        Ok(Self { rig, docker })
    }

    /// With a service that is attached for `web`.
    fn attached() -> Result<(Self, Service)> {
        let stage = Self::new()?;
        let service = Service::start(&stage.rig.net.host, local(7001))?;
        stage.attach(&["--allow", "web"])?;
        Ok((stage, service))
    }

    fn cli(&self) -> Cli<'_> {
        self.rig.cli().with_docker(&self.docker.endpoint())
    }

    fn attach(&self, options: &[&str]) -> Result<()> {
        self.cli().ok(&[&["attach", "7001", "--network", "app"], options].concat()).map(drop)
    }

    fn served(&self, netns: &Netns) -> Result<SocketAddr> {
        expect_moved(&self.cli(), NAME, Moved::accepted(1), || answers(netns, gateway()))
    }

    fn denied(&self, netns: &Netns) -> Result<()> {
        expect_moved(&self.cli(), NAME, Moved::denied(1), || refused(netns, gateway()))
    }
}

fn only_the_container() -> Result<()> {
    let (stage, service) = Stage::attached()?;
    let remote = stage.served(&stage.rig.net.a1)?;
    stage.denied(&stage.rig.net.a2)?;
    stage.served(&stage.rig.net.a1)?;
    ensure!(service.peers()[0] == Peer { remote, local: gateway() }, "the service saw {:?}", service.peers());
    let shown = stage.cli().attachment(NAME)?.raw;
    ensure!(shown["allow"] == serde_json::json!(["web"]), "{shown}");
    let expected = serde_json::json!([{"name": "web", "address": A1.to_string()}]);
    ensure!(shown["allowed_containers"] == expected, "{shown}");
    let text = stage.cli().ok(&["status"])?;
    ensure!(text.contains("web"), "status does not name the container: {text}");
    ensure!(text.contains("web (172.30.1.11)"), "status does not show the address: {text}");
    let plan = stage.cli().ok(&["attach", "7001", "--network", "app", "--allow", "web", "--dry-run"])?;
    ensure!(plan.contains("web (172.30.1.11)"), "{plan}");
    stage.served(&stage.rig.net.a1)?;
    // Without --allow the list is the default, which is wider, and that is said.
    let said = stage.cli().ok(&["attach", "7001", "--network", "app"])?;
    ensure!(said.contains("172.30.1.0/24 may connect from now on"), "{said}");
    stage.served(&stage.rig.net.a2).map(drop)
}

/// As after a restart of both in another order; each keeps its namespace here, which a restart does not.
fn swapped_addresses() -> Result<()> {
    let (stage, service) = Stage::attached()?;
    let net = &stage.rig.net;
    net.a1.ip("addr del 172.30.1.11/24 dev eth0\n")?;
    net.a2.ip("addr del 172.30.1.12/24 dev eth0\n")?;
    net.a1.ip("addr add 172.30.1.12/24 dev eth0\nroute add default via 172.30.1.1\n")?;
    net.a2.ip("addr add 172.30.1.11/24 dev eth0\nroute add default via 172.30.1.1\n")?;
    net.host.ip("neigh flush dev br-a\n")?;
    stage.denied(&net.a2)?;
    let remote = stage.served(&net.a1)?;
    ensure!(remote.ip() == A2, "the container's address is {remote}");
    ensure!(service.peers().len() == 1, "the service saw {:?}", service.peers());
    Ok(())
}

fn later_run() -> Result<()> {
    let (mut stage, service) = Stage::attached()?;
    stage.served(&stage.rig.net.a1)?;
    // The next run has another namespace, and the address of the one before.
    stage.docker.run("web", &stage.rig.net.a2, A1)?;
    stage.docker.run("peer", &stage.rig.net.a1, A2)?;
    stage.denied(&stage.rig.net.a2)?;
    stage.attach(&["--allow", "web"])?;
    stage.served(&stage.rig.net.a2)?;
    stage.denied(&stage.rig.net.a1)?;
    ensure!(service.peers().len() == 2, "the service saw {:?}", service.peers());
    Ok(())
}

/// The neighbour has the container's address, and the host believes that it is there.
fn forging_neighbour() -> Result<()> {
    let (stage, service) = Stage::attached()?;
    let net = &stage.rig.net;
    stage.served(&net.a1)?;
    net.a2.ip("link set eth0 address 02:00:00:00:00:a2\naddr add 172.30.1.11/32 dev eth0\n")?;
    net.host.ip("neigh replace 172.30.1.11 lladdr 02:00:00:00:00:a2 dev br-a nud permanent\n")?;
    net.a2.ip("route replace 172.30.1.1/32 dev eth0 src 172.30.1.11\n")?;
    stage.denied(&net.a2)?;
    ensure!(service.peers().len() == 1, "the service saw {:?}", service.peers());
    Ok(())
}

fn mptcp() -> Result<()> {
    let stage = Stage::new()?;
    let net = &stage.rig.net;
    for netns in [&net.host, &net.a1, &net.a2] {
        netns.sysctl("net/mptcp/enabled", "1")?;
    }
    let service = Service::serve(net.host.run(|| mptcp_listener(local(7001)))?)?;
    stage.attach(&["--allow", "web"])?;
    expect_moved_tc(&stage.cli(), NAME, Moved::accepted(1), || answers(&net.a1, gateway()))?;
    expect_moved_tc(&stage.cli(), NAME, Moved::accepted(1), || {
        net.a1.run(|| mptcp_connect(gateway())).map(drop)
    })?;
    expect_moved_tc(&stage.cli(), NAME, Moved::denied(2), || {
        refused(&net.a2, gateway())?;
        ensure!(net.a2.run(|| mptcp_connect(gateway())).is_err(), "the neighbour was served");
        Ok(())
    })?;
    drop(service);
    Ok(())
}

/// The ACK needs the ticket again.
fn syn_cookies() -> Result<()> {
    let (stage, service) = Stage::attached()?;
    stage.rig.net.host.sysctl("net/ipv4/tcp_syncookies", "2")?;
    let held = (0..3).map(|_| hold(&stage.rig.net.a1, gateway())).collect::<Result<Vec<_>>>()?;
    ensure!(service.peers().len() == 3, "the service saw {:?}", service.peers());
    stage.rig.net.host.sysctl("net/ipv4/tcp_syncookies", "1")?;
    stage.denied(&stage.rig.net.a2)?;
    ended_by_service(service, held)
}

fn mixed() -> Result<()> {
    let (stage, _service) = Stage::attached()?;
    stage.attach(&["--allow", "web", "--allow", "172.30.1.12"])?;
    stage.served(&stage.rig.net.a1)?;
    stage.served(&stage.rig.net.a2)?;
    stage.attach(&["--allow", "peer"])?;
    stage.denied(&stage.rig.net.a1)?;
    stage.served(&stage.rig.net.a2)?;
    // Another attachment's list admits nobody here.
    let _other = Service::start(&stage.rig.net.host, local(7002))?;
    stage.cli().ok(&["attach", "7002", "--network", "app", "--allow", "web"])?;
    let to = at(GATEWAY_A, 7002);
    expect_moved(&stage.cli(), "app-tcp-7002", Moved::accepted(1), || answers(&stage.rig.net.a1, to))?;
    expect_moved(&stage.cli(), "app-tcp-7002", Moved::denied(1), || refused(&stage.rig.net.a2, to))?;
    stage.denied(&stage.rig.net.a1)
}

/// As Java's.
fn ipv6_socket() -> Result<()> {
    let (stage, _service) = Stage::attached()?;
    let mapped = SocketAddr::new(GATEWAY_A.to_ipv6_mapped().into(), 7001);
    expect_moved(&stage.cli(), NAME, Moved::accepted(1), || answers(&stage.rig.net.a1, mapped))?;
    expect_moved(&stage.cli(), NAME, Moved::denied(1), || refused(&stage.rig.net.a2, mapped))
}

/// A relay sees only an address, and asks the container's namespace for the connection.
fn relayed() -> Result<()> {
    let stage = Stage::new()?;
    let net = &stage.rig.net;
    let _service = Service::start(&net.host, local(7001))?;
    let options = ["--network", "app", "--allow", "web", "--datapath", "splice"];
    let cli = stage.cli();
    let _relay = Foreground::start(&cli, &[&["7001"][..], &options].concat())?;
    let moved_by = |accepted, denied, attempt: &mut dyn FnMut() -> Result<()>| -> Result<()> {
        let before = cli.attachment(NAME)?.counters;
        let is_served = attempt().is_ok();
        let after = cli.attachment(NAME)?.counters;
        let found = (after.accepted - before.accepted, after.denied - before.denied);
        ensure!(is_served == (accepted == 1), "the connection was served: {is_served}");
        ensure!(found == (accepted, denied), "{found:?} were accepted and denied");
        Ok(())
    };
    let moved = |accepted, denied, from: &Netns| {
        moved_by(accepted, denied, &mut || from.run(|| round(gateway())).map(drop))
    };
    moved(1, 0, &net.a1)?;
    moved(0, 1, &net.a2)?;
    for (accepted, denied, from) in [(1, 0, &net.a1), (0, 1, &net.a2)] {
        let on_interface = || {
            let mut stream = dial_on("eth0", SocketAddrV4::new(GATEWAY_A, 7001))?;
            exchange(&mut stream, b"from a socket that is bound to an interface")
        };
        moved_by(accepted, denied, &mut || from.run(on_interface))
            .context("by a socket that is bound to an interface")?;
    }
    net.a1.ip("addr del 172.30.1.11/24 dev eth0\n")?;
    net.a2.ip("addr add 172.30.1.11/24 dev eth0\nroute replace 172.30.1.1/32 dev eth0 src 172.30.1.11\n")?;
    net.host.ip("neigh flush dev br-a\n")?;
    moved(0, 1, &net.a2)
}

/// Nothing is left that a neighbour could use: not after a connection, and not after one that was refused.
fn tickets_end() -> Result<()> {
    let (stage, service) = Stage::attached()?;
    let left = || -> Result<usize> {
        let map = pinned::lru_hash::<ConnectionKey, u64>(&stage.rig.net.host, TICKETS)?;
        Ok(map.keys().collect::<Result<Vec<_>, _>>()?.len())
    };
    for _ in 0..5 {
        stage.served(&stage.rig.net.a1)?;
    }
    ensure!(left()? == 0, "{} tickets are left of connections", left()?);
    service.stop();
    expect_moved(&stage.cli(), NAME, Moved::no_listener(1), || refused(&stage.rig.net.a1, gateway()))?;
    // To a port that is not attached, which no program of ours sees.
    refused(&stage.rig.net.a1, at(GATEWAY_A, 7009))?;
    ensure!(left()? == 0, "{} tickets are left of refused connections", left()?);
    Ok(())
}
