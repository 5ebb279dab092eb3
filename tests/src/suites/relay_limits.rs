//! `relay::*`: who may connect, for how long, and how many.
//!
//! Invariant: whoever may not is reset, counted under its own name, and never reaches the target.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Test;
use crate::harness::client::{connect, refused};
use crate::harness::endings::{expect_bytes, expect_reset, expect_turned_away};
use crate::harness::relay::{Datapath, NAME, RelayCounters, Stage, fill_queue, gateway};
use crate::harness::rig::Rig;
use crate::harness::service::{Port, listener};
use crate::harness::topology::{GATEWAY_B, UPLINK, at, local};
use crate::harness::wait::{patience, until};

pub(super) const TESTS: &[Test] = both_relays![
    Namespaces: "a_source_that_is_not_allowed_never_reaches_the_target" => denied,
    Namespaces: "other_interfaces_never_reach_the_relay" => other_interfaces,
    Namespaces: "silence_ends_with_a_reset_and_traffic_prevents_it" => idle,
    Host: "connections_over_the_limit_are_reset" => over_limit,
    Namespaces: "one_source_leaves_places_for_the_others" => over_share,
    Host: "a_target_that_does_not_accept_is_given_up" => never_accepts,
];

/// The target has no connection waiting.
fn nobody_came(stage: &Stage) -> Result<()> {
    let waiting = stage.target.accept();
    ensure!(
        waiting.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock),
        "the target got {waiting:?}"
    );
    Ok(())
}

fn denied(datapath: Datapath) -> Result<()> {
    let stage = Stage::with(datapath, &["--allow", "172.30.1.11/32"])?;
    let shown = stage.rig.cli().attachment(NAME)?.allow;
    ensure!(shown == ["172.30.1.11/32"], "the list is {shown:?}");
    for _ in 0..3 {
        expect_turned_away(&stage.rig.net.a2, gateway())?;
    }
    nobody_came(&stage)?;
    let now = stage.counters()?;
    ensure!(now == RelayCounters { denied: 3, ..RelayCounters::default() }, "the counters are {now:?}");
    stage.relay.says(&["172.30.1.12", "--allow"])?;
    drop(stage.warm_pair()?);
    let ended = stage.counters_become("it ended", |now| now.active == 0)?;
    ensure!((ended.accepted, ended.denied) == (1, 3), "the counters are {ended:?}");
    ended.prove(datapath)
}

/// The weak host model would let them in by the gateway's address; the relay's socket is bound to the
/// bridge, so the kernel answers for it. To the kernel the host's own packets to the gateway's address
/// are the bridge's: the relay turns them away, or a local user would reach a UNIX socket as root.
fn other_interfaces(datapath: Datapath) -> Result<()> {
    let stage = Stage::with(datapath, &["--allow", "0.0.0.0/0"])?;
    let net = &stage.rig.net;
    for stranger in [&net.b1, &net.outside] {
        for address in [gateway(), at(GATEWAY_B, 7001), at(UPLINK, 7001)] {
            refused(stranger, address)?;
        }
    }
    for address in [at(GATEWAY_B, 7001), at(UPLINK, 7001)] {
        refused(&net.a1, address)?;
    }
    nobody_came(&stage)?;
    let now = stage.counters()?;
    ensure!(now == RelayCounters::default(), "the relay noticed the strangers: {now:?}");
    expect_turned_away(&net.host, gateway())?;
    nobody_came(&stage)?;
    stage.relay.says(&["172.30.1.1", "the host itself"])?;
    drop(stage.warm_pair()?);
    let ended = stage.counters_become("it ended", |now| now.active == 0)?;
    ensure!((ended.accepted, ended.denied) == (1, 1), "the counters are {ended:?}");
    ended.prove(datapath)
}

/// One place, so that there is no share of it to speak of.
fn over_limit(datapath: Datapath) -> Result<()> {
    let stage = Stage::with(datapath, &["--max-connections", "1"])?;
    let (mut client, server) = stage.warm_pair()?;
    expect_turned_away(&stage.rig.net.a2, gateway())?;
    nobody_came(&stage)?;
    let now = stage.counters_become("it is counted", |now| now.over_limit == 1)?;
    ensure!((now.over_share, now.active) == (0, 1), "the counters are {now:?}");
    stage.relay.says(&["max-connections"])?;
    client.write_all(b"those inside do not notice")?;
    expect_bytes(&server, b"those inside do not notice")?;
    drop((client, server));
    stage.counters_become("the place is free", |now| now.active == 0)?;
    drop(stage.warm_pair()?);
    let ended = stage.counters_become("all ended", |now| now.active == 0)?;
    ensure!((ended.accepted, ended.over_limit, ended.resets) == (2, 1, 0), "the counters are {ended:?}");
    ended.prove(datapath)
}

