//! `netns::*`: a container reaches a loopback-only service through its gateway.
//!
//! Invariant: every trial shows the path by exact counters and by the addresses the service saw.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};

use super::Test;
use crate::harness::cli::binary;
use crate::harness::client::{answers, refused};
use crate::harness::proc::running_in;
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::{Peer, Service};
use crate::harness::topology::{A1, A2, GATEWAY_A, at, local};

pub(super) const TESTS: &[Test] = &[
    Test::new("netns::existing_listener_is_reached", existing_listener).in_kernels(),
    Test::new("netns::nothing_listens_on_the_gateway_and_nothing_keeps_running", nothing_is_left_running),
    Test::new("netns::later_listener_heals_without_userspace", later_listener).in_kernels(),
    Test::new("netns::target_port_differs_from_port", port_mapping).in_kernels(),
    Test::new("netns::two_containers_and_two_attachments", two_by_two),
    Test::new("netns::other_loopback_address_is_not_served", other_loopback_address).in_kernels(),
];

const NAME: &str = "br-a-tcp-7001";

fn existing_listener() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    refused(&rig.net.a1, at(GATEWAY_A, 7001))?;
    rig.attach("7001")?;
    let attachment = rig.expect_state(NAME, "ready")?;
    let gateway = GATEWAY_A.to_string();
    ensure!(attachment.gateways.contains(&gateway), "{gateway} is not among {:?}", attachment.gateways);
    let remote = rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    ensure!(remote.ip() == A1, "the client's own address is {remote}");
    let expected = [Peer { remote, local: at(GATEWAY_A, 7001) }];
    ensure!(service.peers() == expected, "the service saw {:?} instead of {expected:?}", service.peers());
    answers(&rig.net.host, local(7001))?;
    Ok(())
}

fn nothing_is_left_running() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    let listening = rig.net.host.listening()?;
    ensure!(listening == [local(7001)], "only the service may listen, found {listening:?}");
    let path = binary()?;
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("bridge-user");
    let running = running_in(&rig.net.host, name)?;
    ensure!(running.is_empty(), "processes {running:?} of {name} still run");
    Ok(())
}

fn later_listener() -> Result<()> {
    let rig = Rig::new()?;
    rig.attach("7001")?;
    rig.expect_state(NAME, "waiting-for-listener")?;
    rig.expect(NAME, Moved::no_listener(3), || {
        (0..3).try_for_each(|_| refused(&rig.net.a1, at(GATEWAY_A, 7001)))
    })?;
    let (service, remote) = rig.expect(NAME, Moved::accepted(1), || {
        let service = Service::start(&rig.net.host, local(7001))?;
        // No bridge-user runs between the listen() and this connection: the kernel healed by itself.
        let remote = answers(&rig.net.a1, at(GATEWAY_A, 7001))?;
        Ok((service, remote))
    })?;
    ensure!(service.peers() == [Peer { remote, local: at(GATEWAY_A, 7001) }], "saw {:?}", service.peers());
    rig.expect_state(NAME, "ready").map(drop)
}

fn port_mapping() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7002))?;
    rig.attach("web=7001:7002")?;
    let name = "br-a-web-7001";
    let attachment = rig.expect_state(name, "ready")?;
    ensure!(attachment.raw["target"] == "127.0.0.1:7002", "target is {}", attachment.raw["target"]);
    ensure!(attachment.raw["port"] == 7001, "port is {}", attachment.raw["port"]);
    let remote = rig.expect(name, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    // getsockname names the port the container dialled, not the port the service bound.
    ensure!(service.peers() == [Peer { remote, local: at(GATEWAY_A, 7001) }], "saw {:?}", service.peers());
    rig.expect(name, Moved::NOTHING, || refused(&rig.net.a1, at(GATEWAY_A, 7002)))
}

fn two_by_two() -> Result<()> {
    let rig = Rig::new()?;
    let first = Service::start(&rig.net.host, local(7001))?;
    let second = Service::start(&rig.net.host, local(7002))?;
    rig.cli().ok(&["attach", "one=7001", "two=7002", "--bridge", "br-a"])?;
    let mut seen = Vec::new();
    for (name, port) in [("br-a-one-7001", 7001), ("br-a-two-7002", 7002)] {
        let other = if port == 7001 { "br-a-two-7002" } else { "br-a-one-7001" };
        rig.expect(other, Moved::NOTHING, || {
            rig.expect(name, Moved::accepted(2), || {
                seen.push(answers(&rig.net.a1, at(GATEWAY_A, port))?.ip());
                seen.push(answers(&rig.net.a2, at(GATEWAY_A, port))?.ip());
                Ok(())
            })
        })?;
    }
    ensure!(seen == [A1, A2, A1, A2], "clients were {seen:?}");
    for service in [&first, &second] {
        let peers: Vec<_> = service.peers().iter().map(|peer| peer.remote.ip()).collect();
        ensure!(peers == [A1, A2], "a service saw {peers:?}");
    }
    Ok(())
}

fn other_loopback_address() -> Result<()> {
    let rig = Rig::new()?;
    let other = Ipv4Addr::new(127, 0, 0, 2);
    let wrong = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001:127.0.0.2:7001")?;
    rig.expect_state(NAME, "waiting-for-listener")?;
    rig.expect(NAME, Moved::no_listener(1), || refused(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    let right = Service::start(&rig.net.host, at(other, 7001))?;
    rig.expect_state(NAME, "ready")?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    ensure!(right.peers().len() == 1, "the service on {other} saw {:?}", right.peers());
    ensure!(wrong.peers().is_empty(), "the service on 127.0.0.1 saw {:?}", wrong.peers());
    Ok(())
}
