//! `relay::*`: how a relay is ended: by a signal, or by detach.
//!
//! Invariants: it stops accepting first, serves what is open until the drain timeout, resets the
//! rest and says how many, exits 0, and leaves neither a port nor anything in the kernel.

use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::Test;
use crate::harness::cli::{Finding, document};
use crate::harness::client::refused;
use crate::harness::endings::{expect_bytes, expect_fin, expect_reset};
use crate::harness::kernel_ids::KernelIds;
use crate::harness::noise;
use crate::harness::relay::{Datapath, NAME, Stage, gateway, start};
use crate::harness::wait::{patience, until};

pub(super) const TESTS: &[Test] = both_relays![
    Namespaces: "sigterm_lets_one_finish_and_cuts_the_one_that_stalls" => drain,
    Host: "sigint_ends_an_idle_relay_at_once" => interrupt,
    Host: "detach_by_name_drains_and_ends_it" => |datapath| detach(datapath, NAME, None),
    Host: "detach_by_service_ends_it" => |datapath| detach(datapath, "tcp", None),
    Host: "detach_all_ends_it" => |datapath| detach(datapath, "--all", None),
    Host: "sigterm_while_detach_drains_cuts_nothing" => |datapath| detach(datapath, NAME, Some(Signal::SIGTERM)),
    Host: "one_that_is_stopped_keeps_nothing_else_open" => stopped,
];

/// Waits until the port is closed. Not by trying: what connects in time gets its place.
fn stops_accepting(stage: &Stage) -> Result<()> {
    until("nobody listens on the gateway's port", patience(10), || {
        Ok((!stage.rig.net.host.listening()?.contains(&gateway())).then_some(()))
    })?;
    refused(&stage.rig.net.a1, gateway())
}

/// The process ended well and left nothing.
fn ended(stage: &mut Stage) -> Result<()> {
    let status = stage.relay.end()?;
    ensure!(status.code() == Some(0), "the relay ended with {status}");
    ensure!(stage.rig.cli().status()?.is_empty(), "status still shows the relay");
    stage.rig.net.host.nothing_pinned()
}

fn drain(datapath: Datapath) -> Result<()> {
    const REST: usize = 64 * 1024;
    let ids = KernelIds::take()?;
    // All that one connection does after the signal has to fit in, and the other one waits for all of it.
    let timeout = patience(2).max(Duration::from_secs(4));
    let mut stage = Stage::with(datapath, &["--drain-timeout", &timeout.as_secs().to_string()])?;
    let (mut client, server) = stage.warm_pair()?;
    let (stalled_client, stalled_server) = stage.warm_pair()?;
    stalled_client.set_read_timeout(Some(patience(10)))?;
    stage.relay.signal(Signal::SIGTERM);
    stops_accepting(&stage)?;
    client.write_all(b"the last words")?;
    client.shutdown(Shutdown::Write)?;
    expect_bytes(&server, b"the last words")?;
    expect_fin(&server)?;
    noise::send(&server, 1, REST)?;
    drop(server);
    noise::expect(&client, 1, REST)?;
    expect_fin(&client)?;
    ensure!(stage.relay.is_running()?, "the relay ended while a connection was open");
    ensure!(
        expect_reset(&stalled_client)? == 0 && expect_reset(&stalled_server)? == 0,
        "bytes before the reset"
    );
    ended(&mut stage)?;
    stage.relay.says(&["reset 1 connection"])?;
    ids.wait_equal().context("after the drain")
}

fn interrupt(datapath: Datapath) -> Result<()> {
    let ids = KernelIds::take()?;
    let mut stage = Stage::with(datapath, &["--drain-timeout", "600"])?;
    drop(stage.warm_pair()?);
    stage.all_ended_well(1)?;
    stage.relay.signal(Signal::SIGINT);
    ended(&mut stage)?;
    refused(&stage.rig.net.a1, gateway())?;
    ids.wait_equal().context("after the interrupt")?;
    // The port is free for the next one.
    stage.relay = start(&stage.rig.cli(), "7001", datapath, &[])?;
    drop(stage.warm_pair()?);
    stage.all_ended_well(1).map(drop)
}

fn detach(datapath: Datapath, what: &str, meanwhile: Option<Signal>) -> Result<()> {
    let mut stage = Stage::with(datapath, &["--drain-timeout", "600"])?;
    let (mut client, server) = stage.warm_pair()?;
    std::thread::scope(|scope| -> Result<()> {
        let verb = scope.spawn(|| stage.rig.cli().ok(&["detach", what]));
        stops_accepting(&stage)?;
        if let Some(signal) = meanwhile {
            stage.relay.signal(signal);
            // Long enough for a process that would end at once.
            std::thread::sleep(Duration::from_millis(300));
        }
        client.write_all(b"still here")?;
        expect_bytes(&server, b"still here")?;
        drop(client);
        expect_fin(&server)?;
        drop(server);
        let text = verb.join().map_err(|_| anyhow::anyhow!("detach panicked"))??;
        ensure!(text.contains(NAME), "detach does not name {NAME}: {text}");
        Ok(())
    })?;
    ended(&mut stage)
}

/// It cannot answer, so nobody knows what it runs. What is steered is detached nevertheless, and `status` shows it.
fn stopped(datapath: Datapath) -> Result<()> {
    const STEERED: &str = "br-a-tcp-7002";
    let stage = Stage::new(datapath)?;
    let cli = stage.rig.cli();
    stage.rig.attach("7002")?;
    stage.relay.signal(Signal::SIGSTOP);
    let status = cli.run(&["status", "--output", "json"])?;
    ensure!(status.stdout.contains(STEERED), "status does not show {STEERED}: {}", status.stdout);
    ensure!(status.code == Some(1) && status.stderr.contains("kill -CONT"), "status says {status:?}");
    let found = Finding::list(&document(&status.stdout)?)?;
    let silent = found.first().is_some_and(|finding| finding.code == "relay-silent");
    ensure!(silent && status.stderr.contains(&found[0].cause), "status has the findings {found:?}");
    cli.refused(&["detach", "--all"], 1, &["failed to ask relay process"])?;
    stage.relay.signal(Signal::SIGCONT);
    let left: Vec<_> = cli.status()?.into_iter().map(|attachment| attachment.name).collect();
    ensure!(left == [NAME], "left is {left:?}");
    drop(stage.warm_pair()?);
    stage.all_ended_well(1).map(drop)
}
