//! `netns::*`: which listener serves, by how it is bound and by who shares its port.
//!
//! Invariant: the answer is always the one a connection to the loopback target itself would get.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, ensure};
use nix::sys::socket::{Backlog, Shutdown, listen, shutdown};
use std::os::fd::AsRawFd;

use super::Test;
use crate::harness::client::{answers, connect, refused};
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::{Port, Service, bound_socket, listener};
use crate::harness::topology::{GATEWAY_A, at, at6, local};
use crate::harness::wait::{kernel_at_least, scaled};

pub(super) const TESTS: &[Test] = &[
    Test::new("netns::wildcard_listener_serves_a_mapped_port", wildcard_serves).in_kernels(),
    Test::new("netns::dual_stack_listener_serves_a_mapped_port", dual_stack_serves).in_kernels(),
    Test::new("netns::v4_mapped_listener_serves", v4_mapped_serves).in_kernels(),
    Test::new("netns::exact_listener_wins_over_wildcard", exact_wins_when_later).in_kernels(),
    Test::new("netns::exact_listener_wins_when_it_was_first", exact_wins_when_first),
    Test::new("netns::reuseport_group_at_attach_serves_with_all_members", group_at_attach).in_kernels(),
    Test::new("netns::reuseport_group_after_attach_serves_with_all_members", group_after_attach).in_kernels(),
    Test::new("netns::reuseport_member_that_joins_later_serves", late_member),
    Test::new("netns::reuseport_group_of_eighty_serves_while_members_leave", large_group).in_kernels(),
    Test::new("netns::listener_that_stops_and_listens_again", listens_again).in_kernels(),
    Test::new("netns::socket_bound_before_attach_that_listens_after", bound_before_attach).in_kernels(),
];

const NAME: &str = "br-a-tcp-7001";
const MAPPED: &str = "7001:7002";

fn gateway() -> SocketAddr {
    at(GATEWAY_A, 7001)
}

fn wildcard_serves() -> Result<()> {
    serves_on(at(Ipv4Addr::UNSPECIFIED, 7002))
}

fn dual_stack_serves() -> Result<()> {
    serves_on(at6(Ipv6Addr::UNSPECIFIED, 7002))
}

/// What a Java service bound to 127.0.0.1 has: an IPv6 socket on the mapped address.
fn v4_mapped_serves() -> Result<()> {
    serves_on(at6(Ipv4Addr::LOCALHOST.to_ipv6_mapped(), 7002))
}

/// A listener bound to `address` serves the target 127.0.0.1:7002, before and after attach.
fn serves_on(address: SocketAddr) -> Result<()> {
    let rig = Rig::new()?;
    let before = Service::start(&rig.net.host, address)?;
    rig.attach(MAPPED)?;
    rig.expect_state(NAME, "ready")?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))?;
    ensure!(before.peers().len() == 1, "the service on {address} saw {:?}", before.peers());
    before.stop();
    rig.expect(NAME, Moved::no_listener(1), || refused(&rig.net.a1, gateway()))?;
    let after = Service::start(&rig.net.host, address)?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))?;
    ensure!(after.peers().len() == 1, "the service on {address} saw {:?}", after.peers());
    rig.expect_state(NAME, "ready")?;
    Ok(())
}

fn exact_wins_when_later() -> Result<()> {
    exact_wins(false)
}

fn exact_wins_when_first() -> Result<()> {
    exact_wins(true)
}

/// Both kinds of listener exist; the exact one gets everything, then the other takes over.
fn exact_wins(exact_first: bool) -> Result<()> {
    let rig = Rig::new()?;
    let start = |address: Ipv4Addr| Service::start_shared(&rig.net.host, at(address, 7002));
    let early = start(if exact_first { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED })?;
    rig.attach(MAPPED)?;
    let late = start(if exact_first { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST })?;
    let (exact, wildcard) = if exact_first { (early, late) } else { (late, early) };
    rig.expect(NAME, Moved::accepted(8), || {
        (0..8).try_for_each(|_| answers(&rig.net.a1, gateway()).map(drop))
    })?;
    ensure!(exact.peers().len() == 8, "the exact listener got {} of 8", exact.peers().len());
    ensure!(wildcard.peers().is_empty(), "the wildcard listener got {:?}", wildcard.peers());
    exact.stop();
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))?;
    ensure!(wildcard.peers().len() == 1, "the wildcard listener got {:?}", wildcard.peers());
    Ok(())
}

fn group_at_attach() -> Result<()> {
    group(true)
}

fn group_after_attach() -> Result<()> {
    group(false)
}

