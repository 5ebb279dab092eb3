//! `relay::*`: a relay loses, repeats, reorders and holds back no byte.
//!
//! Invariants: streams are compared byte for byte and to their end; the counters show that the bytes
//! went by the datapath under test.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;

use anyhow::{Result, anyhow, bail, ensure};
use nix::sys::socket::{MsgFlags, send};

use super::Test;
use crate::harness::client::connect;
use crate::harness::endings::{expect_bytes, expect_fin};
use crate::harness::noise;
use crate::harness::relay::{Datapath, Stage, fill_queue, gateway};
use crate::harness::rig::Rig;
use crate::harness::service::{Port, listener};
use crate::harness::topology::local;
use crate::harness::wait::scaled;

pub(super) const TESTS: &[Test] = both_relays![
    Kernels: "random_bytes_both_ways_at_once" => |datapath| random(datapath, 32 << 20),
    Namespaces: "eight_connections_at_once" => eight_at_once,
    Namespaces: "small_and_bulk_take_turns" => turns,
    Namespaces: "one_byte_writes_arrive_one_by_one" => one_byte_writes,
    Namespaces: "the_server_may_speak_first" => server_first,
    Namespaces: "early_bytes_wait_for_a_target_that_is_slow_to_accept" => early_bytes,
    Namespaces: "a_request_sent_whole_before_the_target_accepts" => early_request,
    Kernels: "an_urgent_byte_arrives_in_its_place" => urgent,
    Host: "one_gibibyte_of_random_bytes" => |datapath| random(datapath, 512 << 20),
];

/// Most transfers of one trial that a kernel may spoil.
const SPOILT_AT_MOST: u64 = 4;

/// `length` bytes in each direction at once. Under load a kernel may repeat bytes of a socket in a socket map; the
/// relay has to notice, and to reset and count that connection before a wrong byte gets out. Then another one is
/// tried.
fn random(datapath: Datapath, length: usize) -> Result<()> {
    let stage = Stage::new(datapath)?;
    for spoilt in 0..=SPOILT_AT_MOST {
        let (client, server) = stage.warm_pair()?;
        let before = stage.counters()?;
        let outcome = noise::both_ways(&client, &server, length);
        drop((client, server));
        let after = stage.counters_become("the connection ended", |now| now.active == 0)?;
        ensure!(after.repeated == after.resets && after.no_listener == 0, "the counters are {after:?}");
        after.prove(datapath)?;
        match outcome {
            Err(error) if noise::was_cut(&error) && after.repeated == spoilt + 1 => {
                ensure!(datapath == Datapath::Sockmap, "splice has no map to repeat bytes from: {error:#}");
            }
            outcome => {
                outcome?;
                let moved = (after.bytes_up - before.bytes_up, after.bytes_down - before.bytes_down);
                ensure!(moved == (length as u64, length as u64), "{length} bytes were counted as {moved:?}");
                return Ok(());
            }
        }
    }
    bail!("the kernel spoilt all transfers: {:?}", stage.counters()?)
}

fn eight_at_once(datapath: Datapath) -> Result<()> {
    let stage = Stage::new(datapath)?;
    let mut pairs = Vec::new();
    for _ in 0..8 {
        pairs.push(stage.warm_pair()?);
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = pairs
            .iter()
            .map(|(client, server)| scope.spawn(|| noise::both_ways(client, server, scaled(2 << 20))))
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })?;
    drop(pairs);
    stage.all_ended_well(8).map(drop)
}

/// Sizes around those of buffers and pipes, with a short answer after each.
fn turns(datapath: Datapath) -> Result<()> {
    let stage = Stage::new(datapath)?;
    let (client, mut server) = stage.warm_pair()?;
    for _ in 0..3 {
        for length in [1, 4095, 65_535, 65_536, 65_537, 3_000_000, 7, 1_048_576, 1] {
            std::thread::scope(|scope| -> Result<()> {
                let sender = scope.spawn(|| noise::send(&client, length as u64, length));
                noise::expect(&server, length as u64, length)?;
                sender.join().map_err(|_| anyhow!("the sender panicked"))?
            })?;
            server.write_all(b"ok")?;
            expect_bytes(&client, b"ok")?;
        }
    }
    client.shutdown(Shutdown::Write)?;
    expect_fin(&server)?;
    drop(server);
    expect_fin(&client)?;
    stage.all_ended_well(1).map(drop)
}

fn one_byte_writes(datapath: Datapath) -> Result<()> {
    let stage = Stage::new(datapath)?;
    let (mut client, mut server) = stage.warm_pair()?;
    let mut byte = [0];
    for value in (0..=255).cycle().take(scaled(5000)) {
        client.write_all(&[value])?;
        server.read_exact(&mut byte)?;
        ensure!(byte == [value], "byte {byte:?} came instead of {value}");
        server.write_all(&[!value])?;
        client.read_exact(&mut byte)?;
        ensure!(byte == [!value], "byte {byte:?} came instead of {}", !value);
    }
    // Without waiting for each other, as segments of one byte each.
    let count = scaled(20_000);
    for turn in 0..count {
        client.write_all(&[u8::try_from(turn % 251)?])?;
    }
    let mut all = vec![0; count];
    server.read_exact(&mut all)?;
    let right = all.iter().enumerate().all(|(turn, byte)| turn % 251 == usize::from(*byte));
    ensure!(right, "the run of single bytes differs");
    drop((client, server));
    stage.all_ended_well(1).map(drop)
}

