//! Connections that may not be, targets that are not there, and limits.

use std::{io::Write, net::Shutdown, path::Path};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};

use super::*;
use crate::relay::{
    Limits,
    target::{Endpoint, connect_to},
    transport::Transport,
};

/// The message of a failed connect.
fn message(target: Target) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let connecting = async {
        connect_to(
            &Endpoint::find(&target),
            Transport::default(),
            tokio::time::Instant::now() + Duration::from_millis(200),
        )
        .await
    };
    match runtime.block_on(connecting) {
        Ok(_) => panic!("{target} accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_target_that_is_down_resets_the_client_at_once() {
    let target = listener();
    let relay = relay_to(&target);
    let address = target.local_addr().unwrap();
    drop(target);
    let start = Instant::now();
    assert_reset(&connect(relay.local_addr()));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!((relay.stats().no_listener, relay.stats().accepted), (1, 0));
    let text = message(Target::Tcp(address));
    assert!(
        text.starts_with(&format!("failed to connect to {address}: ")) && text.contains("start the service"),
        "{text}"
    );
    // It serves as soon as the service is back.
    let target = TcpListener::bind(address).unwrap();
    let (mut client, server) = pair(&relay, &target);
    client.write_all(b"back").unwrap();
    assert_eq!(read_exactly(&server, 4), b"back");
}

#[test]
fn unix_errors_name_the_path_and_the_way_out() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let text = message(Target::Unix(missing.clone()));
    assert!(
        text.contains(missing.to_str().unwrap()) && text.contains("there is no socket at this path"),
        "{text}"
    );
    let stale = directory.path().join("stale");
    drop(UnixListener::bind(&stale).unwrap());
    let text = message(Target::Unix(stale.clone()));
    assert!(text.contains("leftover"), "{text}");
    let datagram = directory.path().join("datagram");
    let _socket = std::os::unix::net::UnixDatagram::bind(&datagram).unwrap();
    let text = message(Target::Unix(datagram));
    assert!(text.contains("no stream socket"), "{text}");
    let relay = Relay::start(config(Target::Unix(stale))).unwrap();
    assert_reset(&connect(relay.local_addr()));
    assert_eq!(relay.stats().no_listener, 1);
}

/// A listener that never accepts, with a full queue.
fn never_accepts(path: &Path) -> std::os::fd::OwnedFd {
    let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    listen(&socket, 0).unwrap();
    socket
}

#[test]
fn a_target_that_never_accepts_is_given_up_after_the_connect_timeout() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let _target = never_accepts(&path);
    let _in_the_queue = UnixStream::connect(&path).unwrap();
    let text = message(Target::Unix(path.clone()));
    assert!(text.contains("does not accept"), "{text}");
    let limits = Limits { connect_timeout: Duration::from_millis(300), ..Limits::default() };
    let relay = Relay::start(RelayConfig { limits, ..config(Target::Unix(path)) }).unwrap();
    assert_reset(&connect(relay.local_addr()));
    assert_eq!(relay.stats().no_listener, 1);
}

#[test]
fn a_tcp_target_with_a_full_queue_is_given_up_too() {
    let target = listener();
    listen(&target, 0).unwrap();
    let _in_the_queue = connect(target.local_addr().unwrap());
    let limits = Limits { connect_timeout: Duration::from_millis(300), ..Limits::default() };
    let relay = Relay::start(RelayConfig { limits, ..config_to(&target) }).unwrap();
    assert_reset(&connect(relay.local_addr()));
    assert_eq!(relay.stats().no_listener, 1);
}

#[test]
fn a_source_that_is_not_allowed_is_reset_before_the_target_hears_of_it() {
    let target = listener();
    target.set_nonblocking(true).unwrap();
    let allow = vec!["127.0.0.2/32".parse().unwrap()];
    let relay = Relay::start(RelayConfig { allow, ..config_to(&target) }).unwrap();
    assert_reset(&connect(relay.local_addr()));
    assert_eq!((relay.stats().denied, relay.stats().accepted), (1, 0));
    assert_eq!(target.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn an_empty_allow_list_allows_nobody() {
    let target = listener();
    let relay = Relay::start(RelayConfig { allow: Vec::new(), ..config_to(&target) }).unwrap();
    assert_reset(&connect(relay.local_addr()));
    assert_eq!(relay.stats().denied, 1);
}

#[test]
fn connections_over_a_sources_share_are_reset_and_places_come_back() {
    let target = listener();
    let limits = Limits { max_connections: 4, ..Limits::default() };
    let relay = Relay::start(RelayConfig { limits, workers: Some(2), ..config_to(&target) }).unwrap();
    let first = pair(&relay, &target);
    let _second = pair(&relay, &target);
    assert_reset(&connect(relay.local_addr()));
    let now = relay.stats();
    assert_eq!((now.over_share, now.over_limit, now.active), (1, 0, 2));
    drop(first);
    eventually("a free place", || relay.stats().active == 1);
    let (mut client, server) = pair(&relay, &target);
    client.write_all(b"in").unwrap();
    assert_eq!(read_exactly(&server, 2), b"in");
}

#[test]
fn ipv6_gateways_work_and_do_not_take_ipv4() {
    let target = listener();
    let listen = "[::1]:0".parse().unwrap();
    let relay = Relay::start(RelayConfig { listen, ..config_to(&target) }).unwrap();
    let (mut client, server) = pair(&relay, &target);
    client.write_all(b"six").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_exactly(&server, 3), b"six");
    assert_fin(&server);
}
