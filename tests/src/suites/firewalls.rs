//! `firewalls::*`: what a host's firewall does with a directly bound service it does with a steered one, whatever its
//! listener.
//!
//! Invariant: the yardstick is a service bound on the gateway of the same host, under the same rules at the same time.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Test;
use crate::harness::client::round;
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::Service;
use crate::harness::sys::mptcp_listener;
use crate::harness::topology::{DOCKER_LIKE_RULES, GATEWAY_A, at, local};
use crate::harness::wait::patience;

pub(super) const TESTS: &[Test] =
    &[Test::with_mptcp("firewalls::a_steered_service_gets_what_a_directly_bound_one_gets", matrix)];

/// Bound on the gateway; plain and with MPTCP.
const DIRECT: [u16; 2] = [7100, 7101];
/// On loopback and attached at the same port of the gateway; plain and with MPTCP.
const STEERED: [u16; 2] = [7102, 7103];

/// What a firewall does with a connection to port 7100 to 7103 of the gateway: a name, and nftables rules.
const RULES: &[(&str, &str)] = &[
    ("no rules", ""),
    (
        "as ufw: default deny, and the port allowed",
        "chain in { type filter hook input priority 0; policy drop; iif lo accept
            ct state established,related accept; ct state invalid drop
            fib daddr type != local drop; tcp dport 7100-7103 accept; }
         chain out { type filter hook output priority 0; policy drop; oif lo accept
            ct state established,related accept; ct state new accept; }",
    ),
    (
        "as firewalld: a zone with the port",
        "chain in { type filter hook input priority 10; policy accept; ct state { established, related } accept
            ct status dnat accept; iif lo accept; ct state invalid drop
            iifname br-a tcp dport 7100-7103 ct state { new, untracked } accept
            reject with icmpx admin-prohibited; }",
    ),
    (
        "established, new on the port, drop the rest",
        "chain in { type filter hook input priority 0; policy drop; ct state established accept
            ct state new tcp dport 7100-7103 accept; }",
    ),
    (
        "invalid is dropped both ways",
        "chain in { type filter hook input priority 0; ct state invalid drop; }
         chain out { type filter hook output priority 0; ct state invalid drop; }
         chain pre { type filter hook prerouting priority -140; ct state invalid drop; }",
    ),
    (
        "NEW without SYN is dropped",
        "chain in { type filter hook input priority 0; ct state new tcp flags & (fin|syn|rst|ack) != syn drop; }",
    ),
    (
        "NEW with SYN is dropped",
        "chain in { type filter hook input priority 0; ct state new tcp flags & (fin|syn|rst|ack) == syn drop; }",
    ),
    ("NEW is dropped", "chain in { type filter hook input priority 0; ct state new tcp dport 7100-7103 drop; }"),
    (
        "a mark set at prerouting is dropped at input",
        "chain pre { type filter hook prerouting priority -150; tcp dport 7100-7103 meta mark set 0x77; }
         chain in { type filter hook input priority 0; meta mark 0x77 drop; }",
    ),
    (
        "a mark from before is accepted alone",
        "chain pre { type filter hook prerouting priority -150; tcp dport 7100-7103 meta mark set 0x77; }
         chain in { type filter hook input priority 0; meta mark 0x77 accept; tcp dport 7100-7103 drop; }",
    ),
    (
        "nat redirects the port elsewhere",
        "chain nat { type nat hook prerouting priority -100; iifname br-a tcp dport 7100-7103 redirect to :7190; }",
    ),
    (
        "a final REJECT",
        "chain in { type filter hook input priority 0; policy accept; ct state established,related accept
            reject with icmpx host-unreachable; }",
    ),
    (
        "answers of unknown connections are dropped",
        "chain out { type filter hook output priority 0; policy accept; oifname br-a ct state new drop
            oifname br-a ct state invalid drop; oifname br-a ct state untracked drop; }",
    ),
    (
        "untracked is dropped",
        "chain in { type filter hook input priority 0; ct state untracked drop; }
         chain pre { type filter hook prerouting priority -140; ct state untracked drop; }",
    ),
];

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Served,
    /// A reset, at once or before the service said anything: steer-tc has given the SYN to its listener when nat
    /// changes the port.
    Refused,
    /// An ICMP error.
    Unreachable,
    /// No answer.
    Silence,
}

