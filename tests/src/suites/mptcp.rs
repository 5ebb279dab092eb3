//! `mptcp::*`: listeners that a socket map refuses are steered to by the tc program.
//!
//! Invariant: the counters move on datapath `steer-tc`, on a host with NAT rules (as every topology here is), and the
//! service sees the container's own address.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use bridge_common::maps::{SynCount, TargetKey};
use bridge_common::names::{MPTCP_TARGETS, SYN_COUNT};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};

use super::Test;
use crate::harness::cli::Cli;
use crate::harness::client::{answers, connect, ended_by_service, exchange, finish, hold, refused};
use crate::harness::pinned;
use crate::harness::proc::run_in;
use crate::harness::raw::{Checksum, FIN, SYN, send_segment, send_syn_frame};
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::{Peer, Service};
use crate::harness::sys::{ip_options, mptcp_listener, mptcp_v6only_listener};
use crate::harness::topology::{
    A1, A1_6, DOCKER_LIKE_RULES, GATEWAY_A, GATEWAY_A6, GATEWAY_B, OUTSIDE, at, at6, local,
};
use crate::harness::wait::{kernel_at_least, patience, until};

pub(super) const TESTS: &[Test] = &[
    Test::with_mptcp("mptcp::listener_is_steered_to_with_the_containers_address", steered).in_kernels(),
    Test::with_mptcp("mptcp::listener_that_changes_its_kind_on_restart_is_followed", changes_kind)
        .in_kernels(),
    Test::with_mptcp("mptcp::handshake_with_syn_cookies", syn_cookies).in_kernels(),
    Test::with_mptcp("mptcp::handshake_with_ip_options", with_ip_options),
    Test::with_mptcp("mptcp::with_and_without_bridge_netfilter", bridge_netfilter).in_kernels(),
    Test::with_mptcp("mptcp::only_the_attached_side_gets_in", closed_to_others).in_kernels(),
    Test::with_mptcp("mptcp::container_with_an_mptcp_listener_gets_nothing", attacker).in_kernels(),
    Test::with_mptcp("mptcp::ipv6_and_dual_stack_listeners", ipv6),
    Test::with_mptcp("mptcp::large_transfer_and_half_close", large_transfer),
    Test::with_mptcp("mptcp::a_restarted_listener_waits_until_it_is_transparent", restarted).in_kernels(),
    Test::with_mptcp("mptcp::a_listener_for_ipv6_only_changes_nothing", v6only_neighbour).in_kernels(),
    Test::with_mptcp("mptcp::a_vlan_on_the_bridge_stays_out", vlan).in_kernels(),
    Test::on_host("mptcp::the_listener_is_transparent_while_it_is_attached", transparent),
    Test::with_mptcp("mptcp::syns_that_make_no_request_cost_nothing_for_long", odd_syns),
    Test::with_mptcp("mptcp::detach_takes_the_filter_away_and_leaves_others", detach_leaves_others)
        .in_kernels(),
    Test::with_mptcp("mptcp::a_deleted_qdisc_is_noticed_and_mended", taken_away).in_kernels(),
    Test::with_mptcp("mptcp::what_nobody_wants_any_more_is_forgotten", forgotten),
    Test::on_host("mptcp::no_nft_is_needed", without_nft),
];

const NAME: &str = "br-a-tcp-7001";

fn gateway() -> SocketAddr {
    at(GATEWAY_A, 7001)
}

/// An echo service on an MPTCP listener in the rig's host.
fn mptcp_service(rig: &Rig, address: SocketAddr) -> Result<Service> {
    rig.net.host.sysctl("net/mptcp/enabled", "1")?;
    Service::serve(rig.net.host.run(|| mptcp_listener(address))?)
}

/// The service, attached to br-a.
fn attached() -> Result<(Rig, Service)> {
    let rig = Rig::new()?;
    let service = mptcp_service(&rig, local(7001))?;
    rig.attach("7001")?;
    let attachment = rig.cli().attachment(NAME)?;
    let found = (attachment.datapath.as_str(), attachment.state.as_str());
    ensure!(found == ("steer-tc", "ready"), "the attachment is {found:?}");
    Ok((rig, service))
}

