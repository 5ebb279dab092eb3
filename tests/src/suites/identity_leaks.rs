//! `identity::*`, the attacks: who must not look local, and whom else the loopback identity must not concern.
//!
//! Invariant: each trial first proves that the attachment's own clients do look local.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};

use super::Test;
use crate::harness::client::{answers, connect, refused, round};
use crate::harness::proc::run_in;
use crate::harness::raw::{Checksum, FIN, SEGMENT_PORT, SYN, send_segment};
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::{Peer, Service};
use crate::harness::sys::mptcp_listener;
use crate::harness::topology::{A1, A2, GATEWAY_A, GATEWAY_B, at, local};
use crate::harness::wait::{patience, until};

pub(super) const TESTS: &[Test] = &[
    Test::new("identity::other_attachments_of_the_service_show_the_truth", other_attachments),
    Test::new("identity::local_clients_and_other_services_are_not_concerned", others),
    Test::new("identity::whoever_takes_the_gateways_port_sees_the_container", usurper).in_kernels(),
    Test::with_mptcp("identity::whoever_takes_the_port_of_an_mptcp_service_sees_it_too", mptcp_usurper)
        .in_kernels(),
    Test::new("identity::another_namespace_with_the_same_addresses_is_not_concerned", same_addresses)
        .in_kernels(),
    Test::new("identity::only_allowed_sources_look_local", allow_list),
    Test::on_host("identity::a_dropped_syn_leaves_nothing_for_a_later_connection", dropped_syn),
];

const NAME: &str = "br-a-tcp-7001";
const LOOPBACK: &[&str] = &["--identity", "loopback"];
/// The port of clients that come again.
const SOURCE_PORT: u16 = 40_404;

fn gateway() -> SocketAddr {
    at(GATEWAY_A, 7001)
}

fn remotes(service: &Service) -> Vec<std::net::IpAddr> {
    service.peers().iter().map(|peer| peer.remote.ip()).collect()
}

/// A client of the attachment looks local.
fn looks_local(rig: &Rig, service: &Service) -> Result<()> {
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))?;
    let seen = remotes(service).pop();
    ensure!(seen == Some(Ipv4Addr::LOCALHOST.into()), "the service saw {seen:?}");
    Ok(())
}

/// A service on 127.0.0.1 that is shown local clients.
fn shown() -> Result<(Rig, Service)> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    rig.attach_with("7001", LOOPBACK)?;
    looks_local(&rig, &service)?;
    Ok((rig, service))
}

fn other_attachments() -> Result<()> {
    let (rig, service) = shown()?;
    rig.attach("7002:7001")?;
    rig.cli().ok(&["attach", "7001", "--bridge", "br-b"])?;
    let other_port = answers(&rig.net.a1, at(GATEWAY_A, 7002))?;
    let other_bridge = answers(&rig.net.b1, at(GATEWAY_B, 7001))?;
    let expected = [(other_port, at(GATEWAY_A, 7002)), (other_bridge, at(GATEWAY_B, 7001))]
        .map(|(remote, local)| Peer { remote, local });
    ensure!(service.peers()[1..] == expected, "the service saw {:?}", service.peers());
    looks_local(&rig, &service)
}

fn others() -> Result<()> {
    let (rig, service) = shown()?;
    let own = rig.expect(NAME, Moved::NOTHING, || rig.net.host.run(|| round(local(7001))))?;
    let seen = service.peers()[1];
    ensure!(seen == Peer { remote: own, local: local(7001) }, "of a local client the service saw {seen:?}");
    let container = Service::start(&rig.net.a1, at(A1, 7001))?;
    let remote = answers(&rig.net.a2, at(A1, 7001))?;
    let seen = container.peers();
    ensure!(seen == [Peer { remote, local: at(A1, 7001) }], "a container's service saw {seen:?}");
    let own = Service::start(&rig.net.host, at(GATEWAY_A, 7003))?;
    let remote = answers(&rig.net.a1, at(GATEWAY_A, 7003))?;
    ensure!(remote.ip() == A1 && own.peers()[0].remote == remote, "the host's service saw {:?}", own.peers());
    Ok(())
}

/// The service is gone, and another program listens on the gateway itself. Its clients come with the addresses of
/// connections that were on their way to the service.
fn usurper() -> Result<()> {
    let (rig, service) = shown()?;
    is_usurped(&rig, service)
}

fn mptcp_usurper() -> Result<()> {
    let rig = Rig::new()?;
    rig.net.host.sysctl("net/mptcp/enabled", "1")?;
    let service = Service::serve(rig.net.host.run(|| mptcp_listener(local(7001)))?)?;
    rig.attach_with("7001", LOOPBACK)?;
    rig.expect_tc(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))?;
    ensure!(remotes(&service) == [Ipv4Addr::LOCALHOST], "the service saw {:?}", remotes(&service));
    is_usurped(&rig, service)
}

/// Puts another program into the place of the service, which sees whom it talks to.
fn is_usurped(rig: &Rig, service: Service) -> Result<()> {
    half_made(rig)?;
    service.stop();
    let usurper = Service::start(&rig.net.host, gateway())?;
    drop(rig.net.a1.run(|| dial_from(SOURCE_PORT, 1))?);
    answers(&rig.net.a1, gateway())?;
    let seen = remotes(&usurper);
    ensure!(seen == [A1, A1], "the other program saw {seen:?}");
    Ok(())
}

