//! `scope::*`: only connections that arrive on the attached bridge are steered.
//!
//! Invariant: each refusal is a reset (the path is open, see `rig::*`), leaves `accepted` where it
//! was, and is followed by a connection from the right side that is served.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, bail, ensure};

use super::Test;
use crate::harness::client::{answers, refused};
use crate::harness::netns::Netns;
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::Service;
use crate::harness::topology::{A1, B1, GATEWAY_A, GATEWAY_B, OUTSIDE, UPLINK, at, local};
use crate::harness::wait::{kernel_at_least, patience};

pub(super) const TESTS: &[Test] = &[
    Test::new("scope::other_bridge_cannot_use_this_gateway", other_bridge).in_kernels(),
    Test::new("scope::other_bridge_cannot_use_its_own_gateway", other_gateway),
    Test::new("scope::outside_cannot_use_the_gateway_address", outside_gateway).in_kernels(),
    Test::new("scope::outside_cannot_use_the_uplink_address", outside_uplink),
    Test::new("scope::host_itself_is_not_steered", host_itself).in_kernels(),
    Test::new("scope::other_local_addresses_stay_closed_to_the_container", other_local_addresses),
    Test::new("scope::each_bridge_reaches_only_what_is_attached_to_it", two_bridges),
    Test::new("scope::allowing_everyone_opens_only_the_bridge", everyone_on_the_bridge),
    Test::new("scope::udp_on_the_same_port_is_untouched", udp),
    Test::new("scope::other_services_on_the_gateway_are_untouched", other_services),
    Test::new("scope::forwarded_traffic_to_the_same_port_is_untouched", forwarded).in_kernels(),
];

const NAME: &str = "br-a-tcp-7001";

/// A service on loopback, attached to br-a.
fn attached() -> Result<(Rig, Service)> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    rig.expect_state(NAME, "ready")?;
    Ok((rig, service))
}

/// `from` is refused at `to`, nobody is served, and the container still is.
fn stays_closed(from: impl Fn(&Rig) -> &Netns, to: SocketAddr) -> Result<()> {
    let (rig, service) = attached()?;
    let before = rig.cli().attachment(NAME)?.counters;
    for _ in 0..3 {
        refused(from(&rig), to)?;
    }
    let after = rig.cli().attachment(NAME)?.counters;
    ensure!(after.accepted == before.accepted, "accepted went from {before:?} to {after:?}");
    ensure!(service.peers().is_empty(), "the service saw {:?}", service.peers());
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    let seen: Vec<_> = service.peers().iter().map(|peer| peer.remote.ip()).collect();
    ensure!(seen == [A1], "the service saw {seen:?}");
    Ok(())
}

fn other_bridge() -> Result<()> {
    stays_closed(|rig| &rig.net.b1, at(GATEWAY_A, 7001))
}

fn other_gateway() -> Result<()> {
    stays_closed(|rig| &rig.net.b1, at(GATEWAY_B, 7001))
}

fn outside_gateway() -> Result<()> {
    stays_closed(|rig| &rig.net.outside, at(GATEWAY_A, 7001))
}

fn outside_uplink() -> Result<()> {
    stays_closed(|rig| &rig.net.outside, at(UPLINK, 7001))
}

fn host_itself() -> Result<()> {
    stays_closed(|rig| &rig.net.host, at(GATEWAY_A, 7001))
}

fn other_local_addresses() -> Result<()> {
    stays_closed(|rig| &rig.net.a1, at(GATEWAY_B, 7001))?;
    stays_closed(|rig| &rig.net.a1, at(UPLINK, 7001))
}

fn two_bridges() -> Result<()> {
    let rig = Rig::new()?;
    let for_a = Service::start(&rig.net.host, local(7001))?;
    let for_b = Service::start(&rig.net.host, local(7002))?;
    rig.attach("7001")?;
    // The same gateway port on the other bridge leads elsewhere.
    rig.cli().ok(&["attach", "7001:7002", "--bridge", "br-b"])?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    rig.expect("br-b-tcp-7001", Moved::accepted(1), || answers(&rig.net.b1, at(GATEWAY_B, 7001)))?;
    refused(&rig.net.a1, at(GATEWAY_B, 7001))?;
    refused(&rig.net.b1, at(GATEWAY_A, 7001))?;
    for (service, client) in [(&for_a, A1), (&for_b, B1)] {
        let seen: Vec<_> = service.peers().iter().map(|peer| peer.remote.ip()).collect();
        ensure!(seen == [client], "the service for {client} saw {seen:?}");
    }
    Ok(())
}