/// `count` whole connections from a1 that are steered to the MPTCP listener.
fn served(rig: &Rig, count: usize) -> Result<()> {
    rig.expect_tc(NAME, Moved::accepted(count), || {
        (0..count).try_for_each(|_| answers(&rig.net.a1, gateway()).map(drop))
    })
}

/// Whether the service may have answered SYNs with cookies. Only then are the client's packets looked up, which must
/// not be the usual state.
fn syn_count(rig: &Rig) -> Result<SynCount> {
    Ok(pinned::array::<SynCount>(&rig.net.host, SYN_COUNT)?.get(&0, 0)?)
}

/// Nothing says that there were cookies.
fn no_cookies(rig: &Rig) -> Result<()> {
    let count = syn_count(rig)?;
    ensure!((count.pending, count.until_ns) == (0, 0), "SYNs made no request: {count:?}");
    Ok(())
}

fn steered() -> Result<()> {
    let (rig, service) = attached()?;
    let remote = rig.expect_tc(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))?;
    ensure!(remote.ip() == A1, "the client's own address is {remote}");
    let seen = service.peers();
    ensure!(seen == [Peer { remote, local: gateway() }], "the service saw {seen:?}");
    service.stop();
    rig.expect(NAME, Moved::no_listener(2), || {
        refused(&rig.net.a1, gateway())?;
        refused(&rig.net.a1, gateway())
    })
}

/// A listener that nobody made transparent yet gets nothing, and no other one gets what is meant for it.
fn restarted() -> Result<()> {
    let (rig, service) = attached()?;
    service.stop();
    let service = mptcp_service(&rig, local(7001))?;
    rig.expect_tc(NAME, Moved::no_listener(2), || {
        refused(&rig.net.a1, gateway())?;
        refused(&rig.net.a1, gateway())
    })?;
    let waits = rig.cli().attachment(NAME)?;
    ensure!(waits.state == "waiting-for-listener", "{}", waits.raw);
    waits.expect_finding("mptcp-not-prepared")?;
    rig.attach("7001")?;
    served(&rig, 2)?;
    ensure!(service.peers().len() == 2, "the service saw {:?}", service.peers());
    Ok(())
}

/// A listener for IPv6 only, which anybody may have there, changes nothing for an IPv4 target.
fn v6only_neighbour() -> Result<()> {
    let rig = Rig::new()?;
    let plain = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    rig.net.host.sysctl("net/mptcp/enabled", "1")?;
    let other = Service::serve(rig.net.host.run(|| mptcp_v6only_listener(7001))?)?;
    rig.expect(NAME, Moved::accepted(2), || {
        answers(&rig.net.a1, gateway())?;
        answers(&rig.net.a1, gateway())
    })?;
    rig.attach("7001")?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))?;
    plain.stop();
    rig.expect(NAME, Moved::no_listener(1), || refused(&rig.net.a1, gateway()))?;
    ensure!(other.peers().is_empty(), "the other listener saw {:?}", other.peers());
    // And the other way round: it does not take the place of an MPTCP service.
    let service = mptcp_service(&rig, local(7001))?;
    rig.attach("7001")?;
    served(&rig, 2)?;
    ensure!(service.peers().len() == 2 && other.peers().is_empty(), "{:?}", other.peers());
    Ok(())
}

/// A frame with a VLAN tag is for an interface on top of the bridge, which nothing is attached to.
fn vlan() -> Result<()> {
    let (rig, service) = attached()?;
    rig.net.host.ip("link set br-a address 02:00:00:00:00:aa\n")?;
    rig.net.a1.ip("neigh flush dev eth0\n")?;
    let bridge = [2, 0, 0, 0, 0, 0xaa];
    let send = |vlan| rig.net.a1.run(|| send_syn_frame("eth0", bridge, vlan, A1, gateway()));
    let steered = || rig.cli().attachment(NAME)?.stage("steered");
    send(Some(20))?;
    send(None)?;
    until("the frame without a tag is steered", patience(10), || Ok((steered()? > 0).then_some(())))?;
    ensure!(steered()? == 1, "the frame with a tag was steered, too");
    served(&rig, 1)?;
    ensure!(service.peers().len() == 1, "the service saw {:?}", service.peers());
    Ok(())
}

