//! No byte is lost, reordered, repeated or held back.

use std::{
    io::{IoSlice, Read, Write},
    mem::MaybeUninit,
    net::TcpStream,
    os::fd::AsFd,
    thread,
    time::Duration,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, send, sendmsg};

use super::*;
use crate::relay::ProxyProtocol;

/// Both directions at once, each ended by FIN.
fn exchange(client: &TcpStream, target: &TcpStream, len: usize) {
    thread::scope(|scope| {
        for (index, (from, to)) in [(client, target), (target, client)].into_iter().enumerate() {
            let seed = 1 + index as u64;
            scope.spawn(move || {
                write_noise(from, seed, len);
                from.shutdown(std::net::Shutdown::Write).unwrap();
            });
            scope.spawn(move || {
                read_noise(to, seed, len);
                assert_fin(to);
            });
        }
    });
}

#[test]
fn random_64_mib_both_ways_at_once() {
    const LEN: usize = 64 << 20;
    let target = listener();
    let relay = relay_to(&target);
    let (client, server) = pair(&relay, &target);
    exchange(&client, &server, LEN);
    eventually("a clean end", || relay.stats().active == 0);
    let stats = relay.stats();
    assert_eq!((stats.bytes_up, stats.bytes_down), (LEN as u64, LEN as u64));
    assert_eq!((stats.accepted, stats.resets), (1, 0));
}

#[test]
fn sixteen_connections_at_once_on_several_workers() {
    let target = listener();
    let relay = Relay::start(RelayConfig { workers: Some(3), ..config_to(&target) }).unwrap();
    let pairs: Vec<_> = (0..16).map(|_| pair(&relay, &target)).collect();
    thread::scope(|scope| {
        for (client, server) in &pairs {
            scope.spawn(|| exchange(client, server, 2 << 20));
        }
    });
    eventually("a clean end", || relay.stats().active == 0);
    assert_eq!((relay.stats().accepted, relay.stats().resets), (16, 0));
}

#[test]
fn one_byte_writes_arrive_one_by_one() {
    let target = listener();
    let relay = relay_to(&target);
    let (mut client, mut server) = pair(&relay, &target);
    client.set_nodelay(true).unwrap();
    for byte in (0..=255).cycle().take(2000) {
        if byte % 64 == 0 {
            // The kernel is given a direction only when the relay finds it empty.
            thread::sleep(Duration::from_millis(2));
        }
        client.write_all(&[byte]).unwrap();
        assert_eq!(read_exactly(&server, 1), [byte]);
        server.write_all(&[!byte]).unwrap();
        assert_eq!(read_exactly(&client, 1), [!byte]);
    }
    let stats = relay.stats();
    assert_eq!(stats.bytes_up, 2000);
    if std::env::var_os(REDIRECT).is_some() {
        assert!(stats.offloaded == 1 && stats.redirected > 3000, "{stats:?}");
    }
}

/// The second of two small writes waits for an acknowledgement, usually 40 ms, on a socket without
/// TCP_NODELAY.
#[test]
fn two_small_writes_do_not_wait_for_an_acknowledgement() {
    let target = listener();
    let relay = relay_to(&target);
    let (client, server) = pair(&relay, &target);
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    for (mut asks, mut answers) in [(&client, &server), (&server, &client)] {
        let mut times: Vec<_> = (0..41)
            .map(|_| {
                asks.write_all(b"?").unwrap();
                read_exactly(answers, 1);
                let start = Instant::now();
                answers.write_all(b"a").unwrap();
                thread::sleep(Duration::from_millis(2));
                answers.write_all(b"b").unwrap();
                read_exactly(asks, 2);
                start.elapsed()
            })
            .collect();
        times.sort();
        assert!(times[20] < Duration::from_millis(25), "median {:?}", times[20]);
    }
}

#[test]
fn small_and_bulk_take_turns() {
    let target = listener();
    let relay = relay_to(&target);
    let (client, mut server) = pair(&relay, &target);
    for (round, len) in [1, 65_535, 65_536, 65_537, 3_000_000, 7, 1_000_000, 1].into_iter().enumerate() {
        thread::scope(|scope| {
            scope.spawn(|| write_noise(&client, 9 + round as u64, len));
            read_noise(&server, 9 + round as u64, len);
        });
        server.write_all(b"ok").unwrap();
        assert_eq!(read_exactly(&client, 2), b"ok");
    }
}

