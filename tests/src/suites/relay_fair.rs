//! `relay::*`: what one source leaves lying costs the machine little, and the others nothing.
//!
//! Invariant: the peers' own buffers are small, so what is held is held by the relay; who is not concerned is served
//! meanwhile, with exact counters.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use super::Test;
use crate::harness::client::{connect, dial, exchange};
use crate::harness::endings::{expect_bytes, expect_reset};
use crate::harness::memory::Memory;
use crate::harness::relay::{Datapath, Stage, gateway};
use crate::harness::wait::{patience, until};

pub(super) const TESTS: &[Test] = both_relays![
    Namespaces: "a_connection_that_stalls_is_reset_and_a_slow_one_is_not" => stalled,
];

pub(super) const SPLICED: &[Test] =
    &[Test::on_host("relay::splice::a_thousand_stalled_connections_cost_a_mebibyte_each", thousand)];

/// Small buffers at both peers.
fn keep_small(streams: &[&TcpStream]) -> Result<()> {
    for stream in streams {
        setsockopt(stream, sockopt::RcvBuf, &(16 * 1024))?;
        setsockopt(stream, sockopt::SndBuf, &(16 * 1024))?;
    }
    Ok(())
}

/// Writes what goes in without waiting; says whether anything did.
fn push(mut stream: &TcpStream, bytes: &[u8]) -> Result<bool> {
    match stream.write(bytes) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Every connection holds all it can, in both directions, and nobody reads.
fn thousand() -> Result<()> {
    const COUNT: usize = 1000;
    const EACH: u64 = 1 << 20;
    let stage = Stage::new(Datapath::Splice)?;
    let before = Memory::now(stage.relay.pid())?;
    let mut stalled = Vec::new();
    for _ in 0..COUNT {
        let client = stage.rig.net.a1.run(|| dial(gateway()))?;
        let server = stage.accept()?;
        keep_small(&[&client, &server])?;
        client.set_nonblocking(true)?;
        server.set_nonblocking(true)?;
        stalled.push((client, server));
    }
    let bytes = vec![7; 256 * 1024];
    until("all of them are full", patience(60), || {
        std::thread::sleep(Duration::from_millis(100));
        let mut moved = false;
        for (client, server) in &stalled {
            moved |= push(client, &bytes)? | push(server, &bytes)?;
        }
        Ok((!moved).then_some(()))
    })?;
    let growth = before.expect_growth_below(COUNT as u64 * EACH, stage.relay.pid())?;
    eprintln!("\n  {} KiB for each of {COUNT} stalled connections", growth / COUNT as u64 / 1024);
    // Another source is served as ever.
    let mut client = connect(&stage.rig.net.a2, gateway())?;
    let server = stage.accept()?;
    std::thread::scope(|scope| -> Result<()> {
        let echo = scope.spawn(|| -> Result<()> {
            let mut buffer = [0; 1000];
            for _ in 0..100 {
                (&server).read_exact(&mut buffer)?;
                (&server).write_all(&buffer)?;
            }
            Ok(())
        });
        (0..100).try_for_each(|_| exchange(&mut client, &[9; 1000]))?;
        echo.join().map_err(|_| anyhow!("the echo panicked"))?
    })?;
    let now = stage.counters()?;
    ensure!((now.accepted, now.over_share, now.over_limit) == (COUNT as u64 + 1, 0, 0), "{now:?}");
    drop((stalled, client, server));
    stage.counters_become("all are gone", |now| now.active == 0).map(drop)
}

/// Nobody reads from one; from the other, somebody does now and then.
fn stalled(datapath: Datapath) -> Result<()> {
    let timeout = patience(1).max(Duration::from_secs(2));
    let stage = Stage::with(datapath, &["--stall-timeout", &timeout.as_secs().to_string()])?;
    let (idle_client, idle_server) = stage.warm_pair()?;
    let (client, server) = stage.warm_pair()?;
    let (slow_client, slow_server) = stage.warm_pair()?;
    for stream in [&server, &slow_server] {
        stream.set_nonblocking(true)?;
    }
    let bytes = vec![7; 256 * 1024];
    let mut buffer = vec![0; 128 * 1024];
    let fed = until("the stalled one is reset", patience(40), || {
        push(&slow_server, &bytes).context("the slow one")?;
        std::thread::sleep(timeout / 20);
        (&slow_client).read(&mut buffer).context("the slow one")?;
        let is_reset = match push(&server, &bytes) {
            Ok(_) => false,
            Err(error) => {
                let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
                ensure!(
                    matches!(kind, Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)),
                    "the stalled one ended with {error:#}"
                );
                true
            }
        };
        Ok(is_reset.then_some(()))
    });
    fed?;
    drop(server);
    expect_reset(&client)?;
    let now = stage.counters_become("it is counted", |now| now.stalled == 1)?;
    ensure!((now.active, now.resets, now.idle_closed) == (2, 0, 0), "the counters are {now:?}");
    stage.relay.says(&["took nothing for", "stall-timeout"])?;
    // The idle one was silent for as long, and holds nothing.
    (&idle_client).write_all(b"still here")?;
    expect_bytes(&idle_server, b"still here")?;
    drop((slow_client, slow_server, idle_client, idle_server));
    stage.counters_become("all are gone", |now| now.active == 0)?.prove(datapath)
}