/// Even a list that admits every address says nothing about other interfaces.
fn everyone_on_the_bridge() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    if !kernel_at_least(5, 17)? {
        let arguments = ["attach", "7001", "--bridge", "br-a", "--allow", "0.0.0.0/0"];
        return rig.cli().refused(&arguments, 1, &["0.0.0.0/0", "172.30.1.0/24", "5.17"]);
    }
    rig.attach_with("7001", &["--allow", "0.0.0.0/0"])?;
    for stranger in [&rig.net.b1, &rig.net.outside] {
        rig.expect(NAME, Moved::NOTHING, || refused(stranger, at(GATEWAY_A, 7001)))?;
    }
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    ensure!(service.peers().len() == 1, "the service saw {:?}", service.peers());
    Ok(())
}

fn udp() -> Result<()> {
    let (rig, _service) = attached()?;
    let gateway = at(GATEWAY_A, 7001);
    let socket = rig.net.host.run(|| UdpSocket::bind(gateway))?;
    socket.set_read_timeout(Some(patience(5)))?;
    rig.expect(NAME, Moved::NOTHING, || {
        let client = rig.net.a1.run(|| UdpSocket::bind(at(A1, 0)))?;
        client.connect(gateway)?;
        client.set_read_timeout(Some(patience(5)))?;
        client.send(b"question")?;
        let mut buffer = [0; 64];
        let (length, from) = socket.recv_from(&mut buffer).context("the datagram did not arrive")?;
        ensure!(
            &buffer[..length] == b"question" && from == client.local_addr()?,
            "an odd datagram from {from}"
        );
        socket.send_to(b"answer", from)?;
        let length = client.recv(&mut buffer).context("the answer did not arrive")?;
        ensure!(&buffer[..length] == b"answer", "an odd answer");
        Ok(())
    })?;
    drop(socket);
    // Without a UDP service the port answers as closed: the TCP rule opens nothing for UDP.
    let client = rig.net.a1.run(|| UdpSocket::bind(at(A1, 0)))?;
    client.connect(gateway)?;
    client.set_read_timeout(Some(patience(5)))?;
    client.send(b"question")?;
    match client.recv(&mut [0; 64]) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        other => bail!("a datagram to a closed port was to be refused, got {other:?}"),
    }
}

fn other_services() -> Result<()> {
    let (rig, service) = attached()?;
    let bound = Service::start(&rig.net.host, at(GATEWAY_A, 7002))?;
    let wildcard = Service::start(&rig.net.host, at(Ipv4Addr::UNSPECIFIED, 7003))?;
    rig.expect(NAME, Moved::NOTHING, || {
        for client in [&rig.net.a1, &rig.net.b1, &rig.net.outside] {
            answers(client, at(GATEWAY_A, 7002))?;
            answers(client, at(GATEWAY_A, 7003))?;
        }
        answers(&rig.net.b1, at(GATEWAY_B, 7003)).map(drop)
    })?;
    ensure!(bound.peers().len() == 3, "the service on the gateway saw {:?}", bound.peers());
    ensure!(wildcard.peers().len() == 4, "the wildcard service saw {:?}", wildcard.peers());
    ensure!(service.peers().is_empty(), "the attached service saw {:?}", service.peers());
    Ok(())
}

fn forwarded() -> Result<()> {
    let (rig, service) = attached()?;
    let elsewhere = Service::start(&rig.net.outside, at(OUTSIDE, 7001))?;
    rig.expect(NAME, Moved::NOTHING, || answers(&rig.net.a1, at(OUTSIDE, 7001)))?;
    ensure!(elsewhere.peers().len() == 1, "the outside service saw {:?}", elsewhere.peers());
    ensure!(service.peers().is_empty(), "the attached service saw {:?}", service.peers());
    Ok(())
}
