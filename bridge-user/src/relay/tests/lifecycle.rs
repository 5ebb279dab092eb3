//! Starting and stopping: who has the port, which interface counts, what drain cuts.

use std::{fs, io::Write, thread};

use tokio::sync::watch;

use super::*;
use crate::relay::{
    Limits,
    ledger::Places,
    listener::{ListenOptions, listen_group},
    start_worker,
    stats::Counters,
    target::Endpoint,
    transport::Transport,
    warn::Warnings,
    worker::Shared,
};

fn refusal(config: RelayConfig) -> String {
    match Relay::start(config) {
        Ok(relay) => panic!("listens on {}", relay.local_addr()),
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn a_taken_port_names_its_owner() {
    let (target, other) = (listener(), listener());
    let listen = other.local_addr().unwrap();
    let text = refusal(RelayConfig { listen, ..config_to(&target) });
    let expected = format!("failed to listen on {listen} on lo: the port is in use: ");
    assert!(text.starts_with(&expected), "{text}");
    let pid = format!("(pid {}, bound to {listen}) has it", std::process::id());
    assert!(text.contains(&pid), "{text}");
}

#[test]
fn the_port_is_shared_neither_with_another_relay_nor_with_a_wildcard() {
    let target = listener();
    let relay = relay_to(&target);
    let text = refusal(RelayConfig { listen: relay.local_addr(), workers: Some(2), ..config_to(&target) });
    assert!(text.contains("the port is in use"), "{text}");
    let wildcard = TcpListener::bind("0.0.0.0:0").unwrap();
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, wildcard.local_addr().unwrap().port()));
    let text = refusal(RelayConfig { listen, ..config_to(&target) });
    assert!(text.contains("the port is in use"), "{text}");
}

#[test]
fn the_port_is_free_again_after_the_relay() {
    let target = listener();
    let relay = relay_to(&target);
    let listen = relay.local_addr();
    let (client, server) = pair(&relay, &target);
    // The relay closes first towards both, so its sockets go to TIME_WAIT.
    drop((client, server));
    eventually("the end", || relay.stats().active == 0);
    drop(relay);
    let relay = Relay::start(RelayConfig { listen, ..config_to(&target) }).unwrap();
    assert_eq!(relay.local_addr(), listen);
}

#[test]
fn a_missing_interface_and_a_foreign_address_are_explained() {
    let target = listener();
    let text = refusal(RelayConfig { bridge: "br-missing".into(), ..config_to(&target) });
    assert!(text.contains("there is no such interface: create the network"), "{text}");
    let text = refusal(RelayConfig { listen: "192.0.2.1:0".parse().unwrap(), ..config_to(&target) });
    assert!(text.contains("the host does not have this address: use the gateway address of lo"), "{text}");
}

/// Loopback traffic arrives on `lo`: bound to another interface, the same address does not answer it.
#[test]
fn packets_of_another_interface_do_not_reach_the_relay() {
    let names = fs::read_dir("/sys/class/net")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let is_interface = |name: &String| fs::metadata(format!("/sys/class/net/{name}/ifindex")).is_ok();
    let other = names.filter(is_interface).find(|name| name != "lo");
    let bridge = other.expect("this test needs any interface besides lo, up or down");
    let target = listener();
    let relay = Relay::start(RelayConfig { bridge, ..config_to(&target) }).unwrap();
    let refused = TcpStream::connect(relay.local_addr()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

fn draining(limit: Duration, target: &TcpListener) -> Relay {
    let limits = Limits { drain: limit, ..Limits::default() };
    Relay::start(RelayConfig { limits, workers: Some(2), ..config_to(target) }).unwrap()
}

#[test]
fn drain_lets_open_connections_finish_and_takes_no_new_ones() {
    let target = listener();
    let mut relay = draining(PATIENCE, &target);
    let address = relay.local_addr();
    let (mut client, server) = pair(&relay, &target);
    let start = Instant::now();
    let drained = thread::spawn(move || relay.drain());
    thread::sleep(Duration::from_millis(200));
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    client.write_all(b"still here").unwrap();
    assert_eq!(read_exactly(&server, 10), b"still here");
    assert!(!drained.is_finished());
    drop(client);
    assert_fin(&server);
    drop(server);
    assert_eq!(drained.join().unwrap(), 0);
    assert!(start.elapsed() < PATIENCE);
}

#[test]
fn drain_resets_what_is_open_at_the_deadline() {
    let target = listener();
    let mut relay = draining(Duration::from_millis(200), &target);
    let pairs: Vec<_> = (0..5).map(|_| pair(&relay, &target)).collect();
    eventually("all five", || relay.stats().active == 5);
    let start = Instant::now();
    assert_eq!(relay.drain(), 5);
    assert!(start.elapsed() >= Duration::from_millis(200) && start.elapsed() < PATIENCE);
    for (client, server) in &pairs {
        assert_reset(client);
        assert_reset(server);
    }
    assert_eq!((relay.stats().active, relay.drain()), (0, 0));
}

/// The clients see their connections established, so all must be served although the worker is told to stop
/// before it looks at the first.
#[test]
fn a_stopping_worker_serves_what_waits_in_its_accept_queue() {
    const COUNT: u64 = 100;
    let target = listener();
    let config = config_to(&target);
    let options = ListenOptions { keepalive: None, transport: Transport::default(), count: 1 };
    let (mut listeners, gateway) = listen_group(&config.namespace, config.listen, "lo", options).unwrap();
    let clients: Vec<_> = (0..COUNT).map(|_| connect(gateway)).collect();
    let (places, warnings) = (Places::new(1000, &config.ledger), Warnings::new("test"));
    let endpoint = Arc::new(Endpoint::find(&config.target));
    let shared =
        Arc::new(Shared { config, endpoint, gateway, transport: Transport::default(), places, warnings });
    let counters = Arc::new(Counters::default());
    let (_stop, stopped) = watch::channel(Some(tokio::time::Instant::now() + PATIENCE));
    let listener = (listeners.pop().unwrap(), None);
    let worker = start_worker(0, shared, Arc::clone(&counters), listener, stopped).unwrap();
    for _ in 0..COUNT {
        drop(target.accept().unwrap());
    }
    clients.iter().for_each(assert_fin);
    drop(clients);
    assert_eq!(worker.join().unwrap(), 0);
    assert_eq!((counters.accepted.get(), counters.resets.get()), (COUNT, 0));
}

#[test]
fn dropping_the_relay_resets_what_is_open() {
    let target = listener();
    let relay = relay_to(&target);
    let (client, server) = pair(&relay, &target);
    drop(relay);
    assert_reset(&client);
    assert_reset(&server);
}
