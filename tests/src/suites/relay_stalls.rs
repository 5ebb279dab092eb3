//! `relay::*`: a reader that stops reading costs bounded memory, and gets everything later.
//!
//! Invariants: counted are the relay's memory and the kernel's, also what the kernel charges to no
//! socket; the reader's own buffer is small, so what is held is held by the relay.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use super::Test;
use crate::harness::endings::{expect_fin, fill};
use crate::harness::memory::Memory;
use crate::harness::noise;
use crate::harness::relay::{Datapath, Stage};
use crate::harness::wait::{patience, until};

pub(super) const TESTS: &[Test] = both_relays![
    Kernels: "a_target_that_never_reads_costs_bounded_memory" => |datapath| stalled(datapath, Reader::Target),
    Namespaces: "a_client_that_never_reads_costs_bounded_memory" => |datapath| stalled(datapath, Reader::Client),
    Host: "single_bytes_to_a_reader_that_stalls_cost_bounded_memory" => single_bytes,
];

/// What a stalled connection may cost.
const LIMIT: u64 = 64 << 20;
/// More than all buffers of one connection together.
const LENGTH: usize = 96 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reader {
    Client,
    Target,
}

/// The writer's and the reader's end of a connection the datapath carries, with little room at
/// the reader's.
fn ends(stage: &Stage, reader: Reader) -> Result<(TcpStream, TcpStream)> {
    let (client, server) = stage.warm_pair()?;
    let (writer, reader) = if reader == Reader::Target { (client, server) } else { (server, client) };
    setsockopt(&reader, sockopt::RcvBuf, &(64 * 1024))?;
    Ok((writer, reader))
}

fn stalled(datapath: Datapath, reader: Reader) -> Result<()> {
    let stage = Stage::new(datapath)?;
    let (writer, reader) = ends(&stage, reader)?;
    writer.set_write_timeout(None)?;
    let before = Memory::now(stage.relay.pid())?;
    let moved = stage.counters()?;
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| -> Result<()> {
            noise::send(&writer, 3, LENGTH)?;
            Ok(writer.shutdown(Shutdown::Write)?)
        });
        // Whatever happens next, the writer must get to its end.
        let outcome = until_still(&stage, moved.bytes_up + moved.bytes_down)
            .and_then(|()| before.expect_growth_below(LIMIT, stage.relay.pid()))
            .and_then(|growth| {
                ensure!(!writing.is_finished(), "{LENGTH} bytes disappeared in buffers, which took {growth}");
                Ok(())
            });
        let received = outcome.and_then(|()| noise::expect(&reader, 3, LENGTH));
        if received.is_err() {
            reader.shutdown(Shutdown::Both)?;
            writer.shutdown(Shutdown::Both)?;
        }
        let sent = writing.join().map_err(|_| anyhow!("the writer panicked"))?;
        received?;
        sent?;
        expect_fin(&reader)
    })?;
    let after = stage.counters()?;
    if datapath == Datapath::Sockmap {
        ensure!(after.redirected > moved.redirected, "the kernel redirected nothing: {after:?}");
    }
    drop((writer, reader));
    stage.all_ended_well(1).map(drop)
}

/// Waits until the relay has moved more than `first` bytes and then none for half a second.
fn until_still(stage: &Stage, first: u64) -> Result<()> {
    let total = || stage.counters().map(|now| now.bytes_up + now.bytes_down);
    let last = AtomicU64::new(first);
    until("the relay stands still", patience(20), || {
        std::thread::sleep(Duration::from_millis(500));
        let now = total()?;
        let before = last.swap(now, Ordering::Relaxed);
        Ok((now > first && now == before).then_some(()))
    })
}

/// Segments of one byte cost the kernel hundreds of times their payload while they are queued one
/// by one. First as much bulk goes as there is room behind the relay, so that they have to queue.
fn single_bytes(datapath: Datapath) -> Result<()> {
    const SINGLE_BYTES: usize = 300_000;
    let stage = Stage::new(datapath)?;
    let (writer, reader) = ends(&stage, Reader::Target)?;
    let before = stage.counters()?;
    fill(&writer, 256 << 20)?;
    until_still(&stage, before.bytes_up + before.bytes_down)?;
    let room = stage.counters()?.bytes_up - before.bytes_up;
    drop((writer, reader));
    stage.counters_become("the first one is gone", |now| now.active == 0)?;
    for left in [0, 256 << 10, 1 << 20] {
        let (writer, reader) = ends(&stage, Reader::Target)?;
        let before = Memory::now(stage.relay.pid())?;
        fill(&writer, usize::try_from(room)?.saturating_sub(left))?;
        let sent = write_singly(&writer, SINGLE_BYTES)?;
        let growth = before.expect_growth_below(LIMIT, stage.relay.pid());
        growth.map_err(|error| error.context(format!("{sent} single bytes with {left} bytes of room")))?;
        drop((writer, reader));
        stage.counters_become("it is gone", |now| now.active == 0)?;
    }
    stage.counters()?.prove(datapath)
}

/// Writes up to `count` single bytes, as long as they are taken.
fn write_singly(mut stream: &TcpStream, count: usize) -> Result<usize> {
    stream.set_write_timeout(Some(patience(1) / 2))?;
    for done in 0..count {
        match stream.write(b"x") {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(done),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(count)
}
