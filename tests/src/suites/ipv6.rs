//! `ipv6::*`: IPv6 gateways and sources, and services that are there for both families.
//!
//! Invariant: each attachment serves one family, by its own gateway addresses and its own part of the allow-list; exact
//! counters say which attachment a connection took.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, sockopt,
};

use super::Test;
use crate::harness::client::{answers, ended_by_service, exchange, hold, refused};
use crate::harness::netns::Netns;
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::{Peer, Service};
use crate::harness::sys::mptcp_listener;
use crate::harness::topology::{A1, A1_6, GATEWAY_A, GATEWAY_A6, at, at6, local};
use crate::harness::wait::{kernel_at_least, patience};

pub(super) const TESTS: &[Test] = &[
    Test::new("ipv6::loopback_listener_is_reached_with_the_containers_address", loopback_listener)
        .in_kernels(),
    Test::new("ipv6::listener_of_the_other_family_is_not_taken", other_family),
    Test::new("ipv6::one_port_serves_each_family_by_its_own_attachment", one_port).in_kernels(),
    Test::new("ipv6::dual_stack_listener_serves_both_families", dual_stack).in_kernels(),
    Test::new("ipv6::listener_on_every_ipv6_address_alone_serves_no_ipv4", v6only).in_kernels(),
    Test::new("ipv6::listener_on_a_mapped_address_serves_ipv4_alone", mapped),
    Test::new("ipv6::allow_list_of_both_families", allow_both),
    Test::new("ipv6::every_address_of_the_bridge_is_a_gateway", second_gateway),
    Test::new("ipv6::link_local_source_is_denied_unless_allowed", link_local_source),
    Test::new("ipv6::link_local_address_of_the_bridge_is_no_gateway", link_local_gateway),
    Test::with_mptcp("ipv6::dual_stack_mptcp_listener_serves_both_families", dual_stack_mptcp).in_kernels(),
    Test::with_mptcp("ipv6::mptcp_handshake_with_syn_cookies", mptcp_syn_cookies).in_kernels(),
];

const A2_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x30, 1, 0, 0, 0, 0, 0x12);
/// One attachment of each family to the same port of the host.
const FOUR: &str = "br-a-four-7001";
const SIX: &str = "br-a-six-7002";
const BOTH: [&str; 4] = ["four=7001:7003", "six=7002:[::1]:7003", "--bridge", "br-a"];

fn gateway4() -> SocketAddr {
    at(GATEWAY_A, 7001)
}

fn gateway6() -> SocketAddr {
    at6(GATEWAY_A6, 7002)
}

fn attach_both(rig: &Rig, options: &[&str]) -> Result<()> {
    rig.cli().ok(&[&["attach"], BOTH.as_slice(), options].concat())?;
    Ok(())
}

fn loopback_listener() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, at6(Ipv6Addr::LOCALHOST, 7003))?;
    rig.attach("six=7002:[::1]:7003")?;
    let attachment = rig.expect_state(SIX, "ready")?;
    ensure!(attachment.gateways == [GATEWAY_A6.to_string()], "the gateways are {:?}", attachment.gateways);
    ensure!(attachment.allow == ["fd00:30:1::/64"], "the list is {:?}", attachment.allow);
    let remote = rig.expect(SIX, Moved::accepted(1), || answers(&rig.net.a1, gateway6()))?;
    ensure!(remote.ip() == A1_6, "the client's own address is {remote}");
    ensure!(service.peers() == [Peer { remote, local: gateway6() }], "the service saw {:?}", service.peers());
    // The same port of the IPv4 gateway is nobody's.
    rig.expect(SIX, Moved::NOTHING, || refused(&rig.net.a1, at(GATEWAY_A, 7002)))?;
    service.stop();
    rig.expect(SIX, Moved::no_listener(1), || refused(&rig.net.a1, gateway6()))?;
    let _service = Service::start(&rig.net.host, at6(Ipv6Addr::LOCALHOST, 7003))?;
    rig.expect(SIX, Moved::accepted(2), || {
        (0..2).try_for_each(|_| answers(&rig.net.a1, gateway6()).map(drop))
    })
}

