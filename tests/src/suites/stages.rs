//! `stages::*`: how far connections come, counted without a probe, and what that tells of those that do not come
//! through.
//!
//! Invariants: `accepted` counts each connection that was established once, and no other; what stopped the last one is
//! said until one comes through.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::socket::{Backlog, listen};

use super::Test;
use crate::harness::cli::Attachment;
use crate::harness::client::{answers, exchange, finish, refused};
use crate::harness::raw::{Checksum, SYN, send_segment};
use crate::harness::relay::{NAME, gateway};
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::{Service, bound_socket};
use crate::harness::sys::{mptcp_connect, mptcp_listener};
use crate::harness::topology::{A1, GATEWAY_B, at, local};
use crate::harness::wait::{patience, until};

pub(super) const TESTS: &[Test] = &[
    Test::with_mptcp("stages::a_firewall_that_drops_is_told_of_until_it_lets_in", || {
        dropped("chain i { type filter hook input priority 0; tcp dport 7001 drop; }")
    })
    .in_kernels(),
    Test::new("stages::rules_before_routing_are_told_of_too", || {
        dropped("chain p { type filter hook prerouting priority -300; tcp dport 7001 drop; }")
    }),
    Test::with_mptcp("stages::a_firewall_in_front_of_mptcp_is_told_of", dropped_mptcp),
    Test::new("stages::the_reverse_path_filter_is_told_of", reverse_path),
    Test::new("stages::answers_that_a_rule_drops_are_told_of", || {
        lost(
            "table inet lost { chain o { type filter hook output priority 0; tcp sport 7001 drop; }; }",
            "delete table inet lost",
        )
    }),
    Test::new("stages::answers_that_go_elsewhere_are_told_of", astray),
    Test::new("stages::a_service_that_accepts_nothing_is_told_of", full),
    Test::new("stages::connections_for_another_address_are_told_of", elsewhere),
    Test::new("stages::a_handshake_that_does_not_end_is_not_accepted", half_open).in_kernels(),
    Test::on_host("stages::further_subflows_are_no_connections", subflows),
];

fn rig() -> Result<(Rig, Service)> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))?;
    Ok((rig, service))
}

fn shown(rig: &Rig) -> Result<Attachment> {
    rig.cli().attachment(NAME)
}

/// Tries to connect for as long as a client sends its SYN twice, and is not answered.
fn unanswered(rig: &Rig) -> Result<()> {
    let outcome =
        rig.net.a1.run(|| std::net::TcpStream::connect_timeout(&gateway(), Duration::from_millis(1500)));
    let error = outcome.err().map(|error| error.kind());
    ensure!(error == Some(std::io::ErrorKind::TimedOut), "the connection was to time out: {error:?}");
    Ok(())
}

fn comes_through(rig: &Rig) -> Result<()> {
    answers(&rig.net.a1, gateway())?;
    let after = shown(rig)?;
    ensure!(after.state == "ready" && after.findings.is_empty(), "it came through: {}", after.raw);
    Ok(())
}

/// Nothing is counted as accepted, and the state is that of the last connection.
fn dropped(chain: &str) -> Result<()> {
    let (rig, _service) = rig()?;
    // With it, rules before routing see what comes in at a port of the bridge, before it arrives at the bridge itself.
    rig.net.host.bridge_netfilter(false)?;
    rig.net.host.nft(&format!("table inet wall {{ {chain}; }}"))?;
    rig.expect(NAME, Moved::NOTHING, || unanswered(&rig))?;
    let found = shown(&rig)?;
    ensure!(found.state == "blocked-by-firewall", "the state is {}: {}", found.state, found.raw);
    found.expect_finding("blocked-by-firewall")?;
    let stages = (found.stage("arrived")?, found.stage("steered")?, found.stage("answered")?);
    ensure!(stages.0 >= 2 && stages.1 == 1 && stages.2 == 1, "the stages are {stages:?}");
    rig.net.host.nft("delete table inet wall")?;
    comes_through(&rig)
}

fn dropped_mptcp() -> Result<()> {
    let rig = Rig::new()?;
    rig.net.host.sysctl("net/mptcp/enabled", "1")?;
    let _service = Service::serve(rig.net.host.run(|| mptcp_listener(local(7001)))?)?;
    rig.attach("7001")?;
    rig.expect_tc(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))?;
    rig.net
        .host
        .nft("table inet wall { chain i { type filter hook input priority 0; tcp dport 7001 drop; }; }")?;
    rig.expect_tc(NAME, Moved::NOTHING, || unanswered(&rig))?;
    let found = shown(&rig)?;
    ensure!(found.state == "blocked-by-firewall", "the state is {}: {}", found.state, found.raw);
    found.expect_finding("blocked-by-firewall")?;
    rig.net.host.nft("delete table inet wall")?;
    comes_through(&rig)
}

