//! A relay belongs to the network namespace it was given, whatever thread starts it. Needs root.

use std::{io::Write as _, process::Command, thread};

use nix::sched::{CloneFlags, unshare};

use super::*;

/// A new namespace with its loopback interface up, made by a thread that has ended since.
fn another() -> Namespace {
    let made = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace (needs root)");
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip from iproute2");
        assert!(up.success(), "ip link set lo up");
        Namespace::current().unwrap()
    });
    made.join().unwrap()
}

#[test]
fn it_listens_and_connects_in_its_namespace_only() {
    let other = another();
    let target = other.run(listener).unwrap();
    let config = RelayConfig { namespace: other.clone(), ..config_to(&target) };
    let relay = Relay::start(config).unwrap();
    let at = relay.local_addr();
    assert!(
        TcpStream::connect(at).is_err(),
        "something listens in the namespace of the thread that started it"
    );
    let mut client = other.run(|| connect(at)).unwrap();
    let server = patient(target.accept().unwrap().0);
    client.write_all(b"hello").unwrap();
    assert_eq!(read_exactly(&server, 5), b"hello");
    assert_eq!(relay.stats().accepted, 1);
}
