//! `relay::*`: targets that are down, peers that vanish, descriptors that run out, a relay that is
//! killed.
//!
//! Invariant: every client learns the truth at once or is served in the end, and every refusal is
//! counted and has its reason on stderr.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::Signal;

use super::Test;
use crate::harness::client::{answers, refused};
use crate::harness::endings::{expect_bytes, expect_reset, expect_turned_away, write_until_reset};
use crate::harness::foreground::Foreground;
use crate::harness::group::cpu_time;
use crate::harness::kernel_ids::KernelIds;
use crate::harness::noise;
use crate::harness::relay::{Datapath, NAME, RelayCounters, Stage, counters, final_counters, gateway, start};
use crate::harness::rig::Rig;
use crate::harness::service::{Port, Service, listener};
use crate::harness::sys::limit_files;
use crate::harness::topology::{GATEWAY_A, at, local, reaches};
use crate::harness::wait::patience;

pub(super) const TESTS: &[Test] = both_relays![
    Namespaces: "target_down_resets_the_client_and_says_why" => target_down,
    Kernels: "killed_in_the_middle_of_transfers" => killed,
    Namespaces: "out_of_descriptors" => out_of_descriptors,
    Host: "keepalive_ends_connections_of_a_client_that_vanished" => vanished_client,
    Host: "a_client_that_vanished_with_bytes_on_the_way_is_idle" => vanished_reader,
];

fn target_down(datapath: Datapath) -> Result<()> {
    let rig = Rig::new()?;
    let relay = start(&rig.cli(), "7001", datapath, &[])?;
    for _ in 0..3 {
        expect_turned_away(&rig.net.a1, gateway())?;
    }
    let now = final_counters(&rig.cli(), NAME, datapath)?;
    ensure!(
        now == RelayCounters { no_listener: 3, ..RelayCounters::default() },
        "three clients without a target were counted as {now:?}"
    );
    let line = relay.says(&["127.0.0.1:7001", "refused"])?;
    ensure!(line.contains("start the service"), "the line names no next step: {line}");
    // A busy client must not fill a disk: the others of the same kind are counted, not written.
    ensure!(relay.said().lines().count() == 1, "three refusals said: {}", relay.said());
    // It serves as soon as the service is there, and not after it went.
    let service = Service::start(&rig.net.host, local(7001))?;
    answers(&rig.net.a1, gateway())?;
    service.stop();
    expect_turned_away(&rig.net.a1, gateway())?;
    let now = counters(&rig.cli(), NAME, datapath)?;
    ensure!((now.accepted, now.no_listener) == (1, 4), "the counters are {now:?}");
    Ok(())
}

/// Bulk in either direction on a connection of its own, and an idle one: each peer sees a reset and
/// never an end, nothing stays in the kernel, and the port is free at once.
fn killed(datapath: Datapath) -> Result<()> {
    let rig = Rig::new()?;
    let ids = KernelIds::take()?;
    let target = listener(&rig.net.host, local(7001), Port::Exclusive)?;
    let mut stage = Stage::around(rig, target, datapath, &[])?;
    let (up_client, up_server) = stage.warm_pair()?;
    let (down_client, down_server) = stage.warm_pair()?;
    let (idle_client, idle_server) = stage.warm_pair()?;
    let before = stage.counters()?;
    std::thread::scope(|scope| -> Result<()> {
        let threads = [
            ("the client that sends", scope.spawn(|| write_until_reset(&up_client))),
            ("the server that receives", scope.spawn(|| expect_reset(&up_server).map(drop))),
            ("the server that sends", scope.spawn(|| write_until_reset(&down_server))),
            ("the client that receives", scope.spawn(|| expect_reset(&down_client).map(drop))),
        ];
        // Only while it lives can the relay tell of repetitions, and the bulk they end grows no more.
        let bulk = stage.counters_become("bulk is on its way", |now| {
            let up = now.bytes_up > before.bytes_up + (4 << 20);
            now.repeated > 0 || (up && now.bytes_down > before.bytes_down + (4 << 20))
        });
        // Whatever came of it: those who send do so until then.
        stage.relay.signal(Signal::SIGKILL);
        let outcomes = threads.map(|(peer, thread)| {
            let joined = thread.join().map_err(|_| anyhow!("the thread panicked"));
            joined.and_then(|outcome| outcome).context(peer)
        });
        let bulk = bulk?;
        ensure!(bulk.repeated == 0, "the kernel repeated bytes: {bulk:?}");
        outcomes.into_iter().collect()
    })?;
    for stream in [&idle_client, &idle_server] {
        ensure!(expect_reset(stream)? == 0, "an idle peer got bytes before the reset");
    }
    stage.relay.end()?;
    ensure!(stage.rig.cli().status()?.is_empty(), "status still shows the killed relay");
    stage.rig.net.host.nothing_pinned()?;
    ids.wait_equal().context("a killed relay left BPF objects")?;
    refused(&stage.rig.net.a1, gateway())?;
    stage.restart().context("the next relay on the same port")?;
    drop(stage.warm_pair()?);
    stage.all_ended_well(1).map(drop)
}