/// What was done to the service's socket is taken back, and so is it when it was detached while others stay.
fn transparent() -> Result<()> {
    let rig = Rig::new()?;
    rig.net.host.sysctl("net/mptcp/enabled", "1")?;
    let listener = rig.net.host.run(|| mptcp_listener(local(7001)))?;
    let is_set = || socket::getsockopt(&listener, sockopt::IpTransparent);
    ensure!(!is_set()?, "the listener is transparent from the start");
    rig.attach("other=7002")?;
    for detach in ["7001", "--all"] {
        rig.attach("7001")?;
        ensure!(is_set()?, "attach did not make the listener transparent");
        rig.cli().ok(&["detach", detach])?;
        ensure!(!is_set()?, "detach {detach} left the listener transparent");
    }
    // What the service did itself stays.
    socket::setsockopt(&listener, sockopt::IpTransparent, &true)?;
    rig.attach("7001")?;
    rig.cli().ok(&["detach", "--all"])?;
    ensure!(is_set()?, "detach took away what the service had set");
    Ok(())
}

/// SYNs that no listener answers do not make the program look at every packet for ever.
fn odd_syns() -> Result<()> {
    let (rig, _service) = attached()?;
    rig.net.a1.run(|| send_segment(A1, gateway(), SYN | FIN, Checksum::Right))?;
    served(&rig, 1)?;
    let count = syn_count(&rig)?;
    ensure!((count.pending, count.until_ns) == (0, 0), "a SYN with FIN is counted: {count:?}");
    rig.net.a1.run(|| send_segment(A1, gateway(), SYN, Checksum::Wrong))?;
    // The next SYN on the same processor shows that the kernel made nothing of it.
    until("the SYN is taken off the count", patience(10), || {
        answers(&rig.net.a1, gateway())?;
        Ok((syn_count(&rig)?.pending == 0).then_some(()))
    })?;
    let until_ns = syn_count(&rig)?.until_ns;
    ensure!(until_ns != 0, "a SYN without a request is taken for one with");
    Ok(())
}

/// The kind of its listener is followed with no userspace of ours in between, as far as it can be.
fn changes_kind() -> Result<()> {
    let rig = Rig::new()?;
    rig.attach("7001")?;
    rig.expect(NAME, Moved::no_listener(1), || refused(&rig.net.a1, gateway()))?;
    for _ in 0..2 {
        let plain = Service::start(&rig.net.host, local(7001))?;
        rig.expect(NAME, Moved::accepted(2), || {
            answers(&rig.net.a1, gateway())?;
            answers(&rig.net.a1, gateway())
        })?;
        plain.stop();
        let service = mptcp_service(&rig, local(7001))?;
        rig.expect_tc(NAME, Moved::no_listener(1), || refused(&rig.net.a1, gateway()))?;
        rig.attach("7001")?;
        served(&rig, 2)?;
        service.stop();
    }
    Ok(())
}

/// `tcp_syncookies=2`: the kernel keeps nothing between SYN and ACK, so the ACK needs the listener again. Its program
/// gives it only to packets it looks at, and before the first cookie it looks at SYNs alone.
fn syn_cookies() -> Result<()> {
    let (rig, service) = attached()?;
    served(&rig, 5)?;
    no_cookies(&rig)?;
    rig.net.host.sysctl("net/ipv4/tcp_syncookies", "2")?;
    let held = rig.expect_tc(NAME, Moved::accepted(5), || {
        (0..5).map(|_| hold(&rig.net.a1, gateway())).collect::<Result<Vec<_>>>()
    })?;
    let cookies = syn_count(&rig)?;
    ensure!(cookies.pending + cookies.until_ns > 0, "no SYN was answered with a cookie: {cookies:?}");
    rig.net.host.sysctl("net/ipv4/tcp_syncookies", "1")?;
    served(&rig, 5)?;
    ended_by_service(service, held)
}