/// Waits for a listener of its own family.
fn expect_waiting(rig: &Rig, name: &str, target: &str) -> Result<()> {
    let attachment = rig.expect_state(name, "waiting-for-listener")?;
    let detail = attachment.raw["detail"].as_str().unwrap_or_default();
    ensure!(detail.contains(target), "the detail of {name} does not name {target}: {detail:?}");
    let elsewhere = detail.contains("there is a listener on");
    attachment.expect_finding(if elsewhere { "listener-elsewhere" } else { "no-listener" })
}

/// A service on `[::1]` alone is not 127.0.0.1's, and the other way round; also where the other one is a wildcard.
fn other_family() -> Result<()> {
    for address in [at6(Ipv6Addr::LOCALHOST, 7003), local(7003), at(Ipv4Addr::UNSPECIFIED, 7003)] {
        let rig = Rig::new()?;
        let service = Service::start(&rig.net.host, address)?;
        attach_both(&rig, &[])?;
        let (waiting, target, gateway, serving, served) = if address.is_ipv6() {
            (FOUR, "127.0.0.1:7003", gateway4(), SIX, gateway6())
        } else {
            (SIX, "[::1]:7003", gateway6(), FOUR, gateway4())
        };
        expect_waiting(&rig, waiting, target)?;
        rig.expect(waiting, Moved::no_listener(2), || {
            (0..2).try_for_each(|_| refused(&rig.net.a1, gateway))
        })?;
        rig.expect(serving, Moved::accepted(1), || answers(&rig.net.a1, served))?;
        ensure!(service.peers().len() == 1, "the service on {address} saw {:?}", service.peers());
    }
    Ok(())
}

/// Two services on one port of the gateway, one for each family.
fn one_port() -> Result<()> {
    let rig = Rig::new()?;
    let addresses = [local(7001), at6(Ipv6Addr::LOCALHOST, 7001)];
    let [four, six] = addresses.map(|address| Service::start(&rig.net.host, address));
    let (four, six) = (four?, six?);
    rig.cli().ok(&["attach", "four=7001", "six=7001:[::1]:7001", "--bridge", "br-a"])?;
    let (to4, to6) = (gateway4(), at6(GATEWAY_A6, 7001));
    let from4 = rig.expect(FOUR, Moved::accepted(1), || answers(&rig.net.a1, to4))?;
    let from6 = rig.expect("br-a-six-7001", Moved::accepted(1), || answers(&rig.net.a1, to6))?;
    ensure!(four.peers() == [Peer { remote: from4, local: to4 }], "IPv4 saw {:?}", four.peers());
    ensure!(six.peers() == [Peer { remote: from6, local: to6 }], "IPv6 saw {:?}", six.peers());
    let third = ["attach", "more=7001:[::1]:7009", "--bridge", "br-a"];
    rig.cli().refused(&third, 1, &["7001", "br-a-six-7001"])?;
    rig.cli().ok(&["detach", "six"])?;
    rig.expect(FOUR, Moved::accepted(1), || answers(&rig.net.a1, to4))?;
    refused(&rig.net.a1, to6)
}

/// One connection of each family from a1; the service sees those of IPv4 in the mapped form.
fn both_families(rig: &Rig, service: &Service, by_tc: bool) -> Result<()> {
    both_families_by(rig, service, by_tc, |gateway| answers(&rig.net.a1, gateway))
}