#[test]
fn the_server_may_speak_first() {
    let target = listener();
    let relay = relay_to(&target);
    let (mut client, mut server) = pair(&relay, &target);
    server.write_all(b"220 ready").unwrap();
    assert_eq!(read_exactly(&client, 9), b"220 ready");
    client.write_all(b"HELO").unwrap();
    assert_eq!(read_exactly(&server, 4), b"HELO");
}

/// A UNIX listener whose queue is full does not let the relay connect until it accepts.
#[test]
fn bytes_sent_before_the_target_is_connected_wait_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let target = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&target, 0).unwrap();
    let _in_the_queue = UnixStream::connect(&path).unwrap();
    let relay = Relay::start(config(Target::Unix(path))).unwrap();
    let mut client = connect(relay.local_addr());
    client.write_all(b"early").unwrap();
    thread::sleep(Duration::from_millis(60));
    assert_eq!((relay.stats().active, relay.stats().accepted), (1, 0));
    drop(target.accept().unwrap());
    let (server, _) = target.accept().unwrap();
    assert_eq!(read_exactly(&server, 5), b"early");
}

#[test]
fn a_unix_target_gets_and_gives_bulk() {
    let (_relay, client, server) = unix_pair();
    const LEN: usize = 16 << 20;
    thread::scope(|scope| {
        scope.spawn(|| write_noise(&client, 1, LEN));
        scope.spawn(|| write_noise(&server, 2, LEN));
        scope.spawn(|| read_noise(&client, 2, LEN));
        read_noise(&server, 1, LEN);
    });
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!((&server).read(&mut [0]).unwrap(), 0);
    (&server).write_all(b"bye").unwrap();
    drop(server);
    assert_eq!(read_exactly(&client, 3), b"bye");
    assert_fin(&client);
}

/// A read stops behind a message that carried descriptors, whatever follows it. Many rounds, since the relay may be
/// quick enough to read between the two messages.
#[test]
fn bytes_behind_a_descriptor_do_not_wait_for_others() {
    let (_relay, client, mut server) = unix_pair();
    for _ in 0..200 {
        send_with_descriptor(&server, b"aa");
        server.write_all(b"bb").unwrap();
        assert_eq!(read_exactly(&client, 4), b"aabb");
    }
}

fn send_with_descriptor(socket: &UnixStream, bytes: &[u8]) {
    let carried = [socket.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    assert!(message.push(SendAncillaryMessage::ScmRights(&carried)));
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut message, SendFlags::empty()).unwrap();
    assert_eq!(sent, bytes.len());
}

#[test]
fn the_proxy_header_comes_before_the_first_byte_and_without_one() {
    let target = listener();
    let version = Some(ProxyProtocol::V1);
    let relay = Relay::start(RelayConfig { proxy_protocol: version, ..config_to(&target) }).unwrap();
    let (mut client, server) = pair(&relay, &target);
    let (from, to) = (client.local_addr().unwrap(), relay.local_addr());
    let header = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n", from.port(), to.port());
    assert_eq!(read_exactly(&server, header.len()), header.as_bytes());
    client.write_all(b"hello").unwrap();
    assert_eq!(read_exactly(&server, 5), b"hello");
    assert_eq!(relay.stats().bytes_up, 5);
}

/// Three parts, so that a read stops in front of the urgent byte and another one behind it.
#[test]
fn an_urgent_byte_arrives_in_its_place() {
    let target = listener();
    let relay = relay_to(&target);
    let (client, server) = pair(&relay, &target);
    for (from, to) in [(&client, &server), (&server, &client)] {
        for _ in 0..20 {
            send(from, b"ab!", SendFlags::OOB).unwrap();
            assert_eq!(read_exactly(to, 3), b"ab!");
        }
        send(from, b"ab!", SendFlags::OOB).unwrap();
        send(from, b"cd", SendFlags::empty()).unwrap();
        assert_eq!(read_exactly(to, 5), b"ab!cd");
    }
}

#[test]
fn an_urgent_byte_does_not_stop_bulk() {
    const LEN: usize = 4 << 20;
    let target = listener();
    let relay = relay_to(&target);
    let (client, server) = pair(&relay, &target);
    thread::scope(|scope| {
        scope.spawn(|| {
            for part in 0..4 {
                write_noise(&client, part, LEN);
                send(&client, b"!", SendFlags::OOB).unwrap();
            }
            client.shutdown(std::net::Shutdown::Write).unwrap();
        });
        for part in 0..4 {
            read_noise(&server, part, LEN);
            assert_eq!(read_exactly(&server, 1), b"!");
        }
        assert_fin(&server);
    });
}
