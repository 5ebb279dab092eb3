//! `text::*`: names that processes, interfaces and engines choose, and answers without an end.
//!
//! Invariant: nothing that is printed has a control character but the ends of lines that bridge-user made, and JSON is
//! valid whatever is in it.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::Test;
use super::refusals::lone_host;
use crate::harness::cli::{Cli, document, expect_refusal};
use crate::harness::impostor::Impostor;
use crate::harness::netns::Netns;
use crate::harness::odd_engine::{self, Answer};
use crate::harness::proc::{Output, run_in};
use crate::harness::rig::remove_pins;
use crate::harness::service::{Port, listener};
use crate::harness::topology::{GATEWAY_A, at, local};

pub(super) const TESTS: &[Test] = &[
    Test::new("text::odd_names_of_processes_are_written_out", odd_process),
    Test::on_host("text::odd_names_of_interfaces_are_written_out", odd_interface),
    Test::new("text::odd_names_of_an_engine_are_written_out", odd_names),
    Test::new("text::an_answer_without_an_end_costs_bounded_memory", endless),
];

/// A line that pretends to be a step, a terminal's escape, a C1 control, and text that turns around.
const ODD: &str = "x\n9. y\u{1b}[2J";

/// What people read has no odd characters, and each line is one that bridge-user made.
fn expect_plain(text: &str) -> Result<()> {
    let odd = |c: &char| (c.is_control() && *c != '\n') || matches!(c, '\u{202a}'..='\u{202e}');
    ensure!(!text.chars().any(|c| odd(&c)), "odd characters in {text:?}");
    Ok(())
}

/// Runs it, and checks both streams.
fn plain(cli: &Cli<'_>, arguments: &[&str]) -> Result<Output> {
    let output = cli.run(arguments)?;
    expect_plain(&output.stdout).and_then(|()| expect_plain(&output.stderr))?;
    Ok(output)
}

/// A process with an odd name that listens on the target and on the gateway's port 7002.
fn odd_process() -> Result<()> {
    let host = lone_host()?;
    let held = listener(&host, local(7001), Port::Exclusive)?;
    let another = listener(&host, at(GATEWAY_A, 7002), Port::Exclusive)?;
    let _process = Impostor::start(&host, ODD, &["sleep", "1000000"], held, Some(another))?;
    let cli = Cli::new(&host);
    let dry_run = ["attach", "7001", "--bridge", "br-a", "--dry-run"];
    let output = plain(&cli, &dry_run)?;
    output.success()?;
    ensure!(
        output.stdout.contains(r"register x\n9. y\u{1b}[2J (pid "),
        "the name is lost: {}",
        output.stdout
    );
    let json = document(&cli.ok(&[&dry_run[..], &["--output", "json"]].concat())?)?;
    let steps = json["steps"].as_array().context("no steps")?.len();
    let shown =
        output.stdout.lines().filter(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit()));
    ensure!(shown.count() == steps, "other than {steps} steps: {}", output.stdout);
    let refusal = plain(&cli, &["attach", "7002:7001", "--bridge", "br-a"])?;
    expect_refusal(&refusal, 1, &[r"\u{1b}[2J (pid "])?;
    host.nothing_pinned()
}

/// The kernel takes every name without white space, `/` and `:`.
fn odd_interface() -> Result<()> {
    let name = "b\u{1b}[1m\u{9b}J\u{202e}";
    let host = Netns::new()?;
    host.ip(&format!(
        "link add {name} type bridge\naddr add 172.30.1.1/24 dev {name}\nlink set {name} up\n\
         link add d\u{1b}c type vxlan id 7 local 127.0.0.1 dstport 4789\nlink set d\u{1b}c master {name}\n"
    ))?;
    let cli = Cli::new(&host);
    let outcome = odd_attachment(&cli, name);
    remove_pins(&host);
    outcome
}

fn odd_attachment(cli: &Cli<'_>, name: &str) -> Result<()> {
    let refusal = plain(cli, &["attach", "7001", "--bridge", name])?;
    expect_refusal(&refusal, 1, &[r"its port d\u{1b}c is of kind vxlan"])?;
    let attach = ["attach", "7001", "--bridge", name, "--allow", "172.30.1.0/24"];
    plain(cli, &[&attach[..], &["--dry-run"]].concat())?.success()?;
    plain(cli, &attach)?.success()?;
    let status = plain(cli, &["status"])?;
    ensure!(status.stdout.contains(r"b\u{1b}[1m\u{9b}J\u{202e}"), "the name is lost: {}", status.stdout);
    let attachments = cli.status()?;
    ensure!(attachments.len() == 1 && attachments[0].raw["bridge"] == name, "JSON has {attachments:?}");
    plain(cli, &["events"])?.success()?;
    let detached = plain(cli, &["detach", "--all"])?;
    detached.success()
}

fn odd_names() -> Result<()> {
    let host = lone_host()?;
    let networks =
        json!([{"Id": "aa11", "Name": format!("net{ODD}\u{202e}"), "Driver": "bridge"}]).to_string();
    let engine = odd_engine::start(Answer::Text(networks))?;
    let cli = Cli::new(&host).with_docker(&engine.endpoint());
    let refusal = plain(&cli, &["attach", "7001", "--network", "app"])?;
    expect_refusal(&refusal, 1, &["app", r"y\u{1b}[2J\u{202e}"])?;
    let message = json!({"message": format!("no\r{ODD}")}).to_string();
    let engine = odd_engine::start(Answer::Text(message))?;
    let cli = Cli::new(&host).with_docker(&engine.endpoint());
    expect_refusal(&plain(&cli, &["attach", "7001"])?, 1, &["failed to list networks"])
}

/// The binary has a gigabyte of address space, of which an answer may take its share and no more.
fn endless() -> Result<()> {
    let host = lone_host()?;
    let engine = odd_engine::start(Answer::Endless)?;
    let attach = Cli::new(&host).with_docker(&engine.endpoint()).command(&["attach", "7001"])?;
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -v 1000000; exec \"$0\" \"$@\""]).arg(attach.get_program());
    limited.args(attach.get_args()).env("DOCKER_HOST", engine.endpoint());
    let refusal = run_in(&host, &mut limited)?;
    expect_refusal(&refusal, 1, &["failed to list networks", "longer than 32 MiB"])
}