/// `visit` makes the connections and returns the client's own address.
fn both_families_by(
    rig: &Rig,
    service: &Service,
    by_tc: bool,
    mut visit: impl FnMut(SocketAddr) -> Result<SocketAddr>,
) -> Result<()> {
    let before = service.peers().len();
    let mut expect = |name, gateway| {
        let one = || visit(gateway);
        let moved = Moved::accepted(1);
        if by_tc { rig.expect_tc(name, moved, one) } else { rig.expect(name, moved, one) }
    };
    let four = expect(FOUR, gateway4())?;
    let six = expect(SIX, gateway6())?;
    ensure!(four.ip() == A1 && six.ip() == A1_6, "the client's own addresses are {four} and {six}");
    let expected = [
        Peer { remote: at6(A1.to_ipv6_mapped(), four.port()), local: at6(GATEWAY_A.to_ipv6_mapped(), 7001) },
        Peer { remote: six, local: gateway6() },
    ];
    let seen = service.peers().split_off(before);
    ensure!(seen == expected, "the service saw {seen:?} instead of {expected:?}");
    Ok(())
}

fn dual_stack() -> Result<()> {
    let rig = Rig::new()?;
    let before = Service::start(&rig.net.host, at6(Ipv6Addr::UNSPECIFIED, 7003))?;
    attach_both(&rig, &[])?;
    rig.expect_state(FOUR, "ready")?;
    rig.expect_state(SIX, "ready")?;
    both_families(&rig, &before, false)?;
    before.stop();
    rig.expect(FOUR, Moved::no_listener(1), || refused(&rig.net.a1, gateway4()))?;
    rig.expect(SIX, Moved::no_listener(1), || refused(&rig.net.a1, gateway6()))?;
    let after = Service::start(&rig.net.host, at6(Ipv6Addr::UNSPECIFIED, 7003))?;
    both_families(&rig, &after, false)
}

/// A listener on `::` that takes no IPv4 (`IPV6_V6ONLY`), as Python and nginx have it.
fn v6only_service(host: &Netns) -> Result<Service> {
    let listener = host.run(|| -> Result<_> {
        let fd = socket::socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(at6(Ipv6Addr::UNSPECIFIED, 7003)))?;
        listen(&fd, Backlog::MAXCONN)?;
        Ok(fd)
    })?;
    Service::serve(listener.into())
}

fn v6only() -> Result<()> {
    let rig = Rig::new()?;
    let before = v6only_service(&rig.net.host)?;
    attach_both(&rig, &[])?;
    let check = |service: &Service| {
        expect_waiting(&rig, FOUR, "127.0.0.1:7003")?;
        rig.expect_state(SIX, "ready")?;
        rig.expect(FOUR, Moved::no_listener(2), || {
            (0..2).try_for_each(|_| refused(&rig.net.a1, gateway4()))
        })?;
        let remote = rig.expect(SIX, Moved::accepted(1), || answers(&rig.net.a1, gateway6()))?;
        ensure!(service.peers() == [Peer { remote, local: gateway6() }], "it saw {:?}", service.peers());
        Ok(())
    };
    check(&before)?;
    before.stop();
    check(&v6only_service(&rig.net.host)?)
}

/// `::ffff:127.0.0.1`, as Java has it.
fn mapped() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, at6(Ipv4Addr::LOCALHOST.to_ipv6_mapped(), 7003))?;
    attach_both(&rig, &[])?;
    rig.expect_state(FOUR, "ready")?;
    expect_waiting(&rig, SIX, "[::1]:7003")?;
    let remote = rig.expect(FOUR, Moved::accepted(1), || answers(&rig.net.a1, gateway4()))?;
    let expected = Peer {
        remote: at6(A1.to_ipv6_mapped(), remote.port()),
        local: at6(GATEWAY_A.to_ipv6_mapped(), 7001),
    };
    ensure!(service.peers() == [expected], "the service saw {:?}", service.peers());
    rig.expect(SIX, Moved::no_listener(1), || refused(&rig.net.a1, gateway6()))
}

