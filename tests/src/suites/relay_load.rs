//! `relay::*`: many connections, one after the other and at once, leave nothing and cost little.
//!
//! Invariant: counted are descriptors, BPF map entries and memory of the relay's process; the rates
//! are printed and never asserted.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::resource::{Resource, getrlimit};

use super::Test;
use crate::harness::client::{dial_from, many_rounds, round, with_deadlines};
use crate::harness::endings::expect_bytes;
use crate::harness::kernel_ids::KernelIds;
use crate::harness::noise;
use crate::harness::relay::{Datapath, NAME, PORT, RelayCounters, Stage, counters, gateway, start};
use crate::harness::rig::Rig;
use crate::harness::service::Service;
use crate::harness::topology::{GATEWAY_A, local};
use crate::harness::wait::{patience, scaled, until};

pub(super) const TESTS: &[Test] = both_relays![
    Namespaces: "connections_come_and_go_and_leave_nothing" => |datapath| churn(datapath, scaled(3000)),
    Host: "ten_thousand_connections_leave_nothing" => |datapath| churn(datapath, 10_000),
    Host: "ten_thousand_idle_connections_take_little_memory_each" => idle,
];

/// What one idle connection may take of the relay's own memory.
const USER_MEMORY: u64 = 16 * 1024;

/// Whole connections from two clients at once, each with an orderly end; one client's are short, the other's are long
/// enough for the kernel to take them over.
fn churn(datapath: Datapath, count: usize) -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    let relay = start(&rig.cli(), "7001", datapath, &[])?;
    // Whatever is made once is made by now.
    connect_and_finish(&rig, 200)?;
    settled(&rig, datapath)?;
    let (ids, files, entries) = (KernelIds::take()?, relay.open_files()?, relay.map_entries()?);
    let start = Instant::now();
    connect_and_finish(&rig, count)?;
    let rate = count as f64 / start.elapsed().as_secs_f64();
    let ended = settled(&rig, datapath)?;
    let wanted = 200 + count as u64;
    ensure!(ended.accepted == wanted && ended.resets == 0 && ended.no_listener == 0, "{ended:?}");
    ensure!(service.peers().len() as u64 == wanted, "the service saw {}", service.peers().len());
    until(&format!("{files} descriptors and {entries} map entries are left"), patience(10), || {
        Ok((relay.open_files()? <= files && relay.map_entries()? <= entries).then_some(()))
    })
    .with_context(|| format!("{:?} and {:?} are left", relay.open_files(), relay.map_entries()))?;
    ids.wait_equal()?;
    if count >= 10_000 {
        eprintln!(
            "\n  {}: {rate:.0} connections/s, {count} of them, every other with 30 exchanges",
            datapath.name()
        );
    }
    Ok(())
}

fn connect_and_finish(rig: &Rig, count: usize) -> Result<()> {
    std::thread::scope(|scope| {
        let short = |_| round(gateway()).map(drop);
        let long = |_| many_rounds(gateway());
        let threads = [
            scope.spawn(move || rig.net.a1.run(|| (0..count / 2).try_for_each(short))),
            scope.spawn(move || rig.net.a2.run(|| (0..count / 2).try_for_each(long))),
        ];
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })
}

fn settled(rig: &Rig, datapath: Datapath) -> Result<RelayCounters> {
    let now = until("all connections ended", patience(10), || {
        let now = counters(&rig.cli(), NAME, datapath)?;
        Ok((now.active == 0).then_some(now))
    })?;
    now.prove(datapath)?;
    Ok(now)
}

/// Addresses that the connections come from: each may hold only as many as are free.
const SOURCES: u8 = 100;

/// Ten thousand, or as many as the relay has places for with the limit on descriptors where root may not raise it.
fn ten_thousand() -> Result<usize> {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let count = usize::try_from(limit)?.saturating_sub(300) * 3 / 8;
    ensure!(count >= 7_000, "a limit of {limit} descriptors is too low: allow 20,000");
    Ok(count.min(10_000))
}

fn source(turn: usize) -> Result<Ipv4Addr> {
    Ok(Ipv4Addr::new(172, 30, 1, 100 + u8::try_from(turn % usize::from(SOURCES))?))
}

/// Each has carried bytes both ways, so whatever it holds on to, it holds.
fn idle(datapath: Datapath) -> Result<()> {
    let count = ten_thousand()?;
    let stage = Stage::new(datapath)?;
    for turn in 0..usize::from(SOURCES) {
        stage.rig.net.a1.ip(&format!("addr add {}/24 dev eth0", source(turn)?))?;
    }
    // The kernel takes over connections that were used a little.
    let rounds = if datapath == Datapath::Sockmap { 10 } else { 1 };
    let open = |count: usize| -> Result<Vec<(TcpStream, TcpStream)>> {
        let one = |turn| -> Result<_> {
            let mut client = dial_from(source(turn)?, SocketAddrV4::new(GATEWAY_A, PORT))?;
            let mut server = with_deadlines(stage.accept()?)?;
            for _ in 0..rounds {
                server.write_all(b"hello")?;
                expect_bytes(&client, b"hello")?;
                client.write_all(b"hello")?;
                expect_bytes(&server, b"hello")?;
            }
            Ok((client, server))
        };
        stage.rig.net.a1.run(|| (0..count).map(one).collect())
    };
    let warm = open(50)?;
    // Bulk leaves pipes behind for the next one to use.
    noise::both_ways(&warm[0].0, &warm[0].1, 100_000)?;
    stage.counters_become("one is gone", |now| now.active == 49)?;
    let (before, files, entries) =
        (stage.relay.resident()?, stage.relay.open_files()?, stage.relay.map_entries()?);
    let connections = open(count).context("the connections that are to be idle")?;
    let now = stage.counters()?;
    ensure!(now.active == count as u64 + 49, "{} of {count} are open", now.active);
    let taken = if datapath == Datapath::Sockmap { count as u64 + 50 } else { 0 };
    ensure!(now.offloaded == taken, "the kernel has {} of {count}", now.offloaded);
    let each = stage.relay.resident()?.saturating_sub(before) / count as u64;
    eprintln!("\n  {}: {each} bytes of the relay's memory per idle connection, of {count}", datapath.name());
    ensure!(each <= USER_MEMORY, "{each} bytes per idle connection, at most {USER_MEMORY} were expected");
    // The last of them is as good as the first.
    for (client, server) in [&connections[0], &connections[count - 1]] {
        noise::both_ways(client, server, 100_000)?;
    }
    drop(connections);
    stage.counters_become("the idle ones are gone", |now| now.active == 49)?;
    // A worker may have put a pipe more into its pool meanwhile.
    let most = files + 8;
    until("descriptors and map entries are back", patience(10), || {
        Ok((stage.relay.open_files()? <= most && stage.relay.map_entries()? <= entries).then_some(()))
    })
    .with_context(|| {
        format!("{:?} of {files} and {:?} of {entries}", stage.relay.open_files(), stage.relay.map_entries())
    })?;
    drop(warm);
    stage.counters()?.prove(datapath)
}
