//! The load generator: its measures, each one cell at a time against one address.
//!
//! Invariants: every cell opens its own connections and says how many, so that the path they took can be proved;
//! bulk data is counted where it arrives; the client closes first. Connections of the connect measure end in
//! TIME_WAIT on the client's side; [`prepare_clients`] gives the containers ports enough for that. No measure resets.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::ops::AddAssign;
use std::os::fd::AsFd;
use std::sync::Barrier;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::interrupt::Clock;
use super::service::{BYTE, CHUNK, ECHO, ECHO_MOST, GET, PUT};
use crate::harness::netns::Netns;
use crate::harness::topology::Topology;

/// Connections of the round-trip measure.
const CONVERSATIONS: u8 = 16;
/// Bytes of one message of the round-trip measure.
const MESSAGE: usize = 64;
/// Client threads of the connect measure, divided among the containers.
const CONNECTORS: usize = 4;
/// A peer that says nothing for this long is broken.
const SILENCE: Duration = Duration::from_secs(10);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    /// One connection, container to service.
    Put,
    /// One connection, service to container.
    Get,
    /// Round trips of 64 bytes on 16 connections at once.
    RoundTrips,
    /// Round trips of 16 KiB on one connection.
    Exchange,
    /// Connect, one byte each way, close.
    Connect,
}

impl Measure {
    /// Short name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::RoundTrips => "rt64x16",
            Self::Exchange => "rt16k",
            Self::Connect => "connect",
        }
    }

    /// Unit of the rate as printed.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Put | Self::Get => "GB/s",
            Self::RoundTrips | Self::Exchange => "k/s",
            Self::Connect => "conn/s",
        }
    }

    /// A rate in the printed unit, with sensible digits.
    pub(crate) fn show(self, rate: f64) -> String {
        match self {
            Self::Put | Self::Get => format!("{:.2}", rate / 1e9),
            Self::RoundTrips | Self::Exchange => format!("{:.1}", rate / 1e3),
            Self::Connect => format!("{rate:.0}"),
        }
    }

    /// By how much work processor time is given.
    pub(super) fn work(self) -> (f64, &'static str) {
        match self {
            Self::Put | Self::Get => (1024.0 * 1024.0 * 1024.0, "s/GiB"),
            Self::RoundTrips | Self::Exchange => (1e5, "s/100k trips"),
            Self::Connect => (1e5, "s/100k conns"),
        }
    }

    /// Loads `to` from the containers on br-a for `time`.
    pub(crate) fn run(self, net: &Topology, to: SocketAddr, time: Duration) -> Result<Cell> {
        let cell = match self {
            Self::Put => net.a1.run(|| put(to, time)),
            Self::Get => net.a1.run(|| get(to, time)),
            Self::RoundTrips => net.a1.run(|| round_trips(to, time, CONVERSATIONS, MESSAGE)),
            Self::Exchange => net.a1.run(|| round_trips(to, time, 1, ECHO_MOST)),
            Self::Connect => connects([&net.a1, &net.a2], to, time),
        };
        cell.with_context(|| format!("failed to measure {} against {to}", self.name()))
    }
}

/// What a cell, or several of one target, came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cell {
    /// Bytes, round trips or connections.
    amount: u64,
    time: Duration,
    /// Connections it took.
    pub(crate) connections: u64,
}

impl Cell {
    /// Bytes, round trips or connections.
    pub(super) fn amount(self) -> u64 {
        self.amount
    }

    /// Per second.
    pub(crate) fn rate(self) -> f64 {
        self.amount as f64 / self.time.as_secs_f64()
    }
}

impl AddAssign for Cell {
    fn add_assign(&mut self, other: Self) {
        self.amount += other.amount;
        self.time += other.time;
        self.connections += other.connections;
    }
}

