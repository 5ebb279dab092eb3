//! FIN is passed on as FIN, RST as RST, and nothing else ends a connection quietly.

use std::{
    io::{Read, Write},
    net::Shutdown,
};

use super::*;
use crate::relay::Limits;

#[test]
fn the_client_half_closes_and_still_gets_its_answer() {
    let target = listener();
    let relay = relay_to(&target);
    let (mut client, mut server) = pair(&relay, &target);
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_exactly(&server, 8), b"question");
    assert_fin(&server);
    write_noise(&mut server, 5, 1 << 20);
    drop(server);
    read_noise(&client, 5, 1 << 20);
    assert_fin(&client);
    eventually("the end", || relay.stats().active == 0);
    assert_eq!(relay.stats().resets, 0);
}

#[test]
fn the_server_half_closes_and_still_gets_the_rest() {
    let target = listener();
    let relay = relay_to(&target);
    let (mut client, mut server) = pair(&relay, &target);
    server.write_all(b"greeting").unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_exactly(&client, 8), b"greeting");
    assert_fin(&client);
    write_noise(&mut client, 5, 1 << 20);
    drop(client);
    read_noise(&server, 5, 1 << 20);
    assert_fin(&server);
    drop(server);
    eventually("the end", || relay.stats().active == 0);
    assert_eq!(relay.stats().resets, 0);
}

#[test]
fn a_reset_by_the_client_resets_the_server() {
    let target = listener();
    let relay = relay_to(&target);
    let (mut client, mut server) = pair(&relay, &target);
    client.write_all(b"x").unwrap();
    assert_eq!(read_exactly(&server, 1), b"x");
    server.write_all(b"y").unwrap();
    assert_eq!(read_exactly(&client, 1), b"y");
    reset(&client);
    drop(client);
    assert_reset(&server);
    // Whoever learns of a reset finds it counted.
    assert_eq!(relay.stats().resets, 1);
    eventually("the end", || relay.stats().active == 0);
}

#[test]
fn a_reset_by_the_server_resets_the_client() {
    let target = listener();
    let relay = relay_to(&target);
    let (client, server) = pair(&relay, &target);
    // Before that it would be a target that cannot be reached.
    eventually("the connection", || relay.stats().accepted == 1);
    reset(&server);
    drop(server);
    assert_reset(&client);
    // Whoever learns of a reset finds it counted.
    assert_eq!(relay.stats().resets, 1);
    eventually("the end", || relay.stats().active == 0);
}

#[test]
fn what_the_server_said_before_its_reset_arrives() {
    let target = listener();
    let relay = relay_to(&target);
    let (mut client, mut server) = pair(&relay, &target);
    // An upload the server does not read to its end: closing with bytes unread is a reset.
    client.write_all(&vec![7; 200_000]).unwrap();
    read_exactly(&server, 1);
    server.write_all(b"413 too large").unwrap();
    assert_eq!(read_exactly(&client, 13), b"413 too large");
    drop(server);
    assert_reset(&client);
}

/// Nobody reads from the client while the server is stalled, yet its reset must get through.
#[test]
fn a_reset_is_noticed_while_the_other_side_stalls() {
    for server_stalls in [true, false] {
        let target = listener();
        let relay = relay_to(&target);
        let (client, server) = pair(&relay, &target);
        let (sender, stalled) = if server_stalls { (client, server) } else { (server, client) };
        fill(&sender);
        reset(&sender);
        drop(sender);
        assert_reset(&stalled);
        eventually("the count", || relay.stats().resets == 1 && relay.stats().active == 0);
    }
}

#[test]
fn a_reset_after_a_half_close_is_noticed() {
    let target = listener();
    let relay = relay_to(&target);
    let (client, mut server) = pair(&relay, &target);
    client.shutdown(Shutdown::Write).unwrap();
    assert_fin(&server);
    reset(&client);
    drop(client);
    eventually("the count", || relay.stats().resets == 1 && relay.stats().active == 0);
    // Behind a FIN, reading tells nothing of a reset; writing does.
    assert_eq!(server.write(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
}

/// Writes until nothing has been taken for half a second.
fn fill(mut stream: &TcpStream) -> usize {
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let block = vec![1; 1 << 20];
    let mut total = 0;
    while let Ok(written) = stream.write(&block) {
        total += written;
    }
    total
}

#[test]
fn silence_ends_with_a_reset_and_traffic_prevents_it() {
    let target = listener();
    let idle_timeout = Some(Duration::from_millis(400));
    let limits = Limits { idle_timeout, ..Limits::default() };
    let relay = Relay::start(RelayConfig { limits, ..config_to(&target) }).unwrap();
    let (mut client, mut server) = pair(&relay, &target);
    let start = Instant::now();
    // Either direction counts.
    for turn in 0..8 {
        std::thread::sleep(Duration::from_millis(150));
        let (from, to) = if turn % 2 == 0 { (&mut client, &mut server) } else { (&mut server, &mut client) };
        from.write_all(b"x").unwrap();
        to.read_exact(&mut [0]).unwrap();
    }
    assert!(start.elapsed() > Duration::from_millis(1200));
    let last = Instant::now();
    assert_reset(&client);
    assert!(last.elapsed() >= Duration::from_millis(350), "{:?}", last.elapsed());
    assert_reset(&server);
    eventually("the count", || relay.stats().idle_closed == 1 && relay.stats().active == 0);
    assert_eq!(relay.stats().resets, 0);
}

/// A UNIX socket cannot be reset.
#[test]
fn a_unix_target_sees_a_reset_as_the_end() {
    let (relay, mut client, mut server) = unix_pair();
    client.write_all(b"half").unwrap();
    let mut half = [0; 4];
    server.read_exact(&mut half).unwrap();
    reset(&client);
    drop(client);
    assert_eq!(server.read(&mut half).unwrap(), 0);
    assert_eq!(relay.stats().resets, 1);
}
