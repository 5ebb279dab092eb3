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

    /// CPU time of all threads in clock ticks (10 ms).
    fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        // utime and stime, the 14th and 15th field of proc(5); the second one, in parentheses, may contain spaces.
        let fields = stat.rsplit_once(')').unwrap().1.split_whitespace().skip(11).take(2);
        fields.map(|field| field.parse::<u64>().unwrap()).sum()
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

#[test]
fn out_of_descriptors_waits_without_spinning_and_loses_no_connection() {
    let target = listener();
    let mut child = ChildRelay::start(&target, 40);
    // Twice as many clients as descriptors: the kernel completes their handshakes all the same.
    let mut clients: Vec<_> = (0..80).map(|_| connect(child.address)).collect();
    clients.iter_mut().for_each(|client| client.write_all(b"x").unwrap());
    eventually("running out", || child.stats()[2] > 0);
    let ([.., before], cpu_before) = (child.stats(), child.cpu_ticks());
    std::thread::sleep(Duration::from_millis(1000));
    let ([.., after], cpu) = (child.stats(), child.cpu_ticks() - cpu_before);
    // At most the accept loop and 16 connections, 20 times each.
    assert!(after > before && after - before <= 17 * 21, "{} errors in a second", after - before);
    assert!(cpu < 20, "{cpu} clock ticks in a second");
    // Each that ends makes room: all are served, none was reset.
    let served = std::thread::spawn(move || {
        for _ in 0..80 {
            let mut server = patient(target.accept().unwrap().0);
            assert_eq!(read_exactly(&server, 1), b"x");
            server.write_all(b"y").unwrap();
        }
    });
    let answered =
        clients.into_iter().map(|client| std::thread::spawn(move || read_exactly(client, 1) == b"y"));
    assert!(answered.collect::<Vec<_>>().into_iter().all(|thread| thread.join().unwrap()));
    served.join().unwrap();
    eventually("the end", || child.stats()[..2] == [80, 0]);
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
