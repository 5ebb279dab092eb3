//! Faults that concern a whole process: the relay runs in one of its own, which is this test binary again.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
};

use rustix::process::{Resource, Rlimit, setrlimit};

use super::*;
use crate::relay::{RelayStats, raise_descriptor_limit};

/// Set in the child: the target's address, and the limit on descriptors.
const CHILD: &str = "BRIDGE_USER_RELAY_TEST_CHILD";

/// A relay in a process of its own, killed when dropped.
pub(super) struct ChildRelay {
    pub(super) process: Child,
    pub(super) address: SocketAddr,
    answers: BufReader<std::process::ChildStdout>,
}

impl ChildRelay {
    /// Runs [`relay_process`] with a relay to `target` that may have `descriptors`.
    pub(super) fn start(target: &TcpListener, descriptors: u64) -> Self {
        let (_, module) = module_path!().split_once("::").unwrap();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", &format!("{module}::relay_process")])
            .env(CHILD, format!("{} {descriptors}", target.local_addr().unwrap()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        let mut child = Self { process, address: SocketAddr::from(([0; 4], 0)), answers };
        child.address = child.answer("address ").parse().unwrap();
        child
    }

    /// `accepted active accept_errors`.
    fn stats(&mut self) -> [u64; 3] {
        writeln!(self.process.stdin.as_mut().unwrap(), "stats").unwrap();
        let numbers: Vec<_> = self.answer("stats ").split(' ').map(|word| word.parse().unwrap()).collect();
        numbers.try_into().unwrap()
    }

    fn answer(&mut self, kind: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "the child is gone");
            // The test harness may have begun the line.
            if let Some((_, rest)) = line.split_once(kind) {
                return rest.trim().to_owned();
            }
        }
    }

    /// Resident memory in bytes.
    pub(super) fn resident(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    }
}

impl Drop for ChildRelay {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// In the child: runs a relay until its standard input ends. By itself: checks that a child answers at all.
#[test]
fn relay_process() {
    let Ok(order) = std::env::var(CHILD) else {
        let target = listener();
        let mut child = ChildRelay::start(&target, 64);
        drop(connect(child.address));
        drop(target.accept().unwrap());
        eventually("the count", || child.stats()[0] == 1);
        return;
    };
    let (target, descriptors) = order.split_once(' ').unwrap();
    let limit = Some(descriptors.parse().unwrap());
    setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit }).unwrap();
    let relay = Relay::start(config(Target::Tcp(target.parse().unwrap()))).unwrap();
    println!("address {}", relay.local_addr());
    for line in std::io::stdin().lines() {
        assert_eq!(line.unwrap(), "stats");
        let RelayStats { accepted, active, accept_errors, .. } = relay.stats();
        println!("stats {accepted} {active} {accept_errors}");
    }
}

/// Whoever finds no place in so small a process is reset at once; those inside are served, and nobody hangs.
#[test]
fn a_low_limit_on_descriptors_resets_and_lets_nobody_hang() {
    let target = listener();
    let mut child = ChildRelay::start(&target, 200);
    let clients: Vec<_> = (0..80).map(|_| connect(child.address)).collect();
    eventually("those that have a place", || child.stats()[0] == 12);
    let mut servers: Vec<_> = (0..12).map(|_| patient(target.accept().unwrap().0)).collect();
    servers.iter_mut().for_each(|server| server.write_all(b"y").unwrap());
    let served = clients.iter().filter(|client| match (&mut &**client).read(&mut [0]) {
        Ok(read) => read == 1,
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
            false
        }
    });
    assert_eq!(served.count(), 12);
    drop((clients, servers));
    eventually("the end", || child.stats() == [12, 0, 0]);
}

#[test]
fn killing_the_relay_resets_both_peers() {
    let target = listener();
    let mut child = ChildRelay::start(&target, 64);
    let mut client = connect(child.address);
    let server = patient(target.accept().unwrap().0);
    client.write_all(b"half a message").unwrap();
    assert_eq!(read_exactly(&server, 14), b"half a message");
    child.process.kill().unwrap();
    assert_reset(&server);
    assert_reset(&client);
}

#[test]
fn the_descriptor_limit_can_be_raised() {
    let limit = raise_descriptor_limit().unwrap();
    let now = rustix::process::getrlimit(Resource::Nofile);
    assert_eq!((now.current, now.current.unwrap_or(u64::MAX)), (now.maximum, limit));
}
