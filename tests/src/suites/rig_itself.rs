//! `rig::*`: the test network without the binary under test.
//!
//! Invariant: what other trials expect to be refused is shown here to be reachable when a service
//! really is bound there, so their refusals mean something.

use anyhow::{Result, ensure};

use super::Test;
use crate::harness::client::{answers, refused};
use crate::harness::docker::Engine;
use crate::harness::kernel_ids::KernelIds;
use crate::harness::postgres::{self, Postgres};
use crate::harness::redis::{Redis, ping};
use crate::harness::service::{Peer, Service};
use crate::harness::topology::{
    A1_6, GATEWAY_A, GATEWAY_A6, GATEWAY_B, OUTSIDE, Topology, UPLINK, at, at6, local,
};

pub(super) const TESTS: &[Test] = &[
    Test::new("rig::everyone_reaches_a_service_bound_on_the_gateway", everyone_reaches_the_gateway)
        .in_kernels(),
    Test::new("rig::loopback_services_are_closed_to_containers", loopback_is_closed).in_kernels(),
    Test::new("rig::containers_reach_the_outside_masqueraded", containers_reach_the_outside),
    Test::new("rig::kernel_object_lists_can_be_read", kernel_lists_can_be_read),
    Test::new("rig::redis_answers_where_it_is_bound", redis_answers),
    Test::on_host("rig::postgres_answers_where_it_is_bound", postgres_answers),
    Test::on_host("rig::docker_engine_runs_containers", docker_runs),
];

/// The weak host model attack works against an ordinary listener on the gateway address.
fn everyone_reaches_the_gateway() -> Result<()> {
    let net = Topology::new()?;
    let service = Service::start(&net.host, at(GATEWAY_A, 7001))?;
    let mut expected = Vec::new();
    for netns in [&net.a1, &net.a2, &net.b1, &net.outside, &net.host] {
        let remote = answers(netns, at(GATEWAY_A, 7001))?;
        expected.push(Peer { remote, local: at(GATEWAY_A, 7001) });
    }
    ensure!(service.peers() == expected, "the service saw {:?} instead of {expected:?}", service.peers());
    let six = Service::start(&net.host, at6(GATEWAY_A6, 7001))?;
    ensure!(answers(&net.a1, at6(GATEWAY_A6, 7001))?.ip() == A1_6, "the IPv6 client has another address");
    ensure!(six.peers().len() == 1, "the IPv6 service saw {:?}", six.peers());
    let listening = net.host.listening()?;
    for address in [at(GATEWAY_A, 7001), at6(GATEWAY_A6, 7001)] {
        ensure!(listening.contains(&address), "the socket table lacks {address}: {listening:?}");
    }
    Ok(())
}

fn loopback_is_closed() -> Result<()> {
    let net = Topology::new()?;
    let service = Service::start(&net.host, local(7001))?;
    answers(&net.host, local(7001))?;
    for address in [GATEWAY_A, GATEWAY_B, UPLINK] {
        refused(&net.a1, at(address, 7001))?;
        refused(&net.outside, at(address, 7001))?;
    }
    ensure!(service.peers().len() == 1, "someone else reached the loopback service: {:?}", service.peers());
    Ok(())
}

fn containers_reach_the_outside() -> Result<()> {
    let net = Topology::new()?;
    let service = Service::start(&net.outside, at(OUTSIDE, 7001))?;
    answers(&net.a1, at(OUTSIDE, 7001))?;
    let seen: Vec<_> = service.peers().iter().map(|peer| peer.remote.ip()).collect();
    ensure!(
        seen == [std::net::IpAddr::V4(UPLINK)],
        "the outside service saw {seen:?}: masquerading does not work"
    );
    Ok(())
}

fn kernel_lists_can_be_read() -> Result<()> {
    let before = KernelIds::take()?;
    before.wait_equal()
}

fn redis_answers() -> Result<()> {
    let net = Topology::new()?;
    let redis = Redis::open(&net.host)?;
    refused(&net.a1, at(GATEWAY_A, 6379))?;
    redis.kill()?;
    let address = GATEWAY_A.to_string();
    let _redis = Redis::start(&net.host, 6379, &["--protected-mode", "no", "--bind", "127.0.0.1", &address])?;
    ping(&net.a1, at(GATEWAY_A, 6379))
}

fn postgres_answers() -> Result<()> {
    let net = Topology::new()?;
    let _postgres = Postgres::start(&net.host, 5432, "")?;
    let answer = postgres::query(&net.host, "127.0.0.1", 5432, "select 6 * 7")?;
    ensure!(answer.stdout.trim() == "42", "postgres said {answer:?}");
    let closed = postgres::query(&net.a1, &GATEWAY_A.to_string(), 5432, "select 1")?;
    ensure!(closed.stderr.contains("Connection refused"), "from a container psql said {closed:?}");
    Ok(())
}

fn docker_runs() -> Result<()> {
    let engine = Engine::start()?;
    engine.container("c1", &[])?;
    let gateway = engine.gateway("bridge")?;
    let address = gateway.to_string();
    let _redis =
        Redis::start(&engine.host, 6379, &["--protected-mode", "no", "--bind", "127.0.0.1", &address])?;
    let said = engine.nc("c1", at(gateway, 6379), "PING\r\nQUIT\r\n")?;
    ensure!(said == "+PONG\r\n+OK\r\n", "through docker0 redis said {said:?}");
    let inside = engine.netns("c1")?;
    ensure!(inside.inode() != engine.host.inode(), "the container shares the engine's namespace");
    refused(&inside, at(gateway, 6380))
}
