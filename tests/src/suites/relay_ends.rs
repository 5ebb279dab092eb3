//! `relay::*`: how a connection ends on one side is how it ends on the other.
//!
//! Invariants: FIN closes one direction only; a reset arrives as ECONNRESET and never as the end of
//! a stream; each ending is tried on a connection that the datapath under test already carries.

use std::io::Write;
use std::net::{Shutdown, TcpStream};

use anyhow::{Result, anyhow, ensure};

use super::Test;
use crate::harness::endings::{expect_bytes, expect_fin, expect_reset, fill, reset, write_until_reset};
use crate::harness::noise;
use crate::harness::relay::{Datapath, RelayCounters, Stage};

pub(super) const TESTS: &[Test] = both_relays![
    Kernels: "the_client_half_closes_and_gets_its_answer" => |datapath| half_close(datapath, Side::Client),
    Namespaces: "the_server_half_closes_and_gets_the_rest" => |datapath| half_close(datapath, Side::Server),
    Kernels: "both_half_close_behind_bulk_nobody_read_yet" => late_readers,
    Namespaces: "a_reset_by_the_client_reaches_the_server" => |datapath| reset_by(datapath, Side::Client),
    Namespaces: "a_reset_by_the_server_reaches_the_client" => |datapath| reset_by(datapath, Side::Server),
    Kernels: "a_reset_by_the_client_mid_stream" => |datapath| reset_mid_stream(datapath, Side::Client),
    Namespaces: "a_reset_by_the_server_mid_stream" => |datapath| reset_mid_stream(datapath, Side::Server),
    Namespaces: "a_reset_is_noticed_while_the_other_side_stalls" => reset_behind_a_stall,
    Namespaces: "a_reset_behind_a_half_close_is_noticed" => reset_behind_fin,
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

/// The one that acts, and the other.
fn order(side: Side, (client, server): (TcpStream, TcpStream)) -> (TcpStream, TcpStream) {
    if side == Side::Client { (client, server) } else { (server, client) }
}

fn half_close(datapath: Datapath, first: Side) -> Result<()> {
    const LENGTH: usize = 1 << 20;
    let stage = Stage::new(datapath)?;
    for round in 1..=5 {
        let (mut early, late) = order(first, stage.warm_pair()?);
        early.write_all(b"question")?;
        early.shutdown(Shutdown::Write)?;
        expect_bytes(&late, b"question")?;
        expect_fin(&late)?;
        std::thread::scope(|scope| {
            let answer = scope.spawn(|| -> Result<()> {
                noise::send(&late, round, LENGTH)?;
                Ok(late.shutdown(Shutdown::Write)?)
            });
            noise::expect(&early, round, LENGTH)?;
            expect_fin(&early)?;
            answer.join().map_err(|_| anyhow!("the sender panicked"))?
        })?;
    }
    stage.all_ended_well(5).map(drop)
}

/// Everything is sent and both FINs are said before anybody reads.
fn late_readers(datapath: Datapath) -> Result<()> {
    const LENGTH: usize = 200_000;
    let stage = Stage::new(datapath)?;
    for _ in 0..5 {
        let (client, server) = stage.warm_pair()?;
        for (seed, end) in [(1, &client), (2, &server)] {
            noise::send(end, seed, LENGTH)?;
            end.shutdown(Shutdown::Write)?;
        }
        for (seed, end) in [(2, &client), (1, &server)] {
            noise::expect(end, seed, LENGTH)?;
            expect_fin(end)?;
        }
    }
    stage.all_ended_well(5).map(drop)
}

/// Waits until the only connection is gone, counted as reset.
fn counted_as_reset(stage: &Stage) -> Result<RelayCounters> {
    let ended = stage.counters_become("the reset is counted", |now| now.active == 0 && now.resets == 1)?;
    ended.prove(stage.datapath)?;
    ensure!((ended.accepted, ended.no_listener) == (1, 0), "the counters are {ended:?}");
    Ok(ended)
}

fn reset_by(datapath: Datapath, side: Side) -> Result<()> {
    let stage = Stage::new(datapath)?;
    let (broken, other) = order(side, stage.warm_pair()?);
    reset(broken)?;
    let rest = expect_reset(&other)?;
    ensure!(rest == 0, "{rest} bytes came before the reset");
    counted_as_reset(&stage).map(drop)
}

/// The one that resets has unread bytes on their way to it; the other is in the middle of a write.
fn reset_mid_stream(datapath: Datapath, side: Side) -> Result<()> {
    let stage = Stage::new(datapath)?;
    let (broken, other) = order(side, stage.warm_pair()?);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_until_reset(&other));
        noise_of_any_kind(&broken, 4 << 20)?;
        reset(broken)?;
        writer.join().map_err(|_| anyhow!("the writer panicked"))?
    })?;
    counted_as_reset(&stage).map(drop)
}

/// Reads at least `length` bytes, whatever they are.
fn noise_of_any_kind(mut stream: &TcpStream, length: usize) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut count = 0;
    while count < length {
        let read = std::io::Read::read(&mut stream, &mut buffer)?;
        ensure!(read > 0, "the stream ended after {count} bytes");
        count += read;
    }
    Ok(())
}

/// Nobody reads from the one that resets, as there is no room at the other end.
fn reset_behind_a_stall(datapath: Datapath) -> Result<()> {
    for side in [Side::Client, Side::Server] {
        let stage = Stage::new(datapath)?;
        let (broken, stalled) = order(side, stage.warm_pair()?);
        fill(&broken, 256 << 20)?;
        reset(broken)?;
        expect_reset(&stalled)?;
        counted_as_reset(&stage)?;
    }
    Ok(())
}

fn reset_behind_fin(datapath: Datapath) -> Result<()> {
    let stage = Stage::new(datapath)?;
    let (client, server) = stage.warm_pair()?;
    client.shutdown(Shutdown::Write)?;
    expect_fin(&server)?;
    reset(client)?;
    // Behind a FIN reading tells nothing of a reset; writing does.
    counted_as_reset(&stage)?;
    write_until_reset(&server)
}