/// Drops what comes from the gateway's port.
const DEAF: &str = "table ip deaf { chain c { type filter hook input priority 0; tcp sport 7001 drop; }; }";

/// A connection from [`SOURCE_PORT`] whose SYN was assigned to the service, and whose handshake never ends.
fn half_made(rig: &Rig) -> Result<()> {
    let before = rig.cli().attachment(NAME)?.stage("steered")?;
    rig.net.a1.nft(DEAF)?;
    let outcome = rig.net.a1.run(|| dial_from(SOURCE_PORT, 1));
    ensure!(outcome.is_err(), "the handshake was completed");
    rig.net.a1.nft("delete table ip deaf")?;
    let after = rig.cli().attachment(NAME)?.stage("steered")?;
    ensure!(after > before, "no SYN was assigned to the service");
    Ok(())
}

/// The kernel drops a SYN that was assigned to the service, on one processor. Later, when the service sees containers
/// again, a connection with the same addresses begins on another processor, and its handshake ends on that one.
fn dropped_syn() -> Result<()> {
    let (rig, service) = shown()?;
    ensure!(std::thread::available_parallelism()?.get() > 1, "this takes two processors");
    receive_on(&rig, ONLY_SECOND)?;
    rig.net.a1.run(|| send_segment(A1, gateway(), SYN | FIN, Checksum::Right))?;
    until("the SYN was assigned", patience(10), || {
        Ok((rig.cli().attachment(NAME)?.stage("steered")? == 2).then_some(()))
    })?;
    rig.attach("7001")?;
    rig.net.a1.nft(DEAF)?;
    receive_on(&rig, ONLY_FIRST)?;
    let client = std::thread::scope(|scope| {
        let dialling = scope.spawn(|| rig.net.a1.run(|| dial_from(SEGMENT_PORT, 10)));
        until("the second SYN was assigned", patience(10), || {
            Ok((rig.cli().attachment(NAME)?.stage("steered")? > 2).then_some(()))
        })?;
        receive_on(&rig, ONLY_SECOND)?;
        rig.net.a1.nft("delete table ip deaf")?;
        dialling.join().expect("the client does not panic")
    })?;
    drop(client);
    until("the service saw the connection", patience(10), || Ok((service.peers().len() == 2).then_some(())))?;
    let seen = remotes(&service)[1];
    ensure!(seen == A1, "the service saw {seen}");
    Ok(())
}

/// Masks of processors, as in `rps_cpus`.
const ONLY_FIRST: &str = "1";
const ONLY_SECOND: &str = "2";

/// Which processor handles what comes from a1. The files of sysfs are those of the namespace that mounted it.
fn receive_on(rig: &Rig, cpus: &str) -> Result<()> {
    let script =
        format!("mount -t sysfs sysfs /sys && echo {cpus} > /sys/class/net/va1/queues/rx-0/rps_cpus");
    let mut command = Command::new("unshare");
    run_in(&rig.net.host, command.args(["--mount", "sh", "-c", &script]))?.success()
}

/// Connects from a port of its own to the gateway, in the calling thread's namespace; gives up after some seconds.
fn dial_from(port: u16, seconds: u64) -> Result<TcpStream> {
    let fd = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    // Also bounds connect(2).
    let limit = nix::sys::time::TimeVal::new(i64::try_from(patience(seconds).as_secs())?, 0);
    socket::setsockopt(&fd, sockopt::SendTimeout, &limit)?;
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(at(A1, port)))?;
    socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(gateway())).context("failed to connect")?;
    Ok(TcpStream::from(fd))
}

/// Every topology has the same addresses, and the programs see connections in all of them.
fn same_addresses() -> Result<()> {
    let (rig, other) = (Rig::new()?, Rig::new()?);
    let service = Service::start(&rig.net.host, local(7001))?;
    let stranger = Service::start(&other.net.host, gateway())?;
    rig.attach_with("7001", LOOPBACK)?;
    looks_local(&rig, &service)?;
    half_made(&rig)?;
    drop(other.net.a1.run(|| dial_from(SOURCE_PORT, 1))?);
    answers(&other.net.a1, gateway())?;
    let seen = remotes(&stranger);
    ensure!(seen == [A1, A1], "a service of another namespace saw {seen:?}");
    looks_local(&rig, &service)
}

fn allow_list() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    let allow = format!("{A2}");
    rig.attach_with("7001", &["--identity", "loopback", "--allow", &allow])?;
    rig.expect(NAME, Moved::denied(1), || refused(&rig.net.a1, gateway()))?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a2, gateway()))?;
    refused(&rig.net.b1, gateway())?;
    refused(&rig.net.outside, gateway())?;
    refused(&rig.net.host, gateway())?;
    ensure!(remotes(&service) == [Ipv4Addr::LOCALHOST], "the service saw {:?}", remotes(&service));
    // The others' way in, for comparison: a listener on every address, which the attachment does not concern.
    let open = Service::start(&rig.net.host, at(Ipv4Addr::UNSPECIFIED, 7009))?;
    let client = connect(&rig.net.outside, at(GATEWAY_A, 7009))?.local_addr()?;
    answers(&rig.net.outside, at(GATEWAY_A, 7009))?;
    ensure!(open.peers()[0].remote == client, "a stranger looks like {:?}", open.peers());
    Ok(())
}
