//! `relay::*`: what can be behind a relay, and what it learns about the client.
//!
//! Invariant: the target itself says how it was reached.

use std::fs::Permissions;
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use anyhow::{Context, Result, ensure};

use super::Test;
use crate::harness::client::{connect, many_rounds, with_deadlines};
use crate::harness::endings::{expect_bytes, expect_turned_away};
use crate::harness::foreground::Foreground;
use crate::harness::noise;
use crate::harness::postgres::{self, Postgres};
use crate::harness::redis::{Redis, Session};
use crate::harness::relay::{Datapath, NAME, RelayCounters, Stage, counters, final_counters, gateway, start};
use crate::harness::rig::Rig;
use crate::harness::service::{Port, Service, listener};
use crate::harness::topology::{A1, A1_6, GATEWAY_A, GATEWAY_A6, at, at6};

pub(super) const TESTS: &[Test] = both_relays![
    Namespaces: "ipv6_gateway_and_target" => ipv6,
    Host: "proxy_protocol_v1_names_the_client" => proxy_v1,
    Host: "proxy_protocol_v2_names_the_client" => proxy_v2,
    Host: "proxy_protocol_v2_over_ipv6" => proxy_v2_over_ipv6,
];

pub(super) const REAL: &[Test] = &[
    Test::new("relay::splice::redis_by_its_unix_socket", redis),
    Test::with_sockmap("relay::sockmap::unix_target_is_spliced_and_says_so", redis_despite_sockmap),
    Test::new("relay::splice::unix_target_down_resets_the_client_and_says_why", unix_down),
    Test::on_host("relay::splice::postgres_by_its_unix_socket", postgres),
];

fn proxy_v1(datapath: Datapath) -> Result<()> {
    let stage = Stage::with(datapath, &["--proxy-protocol", "v1"])?;
    let (client, server) = stage.pair()?;
    let port = client.local_addr()?.port();
    // Without a byte from the client: a target that speaks first has to know it, too.
    expect_bytes(&server, format!("PROXY TCP4 {A1} {GATEWAY_A} {port} 7001\r\n").as_bytes())?;
    carries_on(&stage, &client, &server)
}

fn proxy_v2(datapath: Datapath) -> Result<()> {
    let stage = Stage::with(datapath, &["--proxy-protocol", "v2"])?;
    let (client, server) = stage.pair()?;
    let port = client.local_addr()?.port().to_be_bytes();
    let addresses = [&A1.octets()[..], &GATEWAY_A.octets(), &port, &7001_u16.to_be_bytes()].concat();
    expect_bytes(&server, &[&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &addresses].concat())?;
    carries_on(&stage, &client, &server)
}

/// Bytes follow the header, which is counted nowhere.
fn carries_on(stage: &Stage, client: &TcpStream, server: &TcpStream) -> Result<()> {
    let before = stage.counters()?;
    ensure!((before.bytes_up, before.bytes_down) == (0, 0), "the header was counted: {before:?}");
    stage.warm_up(client, server)?;
    noise::both_ways(client, server, 1 << 20)?;
    stage.all_ended_well(1).map(drop)
}

fn ipv6_relay(rig: &Rig, datapath: Datapath, options: &[&str]) -> Result<Foreground> {
    let relay = start(&rig.cli(), "7001:::1:7001", datapath, options)?;
    let shown = rig.cli().attachment(NAME)?.gateways;
    let name = GATEWAY_A6.to_string();
    ensure!(shown.contains(&name), "{name} is not among {shown:?}");
    Ok(relay)
}

fn ipv6(datapath: Datapath) -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, at6(Ipv6Addr::LOCALHOST, 7001))?;
    let _relay = ipv6_relay(&rig, datapath, &[])?;
    let outcome = (0..10).try_for_each(|_| rig.net.a1.run(|| many_rounds(at6(GATEWAY_A6, 7001))));
    // Also when one failed: the counters tell `unless_repeated` why.
    let now = counters(&rig.cli(), NAME, datapath);
    outcome?;
    let seen = service.peers();
    ensure!(seen.len() == 10, "the service saw {} connections", seen.len());
    ensure!(seen.iter().all(|peer| peer.remote.ip() == Ipv6Addr::LOCALHOST), "the service saw {seen:?}");
    let now = now?;
    ensure!((now.accepted, now.no_listener, now.denied) == (10, 0, 0), "the counters are {now:?}");
    now.prove(datapath)
}

