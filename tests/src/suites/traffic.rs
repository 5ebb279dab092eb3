//! `netns::*`: what a steered connection carries is what a direct one would carry.
//!
//! Invariant: byte counts and contents are compared, not only connection success.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};

use super::Test;
use crate::harness::client::{answers, connect, dial, exchange, finish, refused};
use crate::harness::noise::Noise;
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::{Peer, Port, Service, TRAILER, listener};
use crate::harness::topology::{A1, A1_6, GATEWAY_A, GATEWAY_A6, at, at6, local};
use crate::harness::wait::{patience, scaled, until};

pub(super) const TESTS: &[Test] = &[
    Test::new("netns::half_close_delivers_the_rest", half_close).in_kernels(),
    Test::new("netns::large_transfers_are_intact_both_ways", large_transfer),
    Test::new("netns::thousand_concurrent_connections", many_at_once),
    Test::new("netns::same_client_port_again_after_the_service_closed_first", time_wait_reuse).in_kernels(),
    Test::new("netns::ipv6_loopback_target_on_an_ipv6_gateway", ipv6),
];

const NAME: &str = "br-a-tcp-7001";

fn gateway() -> SocketAddr {
    at(GATEWAY_A, 7001)
}

/// Bytes that repeat nowhere nearby, so loss and reordering both show.
fn pattern(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Noise::new(1).fill(&mut bytes);
    bytes
}

fn half_close() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    let sent = pattern(100_000);
    let received = rig.expect(NAME, Moved::accepted(1), || {
        let mut stream = connect(&rig.net.a1, gateway())?;
        stream.write_all(&sent)?;
        stream.shutdown(Shutdown::Write)?;
        let mut received = Vec::new();
        stream.read_to_end(&mut received)?;
        Ok(received)
    })?;
    let (echo, rest) = received.split_at(received.len().min(sent.len()));
    ensure!(
        echo == sent,
        "the echo after half-close differs, {} of {} bytes came",
        received.len(),
        sent.len()
    );
    ensure!(rest == TRAILER, "after the echo came {} bytes", rest.len());
    Ok(())
}

fn large_transfer() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    let sent = pattern(8 << 20);
    rig.expect(NAME, Moved::accepted(1), || {
        let stream = connect(&rig.net.a1, gateway())?;
        stream.set_read_timeout(Some(patience(20)))?;
        echo_all(stream, &sent)
    })
}

/// Sends and receives at the same time, as the echo holds only a window's worth.
fn echo_all(mut stream: TcpStream, sent: &[u8]) -> Result<()> {
    let mut writer = stream.try_clone()?;
    std::thread::scope(|scope| {
        let sending = scope.spawn(move || -> std::io::Result<()> {
            writer.write_all(sent)?;
            writer.shutdown(Shutdown::Write)
        });
        let mut received = Vec::with_capacity(sent.len() + TRAILER.len());
        stream.read_to_end(&mut received).context("failed to receive the echo")?;
        sending.join().expect("the sender does not panic").context("failed to send")?;
        let (echo, rest) = received.split_at(received.len().min(sent.len()));
        ensure!(echo == sent, "the echo differs: {} of {} bytes came", received.len(), sent.len());
        ensure!(rest == TRAILER, "after the echo came {} bytes", rest.len());
        Ok(())
    })
}

fn many_at_once() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    let count = scaled(1000);
    rig.expect(NAME, Moved::accepted(count), || {
        let open =
            rig.net.a1.run(|| (0..count).map(|_| dial(gateway())).collect::<std::io::Result<Vec<_>>>());
        let mut streams = open.context("failed to open all connections")?;
        for stream in &mut streams {
            exchange(stream, b"all are open at once")?;
        }
        streams.into_iter().try_for_each(finish)
    })?;
    ensure!(service.peers().len() == count, "the service saw {} of {count}", service.peers().len());
    Ok(())
}

/// The service's side keeps the old connection in TIME_WAIT; a new SYN from the same client port
/// has to reach the listener at once.
fn time_wait_reuse() -> Result<()> {
    let rig = Rig::new()?;
    let socket = listener(&rig.net.host, local(7001), Port::Exclusive)?;
    socket.set_nonblocking(true)?;
    rig.attach("7001")?;
    rig.expect(NAME, Moved::accepted(5), || {
        for _ in 0..5 {
            let mut client = rig.net.a1.run(|| dial_from(40_001))?;
            drop(until("the service gets the connection", patience(5), || Ok(socket.accept().ok()))?);
            ensure!(client.read(&mut [0; 1])? == 0, "the service closed first");
        }
        Ok(())
    })
}

fn dial_from(port: u16) -> Result<TcpStream> {
    let fd = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(at(A1, port)))?;
    socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(gateway())).context("failed to connect again")?;
    let stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(patience(5)))?;
    Ok(stream)
}

fn ipv6() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, at6(Ipv6Addr::LOCALHOST, 7001))?;
    let gateway6 = at6(GATEWAY_A6, 7001);
    refused(&rig.net.a1, gateway6)?;
    rig.attach("7001:::1:7001")?;
    let attachment = rig.expect_state(NAME, "ready")?;
    let name = GATEWAY_A6.to_string();
    ensure!(attachment.gateways.contains(&name), "{name} is not among {:?}", attachment.gateways);
    let remote = rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway6))?;
    ensure!(remote.ip() == A1_6, "the client's own address is {remote}");
    ensure!(service.peers() == [Peer { remote, local: gateway6 }], "the service saw {:?}", service.peers());
    // An IPv6-only service cannot answer IPv4, here as on loopback itself.
    refused(&rig.net.a1, gateway())?;
    rig.attach("7001:[::1]:7001")?;
    ensure!(rig.cli().status()?.len() == 1, "the bracketed spelling made another attachment");
    service.stop();
    rig.expect(NAME, Moved::no_listener(1), || refused(&rig.net.a1, gateway6))
}
