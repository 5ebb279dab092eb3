//! `bench fair`: does a client notice that another source has a thousand stalled connections in the same process?
//!
//! Two equal relays, each with a service of its own: "quiet" has nothing else to do, the process of "crowded" holds
//! connections of another source, full of bytes that nobody takes. Invariant: those are all still open at the end.

use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::load::{self, Measure};
use super::report::Report;
use super::service::LoadService;
use super::target::{Role, Share, Target};
use super::{Options, interrupt};
use crate::harness::client::dial_from;
use crate::harness::foreground::Foreground;
use crate::harness::rig::Rig;
use crate::harness::service::{Port, listener};
use crate::harness::topology::{GATEWAY_A, at, local};
use crate::harness::wait::{patience, until};

/// Gateway ports of the two, and of the stalled connections; loopback ports follow a hundred later.
const QUIET: u16 = 7120;
const CROWDED: u16 = 7121;
const STALLED: u16 = 7122;
const BEHIND: u16 = 100;
const COUNT: usize = 1000;
/// Whose connections stall.
const GREEDY: Ipv4Addr = Ipv4Addr::new(172, 30, 1, 77);
const SHARE: Share = Share { required: 0.9, aim: None };
const MEASURES: [Measure; 3] = [Measure::RoundTrips, Measure::Exchange, Measure::Connect];

/// The whole run.
pub(super) fn run(options: &Options) -> Result<Report> {
    let rig = Rig::new()?;
    load::prepare_clients(&rig.net)?;
    let [quiet, crowded] =
        [QUIET, CROWDED].map(|port| LoadService::start(&rig.net.host, local(port + BEHIND)));
    let (quiet, crowded) = (quiet?, crowded?);
    let relays = [&[QUIET][..], &[CROWDED, STALLED]].map(|ports| relay(&rig, ports));
    let [quiet_relay, crowded_relay] = relays;
    let (quiet_relay, crowded_relay) = (quiet_relay?, crowded_relay?);
    let _stalled = stall(&rig)?;
    let target = |name, port, service, relay: &Foreground, attachment, role| Target {
        name,
        net: &rig.net,
        address: at(GATEWAY_A, port),
        service,
        attachment: Some(attachment),
        relay: Some(relay.pid()),
        role,
    };
    let targets = [
        target("quiet", QUIET, &quiet, &quiet_relay, "br-a-load-7120", Role::Baseline),
        target("crowded", CROWDED, &crowded, &crowded_relay, "br-a-load-7121", Role::Judged(SHARE)),
    ];
    let report = super::measure(rig.cli(), &targets, &MEASURES, options)?;
    let open = rig.cli().attachment("br-a-load-7122")?.raw["counters"]["relay"]["active"].as_u64();
    ensure!(open == Some(COUNT as u64), "{open:?} of {COUNT} stalled connections are left");
    Ok(report)
}

fn relay(rig: &Rig, ports: &[u16]) -> Result<Foreground> {
    let specs: Vec<String> = ports.iter().map(|port| format!("load={port}:{}", port + BEHIND)).collect();
    let specs: Vec<&str> = specs.iter().map(String::as_str).collect();
    Foreground::start(
        &rig.cli(),
        &[&specs, &["--bridge", "br-a", "--datapath", "splice", "--stall-timeout", "0"][..]].concat(),
    )
}

/// Both ends of connections that are full in both directions.
fn stall(rig: &Rig) -> Result<Vec<[TcpStream; 2]>> {
    rig.net.a1.ip(&format!("addr add {GREEDY}/24 dev eth0"))?;
    let target = listener(&rig.net.host, local(STALLED + BEHIND), Port::Exclusive)?;
    let mut pairs = Vec::new();
    for _ in 0..COUNT {
        interrupt::check()?;
        let client = rig.net.a1.run(|| dial_from(GREEDY, SocketAddrV4::new(GATEWAY_A, STALLED)))?;
        let (server, _) = target.accept()?;
        client.set_nonblocking(true)?;
        server.set_nonblocking(true)?;
        pairs.push([client, server]);
    }
    let bytes = vec![7; 256 * 1024];
    until("the connections are full", patience(120), || {
        std::thread::sleep(Duration::from_millis(100));
        let mut moved = false;
        for mut stream in pairs.iter().flatten() {
            match stream.write(&bytes) {
                Ok(_) => moved = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok((!moved).then_some(()))
    })?;
    Ok(pairs)
}
