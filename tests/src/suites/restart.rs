//! `restart::*`: a service that goes away and comes back is reached again without userspace.
//!
//! Invariant: between the first attach and the last check no bridge-user process runs.

use anyhow::{Context, Result, ensure};

use super::Test;
use crate::harness::client::{answers, refused};
use crate::harness::redis::{Redis, Session};
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::Service;
use crate::harness::topology::{GATEWAY_A, at, local};
use crate::harness::wait::scaled;

pub(super) const TESTS: &[Test] = &[
    Test::new("restart::service_restarts_many_times", many_restarts).in_kernels(),
    Test::new("restart::real_redis_is_killed_and_started_again", redis_restarts),
];

fn many_restarts() -> Result<()> {
    let rig = Rig::new()?;
    let strays = rig.net.strays()?;
    let gateway = at(GATEWAY_A, 7001);
    let first = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    answers(&rig.net.a1, gateway)?;
    first.stop();
    let rounds = scaled(20).max(5);
    for round in 1..=rounds {
        refused(&rig.net.a1, gateway).with_context(|| format!("before restart {round}"))?;
        let service = Service::start(&rig.net.host, local(7001))?;
        answers(&rig.net.a1, gateway).with_context(|| format!("after restart {round}"))?;
        ensure!(service.peers().len() == 1, "restart {round}: the service saw {:?}", service.peers());
        service.stop();
    }
    let waiting = rig.expect_state("br-a-tcp-7001", "waiting-for-listener")?;
    waiting.expect_finding("no-listener")?;
    let counters = waiting.counters;
    let expected = Moved { no_listener: rounds as u64, ..Moved::accepted(rounds + 1) };
    rig.expect_counts(strays, counters, expected).with_context(|| format!("after {rounds} restarts"))
}

fn redis_restarts() -> Result<()> {
    let rig = Rig::new()?;
    let strays = rig.net.strays()?;
    let gateway = at(GATEWAY_A, 6379);
    let start = || Redis::open(&rig.net.host);
    let mut redis = start()?;
    rig.attach("redis")?;
    let rounds = scaled(5).max(2);
    for round in 1..=rounds {
        let pong = Session::open(&rig.net.a1, gateway)?.command("PING")?;
        ensure!(pong == "+PONG", "round {round}: redis said {pong}");
        redis.kill()?;
        refused(&rig.net.a1, gateway).with_context(|| format!("round {round}"))?;
        redis = start()?;
    }
    let pong = Session::open(&rig.net.a1, gateway)?.command("PING")?;
    ensure!(pong == "+PONG", "after the last restart redis said {pong}");
    let counters = rig.expect_state("br-a-redis-6379", "ready")?.counters;
    rig.expect_counts(strays, counters, Moved::accepted(rounds + 1))
        .with_context(|| format!("after {rounds} restarts"))
}
