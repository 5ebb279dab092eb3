//! `mptcp::*`: an MPTCP service that closes first, so that its TIME_WAIT meets the next SYN of the same source port.
//!
//! Invariant: no connection fails, however often the ports come round. How long each takes is printed and not judged.

use std::io::Read;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Test;
use crate::harness::client::dial;
use crate::harness::rig::{Moved, Rig};
use crate::harness::sys::mptcp_listener;
use crate::harness::topology::{GATEWAY_A, at, local};
use crate::harness::wait::scaled;

pub(super) const TESTS: &[Test] = &[Test::with_mptcp(
    "mptcp::thirty_thousand_connections_where_the_service_closes_first",
    service_closes_first,
)];

const NAME: &str = "br-a-tcp-7001";
const CONNECTIONS: usize = 30_000;
/// Clients at a time. Each waits most of its time, so they fill it.
const CLIENTS: usize = 8;
/// Source ports of the container, for all clients together.
const PORTS: Range<u16> = 40_000..40_256;
/// A connection that takes longer has lost its first SYN and the one its kernel sent right after.
const SLOW: Duration = Duration::from_millis(500);

fn gateway() -> SocketAddr {
    at(GATEWAY_A, 7001)
}

fn service_closes_first() -> Result<()> {
    let each = scaled(CONNECTIONS) / CLIENTS;
    let total = each * CLIENTS;
    let rig = Rig::new()?;
    rig.net.host.sysctl("net/mptcp/enabled", "1")?;
    let listener = rig.net.host.run(|| mptcp_listener(local(7001)))?;
    rig.attach("7001")?;
    let range = format!("{} {}", PORTS.start, PORTS.end - 1);
    rig.net.a1.sysctl("net/ipv4/ip_local_port_range", &range)?;
    let closer = std::thread::spawn(move || {
        listener.incoming().take(total).flatten().for_each(drop);
        listener
    });
    let mut took = rig.expect_tc(NAME, Moved::accepted(total), || from_all_clients(&rig, each))?;
    drop(closer.join().expect("the service does not panic"));
    let counters = rig.cli().attachment(NAME)?.counters;
    ensure!((counters.denied, counters.no_listener) == (0, 0), "the counters are {counters:?}");
    took.sort();
    let slow = took.iter().filter(|took| **took > SLOW).count();
    let [median, late] = [total / 2, total * 99 / 100].map(|at| took[at]);
    eprintln!(
        "\n  {total} connections from {} ports, the service closed first: median {median:.1?}, 99 % within {late:.1?}, \
         all within {:.1?}, {slow} took over {SLOW:?}; counted {}",
        PORTS.len(),
        took[total - 1],
        counters.accepted
    );
    Ok(())
}

/// How long each connection took, up to the service's FIN.
fn from_all_clients(rig: &Rig, each: usize) -> Result<Vec<Duration>> {
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| rig.net.a1.run(|| rounds(each)))).collect();
        let mut took = Vec::new();
        for client in clients {
            took.extend(client.join().expect("a client does not panic")?);
        }
        Ok(took)
    })
}

fn rounds(count: usize) -> Result<Vec<Duration>> {
    let one = |round| {
        let started = Instant::now();
        let mut stream = dial(gateway()).with_context(|| format!("connection {round} of a client"))?;
        let read = stream.read(&mut [0; 1]).with_context(|| format!("connection {round} of a client"))?;
        ensure!(read == 0, "the service sent something");
        Ok(started.elapsed())
    };
    (0..count).map(one).collect()
}