/// The route to the client leads elsewhere, so what comes from it here is taken for forged.
fn reverse_path() -> Result<()> {
    let (rig, _service) = rig()?;
    rig.net.host.sysctl("net/ipv4/conf/all/rp_filter", "1")?;
    rig.net.host.sysctl("net/ipv4/conf/br-a/rp_filter", "1")?;
    rig.net.host.ip(&format!("route add {A1}/32 dev up0\n"))?;
    rig.expect(NAME, Moved::NOTHING, || unanswered(&rig))?;
    ensure!(shown(&rig)?.state == "blocked-by-firewall", "the state is {}", shown(&rig)?.state);
    rig.net.host.ip(&format!("route del {A1}/32 dev up0\n"))?;
    comes_through(&rig)
}

fn lost(rules: &str, undo: &str) -> Result<()> {
    let (rig, _service) = rig()?;
    rig.net.host.nft(rules)?;
    rig.expect(NAME, Moved::NOTHING, || unanswered(&rig))?;
    rig.expect_state(NAME, "ready")?.expect_finding("answers-lost")?;
    rig.net.host.nft(undo)?;
    comes_through(&rig)
}

/// As a VPN does that routes by policy.
fn astray() -> Result<()> {
    let (rig, _service) = rig()?;
    rig.net.host.ip("route add default dev up0 table 77\nrule add pref 10 from 172.30.1.1 lookup 77\n")?;
    rig.expect(NAME, Moved::NOTHING, || unanswered(&rig))?;
    rig.expect_state(NAME, "ready")?.expect_finding("answers-lost")?;
    rig.net.host.ip("rule del pref 10\n")?;
    comes_through(&rig)
}

fn full() -> Result<()> {
    let rig = Rig::new()?;
    let listener = rig.net.host.run(|| {
        let socket = bound_socket(local(7001))?;
        listen(&socket, Backlog::new(1)?)?;
        anyhow::Ok(socket)
    })?;
    rig.attach("7001")?;
    let dial =
        || rig.net.a1.run(|| std::net::TcpStream::connect_timeout(&gateway(), Duration::from_millis(1500)));
    let mut held = Vec::new();
    while let Ok(stream) = dial() {
        held.push(stream);
        ensure!(held.len() < 10, "the queue takes them all");
    }
    let accepted = shown(&rig)?;
    accepted.expect_finding("queue-full")?;
    // The kernel establishes as many as wait to be accepted, and answers some more.
    ensure!((1..=held.len() as u64).contains(&accepted.counters.accepted), "it counts {}", accepted.raw);
    held.clear();
    let _service = Service::serve(listener.into())?;
    until("one comes through", patience(20), || Ok(answers(&rig.net.a1, gateway()).ok()))?;
    comes_through(&rig)
}

fn elsewhere() -> Result<()> {
    let (rig, _service) = rig()?;
    let other = at(GATEWAY_B, 7001);
    rig.expect(NAME, Moved::NOTHING, || refused(&rig.net.a1, other))?;
    let found = rig.expect_state(NAME, "ready")?;
    found.expect_finding("wrong-gateway")?;
    ensure!(found.stage("wrong_gateway")? == 1, "it counts {}", found.raw);
    // From another bridge it is none of this attachment's, nor is the host's own.
    refused(&rig.net.b1, other)?;
    refused(&rig.net.host, other)?;
    ensure!(shown(&rig)?.stage("wrong_gateway")? == 1, "it counts {}", shown(&rig)?.raw);
    let _own = Service::start(&rig.net.host, other)?;
    answers(&rig.net.a1, other)?;
    ensure!(shown(&rig)?.findings.is_empty(), "another service serves them: {}", shown(&rig)?.raw);
    Ok(())
}

fn half_open() -> Result<()> {
    let (rig, _service) = rig()?;
    rig.net.a1.run(|| send_segment(A1, gateway(), SYN, Checksum::Right))?;
    until("the SYN is answered", patience(10), || Ok((shown(&rig)?.stage("answered")? == 2).then_some(())))?;
    let found = shown(&rig)?;
    ensure!(found.counters == Moved::accepted(1), "the counters are {}", found.raw);
    rig.expect(NAME, Moved::accepted(2), || {
        answers(&rig.net.a1, gateway())?;
        answers(&rig.net.a1, gateway())
    })?;
    Ok(())
}

/// A client with a second address makes a second subflow, to the same port.
fn subflows() -> Result<()> {
    let rig = Rig::new()?;
    rig.net.host.sysctl("net/mptcp/enabled", "1")?;
    let _service = Service::serve(rig.net.host.run(|| mptcp_listener(local(7001)))?)?;
    rig.attach("7001")?;
    rig.net.host.ip("mptcp limits set subflow 2\n")?;
    rig.net.a1.ip("addr add 172.30.1.99/24 dev eth0\nmptcp limits set subflow 2\n\
         mptcp endpoint add 172.30.1.99 dev eth0 subflow\n")?;
    rig.expect_tc(NAME, Moved::accepted(1), || {
        let mut client = rig.net.a1.run(|| mptcp_connect(gateway()))?;
        let joined = || Ok((rig.net.host.mptcp_counter("MPJoinAckRx")? == 1).then_some(()));
        until("a second subflow is established", patience(20), || {
            exchange(&mut client, b"ping")?;
            joined()
        })?;
        finish(client)
    })
}