/// A source may hold as many as it leaves free, and so does the next one of the rest.
fn over_share(datapath: Datapath) -> Result<()> {
    let stage = Stage::with(datapath, &["--max-connections", "8"])?;
    let mut first = Vec::new();
    for _ in 0..4 {
        first.push(stage.warm_pair()?);
    }
    expect_turned_away(&stage.rig.net.a1, gateway())?;
    let of_second = || -> Result<_> { Ok((connect(&stage.rig.net.a2, gateway())?, stage.accept()?)) };
    let second = [of_second()?, of_second()?];
    expect_turned_away(&stage.rig.net.a2, gateway())?;
    nobody_came(&stage)?;
    let now = stage.counters_become("all are counted", |now| now.accepted == 6 && now.over_share == 2)?;
    ensure!((now.over_limit, now.active) == (0, 6), "the counters are {now:?}");
    stage.relay.says(&["as many connections as are free", "max-connections"])?;
    // What the others give back, everybody may have.
    drop(second);
    stage.counters_become("two places are free", |now| now.active == 4)?;
    drop(first.pop());
    stage.counters_become("a third one is, too", |now| now.active == 3)?;
    first.push(stage.warm_pair()?);
    drop(first);
    let ended = stage.counters_become("all ended", |now| now.active == 0)?;
    ensure!((ended.accepted, ended.resets, ended.over_share) == (7, 0, 2), "the counters are {ended:?}");
    ended.prove(datapath)
}

/// Bytes in one direction are enough, also where they pass the relay's process by.
fn idle(datapath: Datapath) -> Result<()> {
    let timeout = patience(1).max(Duration::from_secs(2));
    let stage = Stage::with(datapath, &["--idle-timeout", &timeout.as_secs().to_string()])?;
    let (client, server) = stage.warm_pair()?;
    // The last one to be warm: from its first byte on it is never silent for long.
    let (mut busy, busy_server) = stage.warm_pair()?;
    let start = Instant::now();
    let now = until("only the silent connection is closed", patience(10), || {
        std::thread::sleep(timeout / 8);
        busy.write_all(b"x")?;
        expect_bytes(&busy_server, b"x")?;
        let now = stage.counters()?;
        let only_silent = (now.idle_closed, now.active) == (1, 1);
        Ok((only_silent && start.elapsed() >= 2 * timeout).then_some(now))
    })?;
    ensure!(now.resets == 0, "the counters are {now:?}");
    ensure!(expect_reset(&client)? == 0 && expect_reset(&server)? == 0, "bytes came before the reset");
    // The kernel's bytes are looked at once per timeout only, so it may take two.
    busy.set_read_timeout(Some(patience(10)))?;
    expect_reset(&busy)?;
    expect_reset(&busy_server)?;
    let ended = stage.counters_become("both are closed", |now| now.idle_closed == 2 && now.active == 0)?;
    ended.prove(datapath)
}

fn never_accepts(datapath: Datapath) -> Result<()> {
    let rig = Rig::new()?;
    let target = listener(&rig.net.host, local(7001), Port::Exclusive)?;
    let waiting = fill_queue(&rig, &target)?;
    let stage = Stage::around(rig, target, datapath, &["--connect-timeout", "1"])?;
    expect_turned_away(&stage.rig.net.a1, gateway())?;
    let now = stage.counters_become("the attempt is over", |now| now.active == 0)?;
    ensure!(now == RelayCounters { no_listener: 1, ..RelayCounters::default() }, "the counters are {now:?}");
    stage.relay.says(&["127.0.0.1:7001", "does not accept"])?;
    drop((stage.accept()?, waiting));
    drop(stage.warm_pair()?);
    let ended = stage.counters_become("it ended", |now| now.active == 0)?;
    ended.prove(datapath)
}