fn server_first(datapath: Datapath) -> Result<()> {
    let stage = Stage::new(datapath)?;
    for _ in 0..20 {
        let (mut client, mut server) = stage.pair()?;
        server.write_all(b"220 ready\r\n")?;
        expect_bytes(&client, b"220 ready\r\n")?;
        client.write_all(b"HELO\r\n")?;
        expect_bytes(&server, b"HELO\r\n")?;
        server.write_all(b"250 hello\r\n")?;
        server.shutdown(Shutdown::Write)?;
        expect_bytes(&client, b"250 hello\r\n")?;
        expect_fin(&client)?;
    }
    ends_well_after(&stage, 20)
}

/// The short connections of a trial may have ended before the kernel took them over; one more,
/// warmed up, shows that it would have.
fn ends_well_after(stage: &Stage, count: u64) -> Result<()> {
    drop(stage.warm_pair()?);
    stage.all_ended_well(count + 1).map(drop)
}

/// A listener whose queue is full lets nobody connect until it accepts.
fn early_bytes(datapath: Datapath) -> Result<()> {
    let rig = Rig::new()?;
    let target = listener(&rig.net.host, local(7001), Port::Exclusive)?;
    let waiting = fill_queue(&rig, &target)?;
    let stage = Stage::around(rig, target, datapath, &["--connect-timeout", "60"])?;
    let mut client = stage.dial()?;
    client.write_all(b"early ")?;
    let early = stage.counters_become("the relay holds the client", |now| now.active == 1)?;
    ensure!(early.accepted == 0, "the target was reached although its queue was full: {early:?}");
    client.write_all(b"bytes ")?;
    drop(stage.accept()?);
    drop(waiting);
    let server = stage.accept()?;
    client.write_all(b"and late ones")?;
    expect_bytes(&server, b"early bytes and late ones")?;
    noise::both_ways(&client, &server, 1 << 20)?;
    drop((client, server));
    ends_well_after(&stage, 1)
}

/// All of it is there, with its FIN, before the relay has a target to give it to.
fn early_request(datapath: Datapath) -> Result<()> {
    const LENGTH: usize = 300_000;
    let rig = Rig::new()?;
    let target = listener(&rig.net.host, local(7001), Port::Exclusive)?;
    let waiting = fill_queue(&rig, &target)?;
    let stage = Stage::around(rig, target, datapath, &["--connect-timeout", "60"])?;
    let client: TcpStream = connect(&stage.rig.net.a1, gateway())?;
    noise::send(&client, 7, LENGTH)?;
    client.shutdown(Shutdown::Write)?;
    stage.counters_become("the relay holds the client", |now| now.active == 1)?;
    drop(stage.accept()?);
    drop(waiting);
    let mut server = stage.accept()?;
    noise::expect(&server, 7, LENGTH)?;
    expect_fin(&server)?;
    server.write_all(b"answer")?;
    drop(server);
    expect_bytes(&client, b"answer")?;
    expect_fin(&client)?;
    ends_well_after(&stage, 1)
}

/// As documented: inline, without the mark. The parts make reads stop in front of the mark and
/// begin behind it.
fn urgent(datapath: Datapath) -> Result<()> {
    let stage = Stage::new(datapath)?;
    let (client, server) = stage.warm_pair()?;
    for (from, to) in [(&client, &server), (&server, &client)] {
        for _ in 0..20 {
            send(from.as_raw_fd(), b"ab!", MsgFlags::MSG_OOB)?;
            expect_bytes(to, b"ab!")?;
            send(from.as_raw_fd(), b"ab!", MsgFlags::MSG_OOB)?;
            send(from.as_raw_fd(), b"cd", MsgFlags::empty())?;
            expect_bytes(to, b"ab!cd")?;
        }
    }
    std::thread::scope(|scope| -> Result<()> {
        let sender = scope.spawn(|| -> Result<()> {
            for part in 0..4 {
                noise::send(&client, part, 1 << 20)?;
                send(client.as_raw_fd(), b"!", MsgFlags::MSG_OOB)?;
            }
            Ok(client.shutdown(Shutdown::Write)?)
        });
        for part in 0..4 {
            noise::expect(&server, part, 1 << 20)?;
            expect_bytes(&server, b"!")?;
        }
        expect_fin(&server)?;
        sender.join().map_err(|_| anyhow!("the sender panicked"))?
    })?;
    drop((client, server));
    stage.all_ended_well(1).map(drop)
}
