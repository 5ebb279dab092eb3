//! `told::*`: what attach tells of the services: what to put into the container, and how they treat such clients.
//!
//! Invariant: what is told is used as it stands, by real parts, and it works.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Test;
use super::refusals::lone_host;
use crate::harness::cli::{Cli, Finding};
use crate::harness::docker::Engine;
use crate::harness::image;
use crate::harness::mariadb::{self, Mariadb};
use crate::harness::postgres::{self, Postgres};
use crate::harness::redis::Redis;
use crate::harness::rig::{Moved, Rig, expect_moved, remove_pins};
use crate::harness::topology::{A1, GATEWAY_A, GATEWAY_B};

pub(super) const TESTS: &[Test] = &[
    Test::on_host("told::what_containers_are_given", what_containers_are_given),
    Test::on_host("told::compose_snippet_reaches_the_service", compose),
    Test::on_host("told::mysql_accounts_let_containers_in", mysql_accounts),
    Test::on_host("told::pg_hba_lines_let_all_attached_subnets_in", pg_hba),
    Test::on_host("told::services_that_trust_local_clients_are_warned_of", trusting_services),
    Test::on_host("told::tables_fit_eighty_columns", tables),
];

const GIVEN: [(&str, &str, &str); 6] = [
    ("ollama", "ollama-11434", "OLLAMA_HOST=http://172.30.1.1:11434"),
    ("postgres", "postgres-5432", "DATABASE_URL=postgresql://USER@172.30.1.1:5432/DB"),
    ("mysql", "mysql-3306", "DATABASE_URL=mysql://USER@172.30.1.1:3306/DB"),
    ("redis=7000", "redis-7000", "REDIS_URL=redis://172.30.1.1:7000"),
    ("litellm", "litellm-4000", "OPENAI_BASE_URL=http://172.30.1.1:4000/v1"),
    ("web=8080:3000", "web-8080", "172.30.1.1:8080"),
];

fn what_containers_are_given() -> Result<()> {
    let host = lone_host()?;
    let specs: Vec<&str> = GIVEN.iter().map(|(spec, _, _)| *spec).collect();
    let attach = [&["attach", "--bridge", "br-a"], &specs[..]].concat();
    let cli = Cli::new(&host);
    let outcome = cli.ok(&attach).and_then(|text| Ok((text, cli.json(&attach)?)));
    remove_pins(&host);
    let (text, document) = outcome?;
    for (_, name, given) in GIVEN {
        let line = format!("\nbr-a-{name}: containers use {given}\n");
        ensure!(text.contains(&line), "attach does not say {line:?}: {text}");
        let url = given.split_once('=').map_or(given, |(_, url)| url);
        let entry = named(&document, &format!("br-a-{name}"))?;
        ensure!(
            entry["connect"] == serde_json::json!([url]),
            "JSON has {} instead of {url}",
            entry["connect"]
        );
        ensure!(entry["protocol"] == "tcp" && entry["localhost"] == false, "JSON has {entry}");
    }
    Ok(())
}

fn named<'a>(document: &'a Value, name: &str) -> Result<&'a Value> {
    let all = document["attachments"].as_array().context("no list of attachments")?;
    all.iter()
        .find(|entry| entry["name"] == name)
        .with_context(|| format!("no attachment {name}: {document}"))
}

/// The host's name, the network and the environment of the snippet, given to `docker run`.
fn compose() -> Result<()> {
    let engine = Engine::start()?;
    image::with_program(&engine, "redis", "redis-cli")?;
    engine.docker(&["network", "create", "appnet"])?;
    let _redis = Redis::open(&engine.host)?;
    let attach = ["attach", "redis", "--network", "appnet", "--print", "compose"];
    let output = engine.cli().run(&attach)?;
    output.success()?;
    let gateway = engine.gateway("appnet")?;
    let expected = format!(
        "services:\n  app:\n    networks: [appnet]\n    extra_hosts: [\"host.docker.internal:{gateway}\"]\n    \
         environment:\n      REDIS_URL: \"redis://host.docker.internal:6379\"\nnetworks:\n  appnet:\n    \
         external: true\n"
    );
    ensure!(output.stdout == expected, "the snippet is {}", output.stdout);
    ensure!(output.stderr.contains("protected mode"), "the note is lost: {}", output.stderr);
    let host = format!("host.docker.internal:{gateway}");
    let client = ["redis-cli", "-u", "redis://host.docker.internal:6379", "ping"];
    let run = [&["run", "--rm", "--network", "appnet", "--add-host", &host, "redis"], &client[..]].concat();
    let name = "appnet-redis-6379";
    let said = expect_moved(&engine.cli(), name, Moved::accepted(1), || engine.docker(&run))?;
    ensure!(said == "PONG", "Redis says {said}");
    Ok(())
}