/// Lets the containers open connections at full rate for minutes: nearly all ports, those in TIME_WAIT again after
/// a second, and an early end for a SYN nobody answers. Everybody sends with Reno: where the default is BBR, its pacing
/// timers and not the datapath decide the rate of bulk on one machine, and make it jump by half from second to second.
/// The host's connection tracking forgets ended connections at once: after minutes of them its table would be full, and
/// the kernel would drop the SYN of whoever comes next.
pub(crate) fn prepare_clients(net: &Topology) -> Result<()> {
    for netns in [&net.host, &net.a1, &net.a2] {
        netns.sysctl("net/ipv4/tcp_congestion_control", "reno")?;
    }
    net.host.sysctl("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "1")?;
    for netns in [&net.a1, &net.a2] {
        netns.sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
        netns.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
        netns.sysctl("net/ipv4/tcp_syn_retries", "2")?;
    }
    Ok(())
}

fn open(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(to).context("failed to connect")?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The clock covers the transfer up to the service's word on how much arrived.
fn put(to: SocketAddr, time: Duration) -> Result<Cell> {
    let mut stream = open(to)?;
    let chunk = vec![0x5a; CHUNK];
    stream.write_all(&[PUT])?;
    let clock = Clock::start(time);
    let mut sent = 0u64;
    while !clock.over() {
        stream.write_all(&chunk).context("failed to send")?;
        sent += CHUNK as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut count = [0; 8];
    stream.read_exact(&mut count).context("failed to read the service's count")?;
    let (amount, time) = (u64::from_le_bytes(count), clock.elapsed());
    ensure!(amount == sent, "{sent} bytes were sent and {amount} arrived");
    Ok(Cell { amount, time, connections: 1 })
}

/// The clock covers the transfer from the request to the end of the stream.
fn get(to: SocketAddr, time: Duration) -> Result<Cell> {
    let mut stream = open(to)?;
    let mut chunk = vec![0; CHUNK];
    let millis = u32::try_from(time.as_millis()).context("the time is too long")?;
    let clock = Clock::start(time);
    stream.write_all(&[&[GET], millis.to_le_bytes().as_slice()].concat())?;
    let mut amount = 0u64;
    loop {
        match stream.read(&mut chunk).context("failed to receive")? {
            0 => break,
            length => amount += length as u64,
        }
    }
    Ok(Cell { amount, time: clock.elapsed(), connections: 1 })
}

/// One thread keeps one message of every connection under way.
fn round_trips(to: SocketAddr, time: Duration, conversations: u8, size: usize) -> Result<Cell> {
    let mut message = vec![0x5a; size];
    let streams = (0..conversations).map(|_| open(to)).collect::<Result<Vec<_>>>()?;
    for mut stream in &streams {
        stream.write_all(&[ECHO, conversations])?;
    }
    let mut fds: Vec<_> = streams.iter().map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN)).collect();
    let limit = PollTimeout::try_from(SILENCE)?;
    let clock = Clock::start(time);
    for mut stream in &streams {
        stream.write_all(&message)?;
    }
    let (mut amount, mut under_way) = (0u64, streams.len());
    while under_way > 0 {
        ensure!(poll(&mut fds, limit)? > 0, "no echo came for {SILENCE:?}");
        let over = clock.over();
        for (fd, mut stream) in fds.iter().zip(&streams) {
            if fd.any() != Some(true) {
                continue;
            }
            stream.read_exact(&mut message).context("failed to receive an echo")?;
            amount += 1;
            if over {
                under_way -= 1;
            } else {
                stream.write_all(&message).context("failed to send a message")?;
            }
        }
    }
    Ok(Cell { amount, time: clock.elapsed(), connections: conversations.into() })
}

/// Several threads, in turn in one container and the other, make one connection after the other.
fn connects(containers: [&Netns; 2], to: SocketAddr, time: Duration) -> Result<Cell> {
    let barrier = Barrier::new(CONNECTORS);
    let connector = || {
        barrier.wait();
        let clock = Clock::start(time);
        let mut count = 0u64;
        while !clock.over() {
            one_byte(to)?;
            count += 1;
        }
        Ok((count, clock.elapsed()))
    };
    let outcomes: Vec<Result<(u64, Duration)>> = std::thread::scope(|scope| {
        let threads: Vec<_> = containers
            .into_iter()
            .cycle()
            .take(CONNECTORS)
            .map(|container| scope.spawn(|| container.run(connector)))
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect()
    });
    let mut whole = Cell::default();
    for outcome in outcomes {
        let (count, time) = outcome?;
        whole.amount += count;
        whole.connections += count;
        whole.time = whole.time.max(time);
    }
    Ok(whole)
}

fn one_byte(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(to).context("failed to connect")?;
    stream.write_all(&[BYTE])?;
    let mut answer = [0];
    stream.read_exact(&mut answer).context("failed to receive the byte")?;
    Ok(())
}