fn allow_both() -> Result<()> {
    let rig = Rig::new()?;
    rig.net.a2.ip(&format!("addr add {A2_6}/64 dev eth0 nodad"))?;
    let service = Service::start(&rig.net.host, at6(Ipv6Addr::UNSPECIFIED, 7003))?;
    attach_both(&rig, &["--allow", "172.30.1.11", "--allow", "fd00:30:1::11"])?;
    for (name, allow) in [(FOUR, "172.30.1.11/32"), (SIX, "fd00:30:1::11/128")] {
        let attachment = rig.expect_state(name, "ready")?;
        ensure!(attachment.allow == [allow], "the list of {name} is {:?}", attachment.allow);
    }
    for (name, other, gateway) in [(FOUR, SIX, gateway4()), (SIX, FOUR, gateway6())] {
        rig.expect(other, Moved::NOTHING, || {
            rig.expect(name, Moved::accepted(1), || answers(&rig.net.a1, gateway))?;
            rig.expect(name, Moved::denied(2), || (0..2).try_for_each(|_| refused(&rig.net.a2, gateway)))
        })?;
    }
    ensure!(service.peers().len() == 2, "the service saw {:?}", service.peers());
    // An address of one family alone says nothing about the other one's attachment.
    let arguments = ["attach", BOTH[0], "--bridge", "br-a", "--allow", "fd00:30:1::11"];
    rig.cli().refused(&arguments, 1, &["fd00:30:1::11", "127.0.0.1:7003", "IPv4"])
}

fn second_gateway() -> Result<()> {
    let rig = Rig::new()?;
    let (second, from_second) = (Ipv6Addr::new(0xfd00, 0x31, 0, 0, 0, 0, 0, 1), "fd00:31::11");
    rig.net.host.ip(&format!("addr add {second}/64 dev br-a nodad"))?;
    rig.net.a1.ip(&format!("addr add {from_second}/64 dev eth0 nodad"))?;
    let service = Service::start(&rig.net.host, at6(Ipv6Addr::LOCALHOST, 7003))?;
    attach_both(&rig, &[])?;
    let mut attachment = rig.expect_state(SIX, "ready")?;
    attachment.gateways.sort();
    attachment.allow.sort();
    let expected = [GATEWAY_A6.to_string(), second.to_string()];
    ensure!(attachment.gateways == expected, "the gateways are {:?}", attachment.gateways);
    ensure!(attachment.allow == ["fd00:30:1::/64", "fd00:31::/64"], "the list is {:?}", attachment.allow);
    for (gateway, from) in [(GATEWAY_A6, A1_6.to_string()), (second, from_second.to_owned())] {
        let remote = rig.expect(SIX, Moved::accepted(1), || answers(&rig.net.a1, at6(gateway, 7002)))?;
        ensure!(remote.ip().to_string() == from, "the client's own address is {remote}");
        let seen = service.peers().pop();
        ensure!(seen == Some(Peer { remote, local: at6(gateway, 7002) }), "the service saw {seen:?}");
    }
    Ok(())
}

/// Gives a1 and the bridge link-local addresses, which every interface has, but only after a while by itself.
fn add_link_local(rig: &Rig) -> Result<(Ipv6Addr, Ipv6Addr)> {
    let link_local = |last| Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, last);
    let (container, bridge) = (link_local(0x11), link_local(1));
    rig.net.a1.ip(&format!("addr add {container}/64 dev eth0 nodad"))?;
    rig.net.host.ip(&format!("addr add {bridge}/64 dev br-a nodad"))?;
    Ok((container, bridge))
}

/// Connects from a1's interface with a chosen source address.
fn dial_as(rig: &Rig, source: Ipv6Addr, to: Ipv6Addr) -> Result<std::result::Result<TcpStream, Errno>> {
    rig.net.a1.run(|| {
        let scope = nix::net::if_::if_nametoindex("eth0")?;
        let scoped = |address, port| SockaddrStorage::from(SocketAddrV6::new(address, port, 0, scope));
        let fd = socket::socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        bind(fd.as_raw_fd(), &scoped(source, 0)).with_context(|| format!("failed to bind to {source}"))?;
        let connected = socket::connect(fd.as_raw_fd(), &scoped(to, 7002));
        let stream = TcpStream::from(fd);
        stream.set_read_timeout(Some(patience(5)))?;
        Ok(connected.map(|()| stream))
    })
}

