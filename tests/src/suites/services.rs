//! `services::*`: real Redis and PostgreSQL, which see the container's address.
//!
//! Invariant: what the service itself reports about its client is compared with the client's own
//! socket.

use anyhow::{Result, ensure};

use super::Test;
use crate::harness::postgres::{self, Postgres};
use crate::harness::redis::{Redis, Session};
use crate::harness::rig::{Moved, Rig};
use crate::harness::topology::{A1, GATEWAY_A, at};

pub(super) const TESTS: &[Test] = &[
    Test::new("services::redis_stores_and_names_the_container", redis).in_kernels(),
    Test::new("services::redis_protected_mode_sees_a_remote_client", redis_protected_mode),
    Test::on_host("services::postgres_answers_and_names_the_container", postgres_answers),
    Test::on_host("services::postgres_without_a_host_rule_refuses_the_container", postgres_refuses),
];

const REDIS: &str = "br-a-redis-6379";
const POSTGRES: &str = "br-a-postgres-5432";

fn redis() -> Result<()> {
    let rig = Rig::new()?;
    let _redis = Redis::open(&rig.net.host)?;
    rig.attach("redis")?;
    rig.expect_state(REDIS, "ready")?;
    rig.expect(REDIS, Moved::accepted(1), || {
        let mut session = Session::open(&rig.net.a1, at(GATEWAY_A, 6379))?;
        let stored = session.command("SET answer 42")?;
        ensure!(stored == "+OK", "SET gave {stored}");
        let found = session.command("GET answer")?;
        ensure!(found == "42", "GET gave {found}");
        let clients = session.command("CLIENT LIST")?;
        let own = session.local_addr()?;
        ensure!(own.ip() == A1, "the client's own address is {own}");
        ensure!(clients.contains(&format!(" addr={own} ")), "CLIENT LIST lacks {own}: {clients}");
        ensure!(
            clients.contains(&format!(" laddr={GATEWAY_A}:6379 ")),
            "CLIENT LIST has another laddr: {clients}"
        );
        Ok(())
    })
}

/// Redis trusts loopback only, and a container is not loopback: identity is the container's.
fn redis_protected_mode() -> Result<()> {
    let rig = Rig::new()?;
    let _redis = Redis::start(&rig.net.host, 6379, &["--protected-mode", "yes"])?;
    rig.attach("redis")?;
    let said =
        rig.expect(REDIS, Moved::accepted(1), || Session::open(&rig.net.a1, at(GATEWAY_A, 6379))?.reply())?;
    ensure!(said.starts_with("-DENIED"), "protected mode said {said}");
    Ok(())
}

fn postgres_answers() -> Result<()> {
    let rig = Rig::new()?;
    let rule = "host all all 172.30.1.0/24 trust\n";
    let _postgres = Postgres::start(&rig.net.host, 5432, rule)?;
    rig.attach("postgres")?;
    rig.expect_state(POSTGRES, "ready")?;
    let statement = "select client_addr from pg_stat_activity where pid = pg_backend_pid()";
    let gateway = GATEWAY_A.to_string();
    let answer =
        rig.expect(POSTGRES, Moved::accepted(1), || postgres::query(&rig.net.a1, &gateway, 5432, statement))?;
    answer.success()?;
    ensure!(answer.stdout.trim() == A1.to_string(), "pg_stat_activity says {}", answer.stdout);
    Ok(())
}

fn postgres_refuses() -> Result<()> {
    let rig = Rig::new()?;
    let _postgres = Postgres::start(&rig.net.host, 5432, "")?;
    rig.attach("postgres")?;
    let gateway = GATEWAY_A.to_string();
    let before = rig.cli().attachment(POSTGRES)?.counters.accepted;
    let answer = postgres::query(&rig.net.a1, &gateway, 5432, "select 1")?;
    let expected = format!("no pg_hba.conf entry for host \"{A1}\"");
    ensure!(answer.code != Some(0) && answer.stderr.contains(&expected), "psql said {answer:?}");
    // psql tries with and without encryption: every attempt was steered, none was refused.
    let after = rig.cli().attachment(POSTGRES)?.counters;
    ensure!(after.accepted > before && after.denied == 0 && after.no_listener == 0, "counters are {after:?}");
    Ok(())
}