fn proxy_v2_over_ipv6(datapath: Datapath) -> Result<()> {
    let rig = Rig::new()?;
    let loopback = SocketAddr::from((Ipv6Addr::LOCALHOST, 7001));
    let target = listener(&rig.net.host, loopback, Port::Exclusive)?;
    let _relay = ipv6_relay(&rig, datapath, &["--proxy-protocol", "v2"])?;
    let client = connect(&rig.net.a1, at6(GATEWAY_A6, 7001))?;
    let server = with_deadlines(target.accept()?.0)?;
    let port = client.local_addr()?.port().to_be_bytes();
    let addresses = [&A1_6.octets()[..], &GATEWAY_A6.octets(), &port, &7001_u16.to_be_bytes()].concat();
    expect_bytes(&server, &[&b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24"[..], &addresses].concat())
}

/// What a relay to a UNIX socket counted: the bytes were spliced, and nobody tried anything else.
fn spliced(rig: &Rig, name: &str) -> Result<RelayCounters> {
    let now = counters(&rig.cli(), name, Datapath::Splice)?;
    ensure!(now.bytes_up > 0 && now.bytes_down > 0 && now.no_listener == 0, "the counters are {now:?}");
    now.prove(Datapath::Splice)?;
    Ok(now)
}

fn redis() -> Result<()> {
    redis_with(Datapath::Splice)
}

/// Whoever asks for sockmap learns that a UNIX socket cannot have it, and is served all the same.
fn redis_despite_sockmap() -> Result<()> {
    redis_with(Datapath::Sockmap)
}

fn redis_with(asked: Datapath) -> Result<()> {
    let rig = Rig::new()?;
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("redis.sock");
    let path = socket.to_str().context("an odd temporary directory")?;
    let _redis = Redis::start(&rig.net.host, 6379, &["--unixsocket", path])?;
    let spec = format!("redis=6379:unix:{path}");
    let relay = Foreground::start(&rig.cli(), &[&[&spec, "--bridge", "br-a"], asked.options()?].concat())?;
    let shown = &relay.report()["attachments"][0];
    ensure!(shown["datapath"] == "splice", "the report is {shown}");
    let reason = shown["reason"].as_str().unwrap_or_default();
    ensure!(asked == Datapath::Splice || reason.contains("UNIX"), "the reason is {reason:?}");
    let mut session = Session::open(&rig.net.a1, at(GATEWAY_A, 6379))?;
    for turn in 0..100 {
        let stored = session.command(&format!("SET key:{turn} {turn}"))?;
        ensure!(stored == "+OK", "SET gave {stored}");
        let found = session.command(&format!("GET key:{turn}"))?;
        ensure!(found == turn.to_string(), "GET gave {found}");
    }
    let clients = session.command("CLIENT LIST")?;
    ensure!(clients.contains(&format!(" addr={path}:0 ")), "redis sees no UNIX client: {clients}");
    drop(session);
    let now = spliced(&rig, "br-a-redis-6379")?;
    ensure!(now.accepted == 1, "the counters are {now:?}");
    Ok(())
}

fn unix_down() -> Result<()> {
    let rig = Rig::new()?;
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("s");
    let path = socket.to_str().context("an odd temporary directory")?;
    let relay = start(&rig.cli(), &format!("7001:unix:{path}"), Datapath::Splice, &[])?;
    expect_turned_away(&rig.net.a1, gateway())?;
    relay.says(&[path, "there is no socket at this path"])?;
    drop(UnixListener::bind(&socket)?);
    // Who was attached to nothing is nobody.
    expect_turned_away(&rig.net.a1, gateway())?;
    relay.says(&[path, "attach again while the service runs"])?;
    std::fs::set_permissions(&socket, Permissions::from_mode(0o666))?;
    expect_turned_away(&rig.net.a1, gateway())?;
    relay.says(&[path, "leftover"])?;
    let now = final_counters(&rig.cli(), NAME, Datapath::Splice)?;
    ensure!(now == RelayCounters { no_listener: 3, ..RelayCounters::default() }, "the counters are {now:?}");
    Ok(())
}

/// A real client with a real protocol, a result of some megabytes and an upload.
fn postgres() -> Result<()> {
    let rig = Rig::new()?;
    let (server, socket) = Postgres::start_with_socket(&rig.net.host, 5432)?;
    let _relay =
        start(&rig.cli(), &format!("postgres=5432:unix:{}", socket.display()), Datapath::Splice, &[])?;
    let gateway = GATEWAY_A.to_string();
    let ask = |statement: &str| -> Result<String> {
        let answer = postgres::query(&rig.net.a1, &gateway, 5432, statement)?;
        answer.success()?;
        Ok(answer.stdout.trim().to_owned())
    };
    // Over a UNIX socket there is no client address.
    let statement = "select client_addr is null from pg_stat_activity where pid = pg_backend_pid()";
    let local = ask(statement)?;
    ensure!(local == "t", "pg_stat_activity knows an address: {local}");
    let rows =
        ask("select g::text || repeat('.', 30) || (g::bigint * 7919) from generate_series(1, 100000) g")?;
    let expected = (1..=100_000_u64).map(|g| format!("{g}{}{}", ".".repeat(30), g * 7919));
    ensure!(rows.lines().eq(expected), "the rows differ, {} came", rows.lines().count());
    let long = "x".repeat(100_000);
    let length = ask(&format!("select length('{long}')"))?;
    ensure!(length == "100000", "the server got {length} of 100000 characters");
    let now = spliced(&rig, "br-a-postgres-5432")?;
    ensure!(now.accepted >= 3 && now.bytes_down > 3_000_000, "the counters are {now:?}");
    drop(server);
    Ok(())
}