fn pg_hba() -> Result<()> {
    let rig = Rig::new()?;
    let document = rig.cli().json(&["attach", "postgres", "--bridge", "br-a", "--bridge", "br-b"])?;
    let found = Finding::list(named(&document, "br-a-postgres-5432")?)?;
    let note = found.iter().find(|finding| finding.code == "service-note").context("no note")?;
    let lines: Vec<&str> = note.cure.split('`').filter(|part| part.starts_with("host ")).collect();
    ensure!(lines.len() == 2, "not a line for each subnet: {}", note.cure);
    // Nobody has a password in this cluster.
    let rules: String = lines.iter().map(|line| line.replace("scram-sha-256", "trust") + "\n").collect();
    let _postgres = Postgres::start(&rig.net.host, 5432, &rules)?;
    for (bridge, client, gateway) in [("br-a", &rig.net.a1, GATEWAY_A), ("br-b", &rig.net.b1, GATEWAY_B)] {
        let name = format!("{bridge}-postgres-5432");
        let query = || postgres::query(client, &gateway.to_string(), 5432, "select 1");
        rig.expect(&name, Moved::accepted(1), query)?.success()?;
    }
    Ok(())
}

/// What the note says MariaDB answers is what it answers, and the account that it names is one.
fn mysql_accounts() -> Result<()> {
    let rig = Rig::new()?;
    let mariadb = Mariadb::start(&rig.net.host, &[])?;
    let sql = |statement: &str| mariadb.sql(&rig.net.host, statement);
    sql("create user app@localhost identified by 'secret'")?;
    let attach = ["attach", "mariadb", "--bridge", "br-a"];
    let document = rig.cli().json(&attach)?;
    let name = "br-a-mariadb-3306";
    let found = Finding::list(named(&document, name)?)?;
    let note = found.iter().find(|finding| finding.code == "service-note").context("no note")?;
    let account =
        || rig.expect(name, Moved::accepted(1), || mariadb::account(&rig.net.a1, &GATEWAY_A.to_string()));
    let refused = |expected: &str, told: &str| -> Result<()> {
        ensure!(note.cause.contains(told), "the note is {}", note.cause);
        let output = account()?;
        ensure!(output.code == Some(1) && output.stderr.contains(expected), "it says {}", output.stderr);
        Ok(())
    };
    let allowed = |expected: &str| -> Result<()> {
        let output = account()?;
        output.success()?;
        ensure!(output.stdout.trim() == expected, "the account is {}", output.stdout);
        Ok(())
    };
    refused(&format!("Host '{A1}' is not allowed to connect"), "`Host … is not allowed to connect`")?;
    sql("create user other@'%' identified by 'secret'")?;
    refused(&format!("Access denied for user 'app'@'{A1}'"), "`Access denied for user`")?;
    rig.cli().ok(&[&attach[..], &["--identity", "loopback"]].concat())?;
    allowed("app@localhost")?;
    rig.cli().ok(&attach)?;
    let cure =
        note.cure.split('`').find(|part| part.starts_with("'USER'@")).context("it names no account")?;
    sql(&format!("create user {} identified by 'secret'", cure.replace("'USER'", "app")))?;
    allowed(&format!("app@{}", cure.trim_start_matches("'USER'@").trim_matches('\'')))
}

fn trusting_services() -> Result<()> {
    let host = lone_host()?;
    let cli = Cli::new(&host);
    let attach = ["attach", "openclaw", "smtp", "mcp=8931", "--bridge", "br-a"];
    let outcome = cli.ok(&[&attach[..], &["--identity", "loopback"]].concat()).and_then(|local| {
        let remote = cli.ok(&attach)?;
        Ok((local, remote))
    });
    remove_pins(&host);
    let (local, remote) = outcome?;
    for warning in ["warning: openclaw: approves new devices", "warning: smtp: relays for 127.0.0.1"] {
        ensure!(local.contains(warning) && !remote.contains(warning), "{warning}: {local}\n{remote}");
    }
    ensure!(remote.contains("`Relay access denied`") && remote.contains("`172.30.1.0/24`"), "{remote}");
    for said in [&local, &remote] {
        ensure!(said.contains("a Host header other than localhost:PORT"), "nothing on MCP: {said}");
    }
    Ok(())
}

/// Standard output is no terminal here.
fn tables() -> Result<()> {
    let rig = Rig::new()?;
    rig.attach("a-service-with-a-long-name=7001")?;
    let status = rig.cli().ok(&["status"])?;
    let check = rig.cli().ok(&["check"])?;
    // What is found is said in lines below the table.
    let table = status.lines().take_while(|line| !line.contains(": nothing listens"));
    let wide: Vec<_> = table.chain(check.lines()).filter(|line| line.chars().count() > 80).collect();
    ensure!(wide.is_empty(), "these are wider: {wide:#?}");
    for text in [
        "br-a-a-service-with-a-long-name-7001",
        "waiting-for-listener",
        "ALLOW 172.30.1.0/24",
        "172.30.1.1:7001",
    ] {
        ensure!(status.contains(text), "status does not say {text}: {status}");
    }
    Ok(())
}