fn with_ip_options() -> Result<()> {
    let (rig, _service) = attached()?;
    rig.expect_tc(NAME, Moved::accepted(1), || {
        let mut stream = rig.net.a1.run(dial_with_options)?;
        exchange(&mut stream, b"behind a longer IP header")?;
        finish(stream)
    })
}

fn dial_with_options() -> Result<TcpStream> {
    let fd = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // Four no-operation options: 4 bytes more.
    ip_options(&fd, &[1; 4])?;
    socket::setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(gateway()))
        .context("failed to connect with IP options")?;
    let stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(patience(5)))?;
    Ok(stream)
}

/// br_netfilter shows bridged packets to PREROUTING before the tc program sees them.
fn bridge_netfilter() -> Result<()> {
    let (rig, _service) = attached()?;
    for on in [false, true] {
        rig.net.host.bridge_netfilter(on)?;
        served(&rig, 2)?;
    }
    Ok(())
}

fn closed_to_others() -> Result<()> {
    let (rig, service) = attached()?;
    let before = rig.cli().attachment(NAME)?.counters;
    refused(&rig.net.b1, gateway())?;
    refused(&rig.net.b1, at(GATEWAY_B, 7001))?;
    refused(&rig.net.outside, gateway())?;
    refused(&rig.net.host, gateway())?;
    rig.attach_with("7001", &["--allow", "172.30.1.12"])?;
    rig.expect_tc(NAME, Moved::denied(1), || refused(&rig.net.a1, gateway()))?;
    rig.expect_tc(NAME, Moved::accepted(1), || answers(&rig.net.a2, gateway()))?;
    let after = rig.cli().attachment(NAME)?.counters;
    ensure!(after.accepted == before.accepted + 1, "accepted went from {before:?} to {after:?}");
    let seen: Vec<_> = service.peers().iter().map(|peer| peer.remote.ip()).collect();
    ensure!(seen.len() == 1 && !seen.contains(&OUTSIDE.into()), "the service saw {seen:?}");
    Ok(())
}

fn attacker() -> Result<()> {
    let rig = Rig::new()?;
    rig.attach("7001")?;
    rig.net.a2.sysctl("net/mptcp/enabled", "1")?;
    let attacker = Service::serve(rig.net.a2.run(|| mptcp_listener(local(7001)))?)?;
    rig.expect(NAME, Moved::no_listener(1), || refused(&rig.net.a1, gateway()))?;
    let service = mptcp_service(&rig, local(7001))?;
    rig.attach("7001")?;
    served(&rig, 4)?;
    ensure!(service.peers().len() == 4, "the service saw {:?}", service.peers());
    service.stop();
    rig.expect(NAME, Moved::no_listener(1), || refused(&rig.net.a1, gateway()))?;
    ensure!(attacker.peers().is_empty(), "the attacker got {:?}", attacker.peers());
    Ok(())
}

fn ipv6() -> Result<()> {
    let rig = Rig::new()?;
    let service = mptcp_service(&rig, at6(Ipv6Addr::LOCALHOST, 7001))?;
    rig.attach("7001:[::1]:7001")?;
    let gateway6 = at6(GATEWAY_A6, 7001);
    let remote = rig.expect_tc(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway6))?;
    ensure!(remote.ip() == A1_6, "the client's own address is {remote}");
    ensure!(service.peers() == [Peer { remote, local: gateway6 }], "the service saw {:?}", service.peers());
    no_cookies(&rig)?;
    service.stop();
    rig.cli().ok(&["detach", "--all"])?;
    // Bound to `::` of the loopback interface's mapped form, as Java and Go do.
    let mapped = "[::ffff:127.0.0.1]:7001".parse()?;
    let _service = mptcp_service(&rig, mapped)?;
    rig.attach("7001")?;
    served(&rig, 2)?;
    no_cookies(&rig)
}

