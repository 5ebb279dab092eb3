//! `allow::*`: which sources on the attached bridge are admitted.
//!
//! Invariant: a denied source is refused and counted as denied; a change of the list never drops a
//! source that both lists admit.

use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};
use std::os::fd::AsRawFd;

use anyhow::{Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage};

use super::Test;
use crate::harness::client::{answers, exchange, refused, while_connecting};
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::Service;
use crate::harness::topology::{A1, A2, GATEWAY_A, GATEWAY_A6, at, at6, local};
use crate::harness::wait::{kernel_at_least, patience, scaled};

pub(super) const TESTS: &[Test] = &[
    Test::new("allow::default_is_the_subnet_of_the_bridge", default_is_the_subnet).in_kernels(),
    Test::new("allow::one_container_by_address", one_container),
    Test::new("allow::list_of_several_networks", several_networks),
    Test::new("allow::source_outside_the_subnet", source_outside_the_subnet),
    Test::new("allow::ipv6_source", ipv6_source).in_kernels(),
    Test::new("allow::denied_also_where_a_wildcard_service_appears", denied_beats_wildcard),
    Test::new("allow::change_is_atomic_for_who_stays_admitted", change_is_atomic).in_kernels(),
    Test::new("allow::change_shuts_out_who_is_no_longer_admitted", change_shuts_out),
];

const NAME: &str = "br-a-tcp-7001";
const FOREIGN: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);

fn prepared() -> Result<(Rig, Service)> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    Ok((rig, service))
}

/// A source on the bridge's wire but outside its subnet, with a route back.
fn default_is_the_subnet() -> Result<()> {
    let (rig, service) = prepared()?;
    add_foreign_source(&rig)?;
    rig.attach("7001")?;
    let attachment = rig.expect_state(NAME, "ready")?;
    ensure!(attachment.allow == ["172.30.1.0/24"], "the default list is {:?}", attachment.allow);
    rig.expect(NAME, Moved::denied(1), || {
        let outcome = dial_as(&rig, FOREIGN, 7001)?;
        ensure!(matches!(outcome, Err(Errno::ECONNREFUSED)), "{FOREIGN} got {outcome:?}");
        Ok(())
    })?;
    rig.expect(NAME, Moved::accepted(2), || {
        answers(&rig.net.a1, at(GATEWAY_A, 7001))?;
        answers(&rig.net.a2, at(GATEWAY_A, 7001))
    })?;
    ensure!(service.peers().len() == 2, "the service saw {:?}", service.peers());
    Ok(())
}

/// Gives a1 an address outside the subnet and shows that a service on the gateway answers it.
fn add_foreign_source(rig: &Rig) -> Result<()> {
    rig.net.a1.ip(&format!("addr add {FOREIGN}/32 dev eth0"))?;
    rig.net.host.ip(&format!("route add {FOREIGN}/32 dev br-a"))?;
    let control = Service::start(&rig.net.host, at(GATEWAY_A, 7002))?;
    exchange(&mut dial_as(rig, FOREIGN, 7002)??, b"from elsewhere")?;
    ensure!(control.peers().len() == 1, "the control service is not reachable from {FOREIGN}");
    Ok(())
}

/// A source outside the subnet can be admitted where the kernel tells the bridge from the packet;
/// elsewhere its address is all there is, and the list is refused.
fn source_outside_the_subnet() -> Result<()> {
    let (rig, service) = prepared()?;
    add_foreign_source(&rig)?;
    if !kernel_at_least(5, 17)? {
        let arguments = ["attach", "7001", "--bridge", "br-a", "--allow", "10.0.0.0/8"];
        rig.cli().refused(&arguments, 1, &["10.0.0.0/8", "172.30.1.0/24", "5.17"])?;
        return rig.net.host.nothing_pinned();
    }
    rig.attach_with("7001", &["--allow", "10.0.0.0/8"])?;
    rig.expect(NAME, Moved::accepted(1), || exchange(&mut dial_as(&rig, FOREIGN, 7001)??, b"admitted"))?;
    rig.expect(NAME, Moved::denied(1), || refused(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    let seen: Vec<_> = service.peers().iter().map(|peer| peer.remote.ip()).collect();
    ensure!(seen == [FOREIGN], "the service saw {seen:?}");
    // The wider list opens the port to nobody on other interfaces.
    refused(&rig.net.b1, at(GATEWAY_A, 7001))?;
    refused(&rig.net.outside, at(GATEWAY_A, 7001))
}

/// Connects from a1 with a chosen source address.
fn dial_as(rig: &Rig, source: Ipv4Addr, port: u16) -> Result<std::result::Result<TcpStream, Errno>> {
    rig.net.a1.run(|| {
        let fd = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(at(source, 0)))?;
        let connected = socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(at(GATEWAY_A, port)));
        let stream = TcpStream::from(fd);
        stream.set_read_timeout(Some(patience(5)))?;
        Ok(connected.map(|()| stream))
    })
}

