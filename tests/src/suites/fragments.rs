//! `fragments::*`: connections whose SYN arrives in IP fragments, or behind an IPv6 extension header.
//!
//! Invariant: the client of the fragments is the kernel's own TCP behind a route too narrow for a SYN, and its
//! namespace's counters say that fragments were made.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};

use super::Test;
use crate::harness::client::{answers, exchange, finish};
use crate::harness::netns::Netns;
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::Service;
use crate::harness::sys::{destination_options, ip_options, mptcp_listener};
use crate::harness::topology::{A1, A1_6, GATEWAY_A, GATEWAY_A6, at, local};
use crate::harness::wait::patience;

pub(super) const TESTS: &[Test] = &[
    Test::new("fragments::syn_is_steered_once_it_is_whole", plain).in_kernels(),
    Test::with_mptcp("fragments::syn_to_an_mptcp_listener_is_refused", mptcp).in_kernels(),
    Test::with_mptcp(
        "fragments::syn_to_an_mptcp_listener_with_bridge_netfilter",
        mptcp_behind_bridge_netfilter,
    ),
    Test::new("fragments::syn_behind_an_extension_header_is_steered", extension_header),
    Test::with_mptcp(
        "fragments::syn_behind_an_extension_header_to_an_mptcp_listener",
        extension_header_mptcp,
    ),
];

const NAME: &str = "br-a-tcp-7001";
/// The least an IPv4 link carries. A SYN behind 40 bytes of IP options takes about 100.
const NARROW: u32 = 68;

fn gateway() -> SocketAddr {
    at(GATEWAY_A, 7001)
}

/// A connection whose every packet towards the service comes in fragments: `None` when the SYN was refused.
fn fragmented(rig: &Rig) -> Result<Option<TcpStream>> {
    let a1 = &rig.net.a1;
    a1.ip(&format!("route replace 172.30.1.0/24 dev eth0 src {A1} mtu lock {NARROW}"))?;
    let before = fragments_made(a1)?;
    let stream = a1.run(dial)?;
    let made = fragments_made(a1)? - before;
    ensure!(made >= 2, "the SYN went out in {made} fragments");
    Ok(stream)
}

/// The container's route as it was.
fn whole_again(rig: &Rig) -> Result<()> {
    rig.net.a1.ip(&format!("route replace 172.30.1.0/24 dev eth0 src {A1}"))
}

fn dial() -> Result<Option<TcpStream>> {
    let fd = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    ip_options(&fd, &[1; 40])?;
    connect(fd, gateway())
}

/// `None`: refused.
fn connect(fd: OwnedFd, to: SocketAddr) -> Result<Option<TcpStream>> {
    socket::setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    match socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
        Err(Errno::ECONNREFUSED) => return Ok(None),
        connected => connected.with_context(|| format!("failed to connect to {to}"))?,
    }
    let stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(patience(5)))?;
    Ok(Some(stream))
}

/// Fragments that a namespace sent (`FragCreates`).
fn fragments_made(netns: &Netns) -> Result<u64> {
    let table = netns.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))?;
    let mut rows = table.lines().filter(|line| line.starts_with("Ip:")).map(str::split_whitespace);
    let (names, values) = rows.next().zip(rows.next()).context("odd snmp file")?;
    let found = names.zip(values).find(|(name, _)| *name == "FragCreates");
    found.context("the kernel does not count fragments")?.1.parse().context("odd snmp file")
}

fn exchanges(stream: Option<TcpStream>) -> Result<()> {
    let mut stream = stream.context("the SYN was refused")?;
    exchange(&mut stream, &[0x5a; 5000])?;
    finish(stream)
}

/// Listeners are looked up after reassembly.
fn plain() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    rig.expect(NAME, Moved::accepted(1), || exchanges(fragmented(&rig)?))?;
    let seen: Vec<_> = service.peers().iter().map(|peer| peer.remote.ip()).collect();
    ensure!(seen == [A1], "the service saw {seen:?}");
    Ok(())
}

fn mptcp_service(rig: &Rig, address: SocketAddr) -> Result<Service> {
    rig.net.host.sysctl("net/mptcp/enabled", "1")?;
    Service::serve(rig.net.host.run(|| mptcp_listener(address))?)
}

/// The tc program runs before reassembly and leaves fragments alone; whole packets of the same container are served.
fn mptcp() -> Result<()> {
    let rig = Rig::new()?;
    let service = mptcp_service(&rig, local(7001))?;
    rig.net.host.bridge_netfilter(false)?;
    rig.attach("7001")?;
    for _ in 0..2 {
        rig.expect_tc(NAME, Moved::no_listener(1), || {
            ensure!(fragmented(&rig)?.is_none(), "the SYN in fragments was accepted");
            Ok(())
        })?;
        whole_again(&rig)?;
        rig.expect_tc(NAME, Moved::accepted(2), || {
            (0..2).try_for_each(|_| answers(&rig.net.a1, gateway()).map(drop))
        })?;
    }
    ensure!(service.peers().len() == 4, "the service saw {:?}", service.peers());
    Ok(())
}

/// Where the kernel has no br_netfilter, fragments are refused as they are with it switched off.
fn mptcp_behind_bridge_netfilter() -> Result<()> {
    let rig = Rig::new()?;
    let _service = mptcp_service(&rig, local(7001))?;
    let there = rig.net.host.bridge_netfilter(true)?;
    rig.attach("7001")?;
    let moved = if there { Moved::accepted(1) } else { Moved::no_listener(1) };
    rig.expect_tc(NAME, moved, || match fragmented(&rig)? {
        stream if there => exchanges(stream),
        stream => {
            ensure!(stream.is_none(), "the SYN in fragments was accepted");
            Ok(())
        }
    })
}

const GATEWAY6: SocketAddr = SocketAddr::new(IpAddr::V6(GATEWAY_A6), 7001);
const LOCAL6: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 7001);
const TARGET6: &str = "7001:[::1]:7001";

/// A connection from a1 whose packets have a destination options header of 8 bytes, all of it padding.
fn behind_extension_header(rig: &Rig) -> Result<Option<TcpStream>> {
    rig.net.a1.run(|| {
        let fd = socket::socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        destination_options(&fd, &[0, 0, 1, 4, 0, 0, 0, 0])?;
        connect(fd, GATEWAY6)
    })
}

fn extension_header() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, LOCAL6)?;
    rig.attach(TARGET6)?;
    rig.expect(NAME, Moved::accepted(1), || exchanges(behind_extension_header(&rig)?))?;
    let seen: Vec<_> = service.peers().iter().map(|peer| peer.remote.ip()).collect();
    ensure!(seen == [A1_6], "the service saw {seen:?}");
    Ok(())
}

fn extension_header_mptcp() -> Result<()> {
    let rig = Rig::new()?;
    let _service = mptcp_service(&rig, LOCAL6)?;
    rig.attach(TARGET6)?;
    rig.expect_tc(NAME, Moved::no_listener(1), || {
        ensure!(behind_extension_header(&rig)?.is_none(), "the SYN was accepted");
        Ok(())
    })?;
    rig.expect_tc(NAME, Moved::accepted(1), || answers(&rig.net.a1, GATEWAY6))?;
    Ok(())
}