fn large_transfer() -> Result<()> {
    let (rig, _service) = attached()?;
    let sent = vec![0x5a; 4 << 20];
    rig.expect_tc(NAME, Moved::accepted(1), || {
        let mut stream = connect(&rig.net.a1, gateway())?;
        stream.set_read_timeout(Some(patience(20)))?;
        let mut writer = stream.try_clone()?;
        let data = sent.clone();
        let sending = std::thread::spawn(move || {
            writer.write_all(&data).and_then(|()| writer.shutdown(std::net::Shutdown::Write))
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received)?;
        sending.join().expect("the sender does not panic")?;
        ensure!(received.starts_with(&sent), "{} of {} bytes came back", received.len(), sent.len());
        Ok(())
    })
}

fn detach_leaves_others() -> Result<()> {
    let (rig, _service) = attached()?;
    let ruleset = || -> Result<String> {
        let output = run_in(&rig.net.host, Command::new("nft").args(["-s", "list", "ruleset"]))?;
        output.success()?;
        Ok(output.stdout)
    };
    let before = ruleset()?;
    rig.attach("other=7002")?;
    rig.cli().ok(&["detach", "7001"])?;
    rig.cli().ok(&["detach", "--all"])?;
    ensure!(ruleset()? == before, "the rules were {before}, now they are {}", ruleset()?);
    refused(&rig.net.a1, gateway())
}

/// On Linux below 6.6 anybody can take the qdisc off, with the filter on it. A firewall that reloads by flushing
/// everything disturbs nothing.
fn taken_away() -> Result<()> {
    let (rig, _service) = attached()?;
    rig.net.host.nft("flush ruleset")?;
    served(&rig, 1)?;
    rig.net.host.nft(DOCKER_LIKE_RULES)?;
    served(&rig, 1)?;
    if !kernel_at_least(6, 6)? {
        run_in(&rig.net.host, Command::new("tc").args(["qdisc", "del", "dev", "br-a", "clsact"]))?
            .success()?;
        let attachment = rig.cli().attachment(NAME)?;
        let detail = attachment.raw["detail"].as_str().unwrap_or_default();
        ensure!(attachment.state == "failed" && detail.contains("attach again"), "{}", attachment.raw);
        attachment.expect_finding("mptcp-steering-missing")?;
        let plan = rig.cli().ok(&["attach", "7001", "--bridge", "br-a", "--dry-run"])?;
        ensure!(plan.contains("attach program steer_tc to br-a"), "{plan}");
        rig.attach("7001")?;
        served(&rig, 2)?;
    }
    rig.cli().ok(&["detach", "--all"])?;
    rig.net.host.nothing_pinned()
}

/// The address of an MPTCP listener that went is forgotten: a plain one that came unseen there is served as such.
fn forgotten() -> Result<()> {
    let (rig, service) = attached()?;
    let noted = || -> Result<usize> {
        Ok(pinned::hash::<TargetKey, u64>(&rig.net.host, MPTCP_TARGETS)?
            .keys()
            .collect::<Result<Vec<_>, _>>()?
            .len())
    };
    ensure!(noted()? == 1, "{} addresses are noted", noted()?);
    rig.attach("other=7002")?;
    ensure!(noted()? == 1, "the listener that is there was forgotten");
    rig.cli().ok(&["detach", "7001"])?;
    ensure!(noted()? == 0, "{} addresses are noted for nobody", noted()?);
    service.stop();
    Ok(())
}

/// An administrator may have no nftables, or another PATH.
fn without_nft() -> Result<()> {
    let rig = Rig::new()?;
    let _service = mptcp_service(&rig, local(7001))?;
    let cli = Cli::new(&rig.net.host);
    let attach = |port| -> Result<_> {
        let mut command = cli.command(&["attach", port, "--bridge", "br-a"])?;
        run_in(&rig.net.host, command.env("PATH", "/nonexistent"))
    };
    attach("7001")?.success()?;
    served(&rig, 2)
}