fn one_container() -> Result<()> {
    let (rig, service) = prepared()?;
    rig.attach_with("7001", &["--allow", "172.30.1.11/32"])?;
    let attachment = rig.expect_state(NAME, "ready")?;
    ensure!(attachment.allow == ["172.30.1.11/32"], "the list is {:?}", attachment.allow);
    rig.expect(NAME, Moved::accepted(2), || {
        (0..2).try_for_each(|_| answers(&rig.net.a1, at(GATEWAY_A, 7001)).map(drop))
    })?;
    rig.expect(NAME, Moved::denied(3), || {
        (0..3).try_for_each(|_| refused(&rig.net.a2, at(GATEWAY_A, 7001)))
    })?;
    let seen: Vec<_> = service.peers().iter().map(|peer| peer.remote.ip()).collect();
    ensure!(seen == [A1, A1], "the service saw {seen:?}");
    Ok(())
}

fn several_networks() -> Result<()> {
    let (rig, _service) = prepared()?;
    rig.attach_with("7001", &["--allow", "172.30.1.128/25", "--allow", "172.30.1.12/32"])?;
    rig.expect(NAME, Moved::denied(1), || refused(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    let from = rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a2, at(GATEWAY_A, 7001)))?;
    ensure!(from.ip() == A2, "the client's own address is {from}");
    let mut allow = rig.cli().attachment(NAME)?.allow;
    allow.sort();
    ensure!(allow == ["172.30.1.12/32", "172.30.1.128/25"], "the list is {allow:?}");
    Ok(())
}

fn ipv6_source() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, at6(Ipv6Addr::LOCALHOST, 7001))?;
    rig.attach_with("7001:::1:7001", &["--allow", "fd00:30:1::12/128"])?;
    rig.expect(NAME, Moved::denied(1), || refused(&rig.net.a1, at6(GATEWAY_A6, 7001)))?;
    rig.attach_with("7001:::1:7001", &["--allow", "fd00:30:1::10/128", "--allow", "fd00:30:1::12/127"])?;
    rig.expect(NAME, Moved::denied(1), || refused(&rig.net.a1, at6(GATEWAY_A6, 7001)))?;
    rig.attach_with("7001:::1:7001", &["--allow", "fd00:30:1::10/127"])?;
    rig.expect_state(NAME, "ready")?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at6(GATEWAY_A6, 7001)))?;
    Ok(())
}

/// The attachment owns its gateway port: a denied source does not fall through to a service that
/// binds the port on every address later.
fn denied_beats_wildcard() -> Result<()> {
    let rig = Rig::new()?;
    rig.attach_with("7001", &["--allow", "172.30.1.11/32"])?;
    let wildcard = Service::start(&rig.net.host, at(Ipv4Addr::UNSPECIFIED, 7001))?;
    rig.expect(NAME, Moved::denied(1), || refused(&rig.net.a2, at(GATEWAY_A, 7001)))?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    ensure!(wildcard.peers().len() == 1, "the wildcard service saw {:?}", wildcard.peers());
    Ok(())
}

fn change_is_atomic() -> Result<()> {
    let (rig, service) = prepared()?;
    rig.attach_with("7001", &["--allow", "172.30.1.11/32"])?;
    let lists: [&[&str]; 3] = [
        &["--allow", "172.30.1.11/32", "--allow", "172.30.1.12/32"],
        &["--allow", "172.30.1.0/24"],
        &["--allow", "172.30.1.11/32"],
    ];
    let ((), served) = while_connecting(&rig.net.a1, at(GATEWAY_A, 7001), 50, || {
        for round in 0..scaled(12).max(3) {
            rig.attach_with("7001", lists[round % lists.len()])?;
        }
        Ok(())
    })?;
    ensure!(service.peers().len() as u64 == served, "{} arrived of {served}", service.peers().len());
    let counters = rig.cli().attachment(NAME)?.counters;
    ensure!(counters.denied == 0, "connections were denied during the change: {counters:?}");
    Ok(())
}

fn change_shuts_out() -> Result<()> {
    let (rig, _service) = prepared()?;
    rig.attach("7001")?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a2, at(GATEWAY_A, 7001)))?;
    rig.attach_with("7001", &["--allow", "172.30.1.11/32"])?;
    rig.expect(NAME, Moved::denied(1), || refused(&rig.net.a2, at(GATEWAY_A, 7001)))?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    ensure!(rig.cli().status()?.len() == 1, "the change made a second attachment");
    Ok(())
}