/// Four members share the port; all serve, and the rest go on whichever closes.
fn group(before_attach: bool) -> Result<()> {
    let rig = Rig::new()?;
    let start =
        || (0..4).map(|_| Service::start_shared(&rig.net.host, local(7001))).collect::<Result<Vec<_>>>();
    let mut members = if before_attach { start()? } else { Vec::new() };
    rig.attach("7001")?;
    if !before_attach {
        members = start()?;
    }
    rig.expect_state(NAME, "ready")?;
    spread(&rig, &members, 64)?;
    // The member that was registered first goes first: the steering must not hang on it.
    while members.len() > 1 {
        members.remove(0).stop();
        spread(&rig, &members, 48)?;
    }
    members.remove(0).stop();
    rig.expect(NAME, Moved::no_listener(1), || refused(&rig.net.a1, gateway()))?;
    rig.expect_state(NAME, "waiting-for-listener")?;
    Ok(())
}

/// Makes `count` connections; every one is served and every member gets some.
fn spread(rig: &Rig, members: &[Service], count: usize) -> Result<()> {
    let before: Vec<usize> = members.iter().map(|member| member.peers().len()).collect();
    rig.expect(NAME, Moved::accepted(count), || {
        (0..count).try_for_each(|_| answers(&rig.net.a1, gateway()).map(drop))
    })?;
    let got: Vec<usize> =
        members.iter().zip(&before).map(|(member, had)| member.peers().len() - had).collect();
    ensure!(got.iter().sum::<usize>() == count, "members got {got:?} of {count}");
    ensure!(got.iter().all(|count| *count > 0), "a member got nothing: {got:?}");
    Ok(())
}

fn late_member() -> Result<()> {
    let rig = Rig::new()?;
    let first = Service::start_shared(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    spread(&rig, std::slice::from_ref(&first), scaled(20))?;
    let members = [first, Service::start_shared(&rig.net.host, local(7001))?];
    spread(&rig, &members, 48)?;
    let [first, second] = members;
    first.stop();
    spread(&rig, std::slice::from_ref(&second), scaled(20))
}

/// As many members as a server with a worker per processor has; most of them leave, oldest first.
fn large_group() -> Result<()> {
    let rig = Rig::new()?;
    rig.attach("7001")?;
    let start = || Service::start_shared(&rig.net.host, local(7001));
    let mut members = (0..80).map(|_| start()).collect::<Result<Vec<_>>>()?;
    let connect = |count| {
        rig.expect(NAME, Moved::accepted(count), || {
            (0..count).try_for_each(|_| answers(&rig.net.a1, gateway()).map(drop))
        })
    };
    connect(40)?;
    members.drain(..60).for_each(Service::stop);
    connect(40)?;
    rig.expect_state(NAME, "ready")?;
    Ok(())
}

/// The same socket leaves the listening state and comes back, without any userspace.
fn listens_again() -> Result<()> {
    let rig = Rig::new()?;
    let socket = listener(&rig.net.host, local(7001), Port::Exclusive)?;
    rig.attach("7001")?;
    for round in 0..3 {
        rig.expect(NAME, Moved::accepted(1), || connect(&rig.net.a1, gateway()).map(drop))?;
        shutdown(socket.as_raw_fd(), Shutdown::Both)?;
        rig.expect(NAME, Moved::no_listener(1), || refused(&rig.net.a1, gateway()))?;
        rig.net.host.run(|| listen(&socket, Backlog::MAXCONN))?;
        ensure!(
            rig.net.host.listening()? == [local(7001)],
            "round {round}: the socket does not listen again"
        );
    }
    let service = Service::serve(socket)?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))?;
    ensure!(service.peers().len() == 1, "the service saw {:?}", service.peers());
    Ok(())
}

/// The kernel learns of a socket when it listens. Below 5.15 it can tell the socket's namespace only
/// from its bind(2), so a socket bound before the first attach is found by the next one.
fn bound_before_attach() -> Result<()> {
    let rig = Rig::new()?;
    let socket = rig.net.host.run(|| bound_socket(local(7001)))?;
    rig.attach("7001")?;
    rig.expect_state(NAME, "waiting-for-listener")?;
    rig.net.host.run(|| listen(&socket, Backlog::MAXCONN))?;
    if !kernel_at_least(5, 15)? {
        rig.attach("7001")?;
    }
    let service = Service::serve(socket.into())?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))?;
    ensure!(service.peers().len() == 1, "the service saw {:?}", service.peers());
    rig.expect_state(NAME, "ready")?;
    Ok(())
}