/// A relay that spins uses a processor up in every second; one that has a lot to do at first, on a slow machine, does
/// not.
fn does_not_spin(relay: &Foreground) -> Result<()> {
    const WINDOWS: usize = 3;
    let mut busy = Vec::new();
    for _ in 0..WINDOWS {
        let (before, start) = (cpu_time(relay.pid())?, Instant::now());
        std::thread::sleep(Duration::from_secs(1));
        let (used, elapsed) = (cpu_time(relay.pid())? - before, start.elapsed());
        if used < elapsed / 3 {
            return Ok(());
        }
        busy.push((used, elapsed));
    }
    bail!("waiting took this much processor time in so much time: {busy:?}")
}

/// Clients come while the process may open nothing more: they are reset at once, open connections go on, and as soon as
/// there are descriptors again, everybody is served.
fn out_of_descriptors(datapath: Datapath) -> Result<()> {
    const CLIENTS: u64 = 24;
    let stage = Stage::with(datapath, &["--connect-timeout", "60"])?;
    let (client, server) = stage.warm_pair()?;
    let open = stage.relay.open_files()? as u64;
    let limit = limit_files(stage.relay.pid(), open).context("failed to limit the relay's descriptors")?;
    for turn in 0..CLIENTS {
        expect_turned_away(&stage.rig.net.a1, gateway()).with_context(|| format!("client {turn}"))?;
    }
    stage.relay.says(&["LimitNOFILE"])?;
    does_not_spin(&stage.relay)?;
    // There is no descriptor for a pipe either.
    noise::both_ways(&client, &server, 2 << 20).context("the connection that was open")?;
    limit_files(stage.relay.pid(), limit)?;
    let now = stage.counters_become("that one has ended", |now| now.active == 0)?;
    ensure!((now.no_descriptor, now.accepted) == (CLIENTS, 1), "the counters are {now:?}");
    drop(stage.pair()?);
    drop((client, server));
    let ended = stage.counters_become("all ended", |now| now.active == 0)?;
    ensure!((ended.accepted, ended.no_listener, ended.resets) == (2, 0, 0), "the counters are {ended:?}");
    ended.prove(datapath)
}

/// The client's link is gone, without a goodbye. One unanswered probe is enough here; each takes 10 s.
fn vanished_client(datapath: Datapath) -> Result<()> {
    let stage = Stage::with(datapath, &["--keepalive", "1"])?;
    stage.rig.net.host.sysctl("net/ipv4/tcp_keepalive_probes", "1")?;
    let (mut client, server) = stage.warm_pair()?;
    // Acknowledges what the client got: for bytes on their way the kernel sends them again instead of probes.
    client.write_all(b"x")?;
    expect_bytes(&server, b"x")?;
    stage.rig.net.a1.ip("link set eth0 down")?;
    server.set_read_timeout(Some(patience(40)))?;
    ensure!(expect_reset(&server)? == 0, "bytes came from a client without a link");
    let ended = stage.counters_become("the connection is over", |now| now.active == 0)?;
    ensure!((ended.accepted, ended.resets, ended.idle_closed) == (1, 1, 0), "the counters are {ended:?}");
    drop(client);
    ended.prove(datapath)
}

/// What nobody acknowledges stops the connection; probes are not sent then, so silence has to end it.
fn vanished_reader(datapath: Datapath) -> Result<()> {
    let stage = Stage::with(datapath, &["--idle-timeout", "2"])?;
    let (client, server) = stage.warm_pair()?;
    stage.rig.net.a1.ip("link set eth0 down")?;
    write_until_reset(&server)?;
    let ended = stage.counters_become("the connection is over", |now| now.active == 0)?;
    ensure!((ended.accepted, ended.idle_closed) == (1, 1), "the counters are {ended:?}");
    ended.prove(datapath)?;
    // Its place is free for the same client once it is back.
    stage.rig.net.a1.ip("link set eth0 up\nroute replace default via 172.30.1.1")?;
    reaches(&stage.rig.net.a1, at(GATEWAY_A, 1))?;
    drop((client, stage.warm_pair()?));
    Ok(())
}