struct Stage {
    rig: Rig,
    _services: Vec<Service>,
}

fn matrix() -> Result<()> {
    let stage = Stage::new()?;
    let mut different = Vec::new();
    for loose in ["1", "0"] {
        stage.rig.net.host.sysctl("net/netfilter/nf_conntrack_tcp_loose", loose)?;
        for bridged in [false, true] {
            // Where a kernel does not have it, it is off.
            if !stage.rig.net.host.bridge_netfilter(bridged)? && bridged {
                continue;
            }
            for (name, rules) in RULES {
                let cell = format!("{name}, tcp_loose {loose}, bridge-nf {bridged}");
                let row = stage.row(rules).with_context(|| cell.clone())?;
                eprintln!("  {cell}: {row:?}");
                // Both kinds of listener beside their own yardstick.
                if row[0] != row[2] || row[1] != row[3] {
                    different.push(format!("{cell}: direct, direct MPTCP, steer, steer-tc are {row:?}"));
                }
            }
        }
    }
    ensure!(different.is_empty(), "{}", different.join("\n"));
    stage.only_by_the_kernel()
}

impl Stage {
    fn new() -> Result<Self> {
        let rig = Rig::new()?;
        rig.net.host.sysctl("net/mptcp/enabled", "1")?;
        let host = &rig.net.host;
        let mptcp = |address| Service::serve(host.run(|| mptcp_listener(address))?);
        let services = vec![
            Service::start(host, at(GATEWAY_A, DIRECT[0]))?,
            mptcp(at(GATEWAY_A, DIRECT[1]))?,
            Service::start(host, local(STEERED[0]))?,
            mptcp(local(STEERED[1]))?,
        ];
        for port in STEERED {
            rig.attach(&port.to_string())?;
        }
        Ok(Self { rig, _services: services })
    }

    /// The fates of a connection to each port under these rules, in a table of their own.
    fn row(&self, rules: &str) -> Result<[Fate; 4]> {
        let host = &self.rig.net.host;
        host.nft("flush ruleset")?;
        host.nft(DOCKER_LIKE_RULES)?;
        host.nft(&format!("table inet host {{ {rules}\n}}"))?;
        let ports = [DIRECT[0], DIRECT[1], STEERED[0], STEERED[1]];
        let first = ports.map(|port| self.fate(port, patience(1)));
        let first = all(first)?;
        if first[0] == first[2] && first[1] == first[3] {
            return Ok(first);
        }
        // A slow machine makes silence of an answer.
        all(ports.map(|port| self.fate(port, patience(10))))
    }

    fn fate(&self, port: u16, limit: Duration) -> Result<Fate> {
        let to = at(GATEWAY_A, port);
        let dialled = self.rig.net.a1.run(|| std::net::TcpStream::connect_timeout(&to, limit));
        let stream = match dialled {
            Ok(stream) => stream,
            Err(error) => return fate_of(&error, to),
        };
        drop(stream);
        match self.rig.net.a1.run(|| round(to)) {
            Ok(_) => Ok(Fate::Served),
            Err(error) => match error.downcast_ref::<std::io::Error>() {
                Some(cause) => fate_of(cause, to),
                None => Err(error),
            },
        }
    }

    /// Without rules, and by the programs: the counters move.
    fn only_by_the_kernel(&self) -> Result<()> {
        self.rig.net.host.nft("flush ruleset")?;
        self.rig.net.host.nft(DOCKER_LIKE_RULES)?;
        let [plain, mptcp] = STEERED.map(|port| (format!("br-a-tcp-{port}"), at(GATEWAY_A, port)));
        let a1 = &self.rig.net.a1;
        self.rig.expect(&plain.0, Moved::accepted(1), || a1.run(|| round(plain.1)))?;
        self.rig.expect_tc(&mptcp.0, Moved::accepted(1), || a1.run(|| round(mptcp.1)))?;
        Ok(())
    }
}

fn all(row: [Result<Fate>; 4]) -> Result<[Fate; 4]> {
    let [a, b, c, d] = row;
    Ok([a?, b?, c?, d?])
}

fn fate_of(error: &std::io::Error, to: SocketAddr) -> Result<Fate> {
    Ok(match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Fate::Refused,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::PermissionDenied => {
            Fate::Unreachable
        }
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Fate::Silence,
        _ => bail!("a connection to {to} failed otherwise: {error}"),
    })
}