/// Where the kernel tells the bridge only by the source's subnet, such a source cannot be allowed.
fn link_local_source() -> Result<()> {
    let rig = Rig::new()?;
    let (source, _) = add_link_local(&rig)?;
    let service = Service::start(&rig.net.host, at6(Ipv6Addr::LOCALHOST, 7003))?;
    rig.attach("six=7002:[::1]:7003")?;
    rig.expect(SIX, Moved::denied(1), || {
        let outcome = dial_as(&rig, source, GATEWAY_A6)?;
        ensure!(matches!(outcome, Err(Errno::ECONNREFUSED)), "{source} got {outcome:?}");
        Ok(())
    })?;
    ensure!(service.peers().is_empty(), "the service saw {:?}", service.peers());
    if !kernel_at_least(5, 17)? {
        let arguments = ["attach", "six=7002:[::1]:7003", "--bridge", "br-a", "--allow", "fe80::/64"];
        return rig.cli().refused(&arguments, 1, &["fe80::/64", "fd00:30:1::/64", "5.17"]);
    }
    rig.attach_with("six=7002:[::1]:7003", &["--allow", "fe80::/64"])?;
    rig.expect(SIX, Moved::accepted(1), || exchange(&mut dial_as(&rig, source, GATEWAY_A6)??, b"admitted"))?;
    let seen: Vec<_> = service.peers().iter().map(|peer| peer.remote.ip()).collect();
    ensure!(seen == [source], "the service saw {seen:?}");
    rig.expect(SIX, Moved::denied(1), || refused(&rig.net.a1, gateway6()))
}

fn link_local_gateway() -> Result<()> {
    let rig = Rig::new()?;
    let (source, bridge) = add_link_local(&rig)?;
    let _service = Service::start(&rig.net.host, at6(Ipv6Addr::LOCALHOST, 7003))?;
    rig.attach("six=7002:[::1]:7003")?;
    let attachment = rig.expect_state(SIX, "ready")?;
    ensure!(attachment.gateways == [GATEWAY_A6.to_string()], "the gateways are {:?}", attachment.gateways);
    rig.expect(SIX, Moved::NOTHING, || {
        let outcome = dial_as(&rig, source, bridge)?;
        ensure!(matches!(outcome, Err(Errno::ECONNREFUSED)), "{bridge} answered {outcome:?}");
        Ok(())
    })
}

fn mptcp_service(rig: &Rig, address: SocketAddr) -> Result<Service> {
    rig.net.host.sysctl("net/mptcp/enabled", "1")?;
    Service::serve(rig.net.host.run(|| mptcp_listener(address))?)
}

fn dual_stack_mptcp() -> Result<()> {
    let rig = Rig::new()?;
    let address = at6(Ipv6Addr::UNSPECIFIED, 7003);
    let before = mptcp_service(&rig, address)?;
    attach_both(&rig, &[])?;
    both_families(&rig, &before, true)?;
    before.stop();
    // To a plain listener and back, as `mptcp::*` does for IPv4; a new MPTCP listener takes another attach.
    let plain = Service::start(&rig.net.host, address)?;
    both_families(&rig, &plain, false)?;
    plain.stop();
    let after = mptcp_service(&rig, address)?;
    attach_both(&rig, &[])?;
    both_families(&rig, &after, true)
}

/// As in `mptcp::*`: the ACK needs the listener again.
fn mptcp_syn_cookies() -> Result<()> {
    let rig = Rig::new()?;
    let service = mptcp_service(&rig, at6(Ipv6Addr::UNSPECIFIED, 7003))?;
    attach_both(&rig, &[])?;
    rig.net.host.sysctl("net/ipv4/tcp_syncookies", "2")?;
    let mut held = Vec::new();
    let mut visit = |gateway| {
        let stream = hold(&rig.net.a1, gateway)?;
        let own = stream.local_addr()?;
        held.push(stream);
        Ok(own)
    };
    (0..3).try_for_each(|_| both_families_by(&rig, &service, true, &mut visit))?;
    ended_by_service(service, held)
}
