//! `daemon::*`: what the configuration asks for is kept true; no engine is involved.
//!
//! Invariant: a connection that is made proves by the counters which way it went.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::Test;
use crate::harness::cli::Cli;
use crate::harness::client::{answers, connect, exchange, refused};
use crate::harness::daemon::{Daemon, until_gone, until_ready};
use crate::harness::kernel_ids::KernelIds;
use crate::harness::netns::Netns;
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::Service;
use crate::harness::topology::{GATEWAY_A, GATEWAY_B, at, local};
use crate::harness::wait::{patience, until};

pub(super) const TESTS: &[Test] = &[
    Test::new("daemon::follows_its_file", follows_its_file).in_kernels(),
    Test::new("daemon::a_wrong_file_changes_nothing_and_is_told", wrong_file),
    Test::new("daemon::killed_nothing_ends_and_started_again_nothing_changes", killed),
    Test::new("daemon::what_was_typed_is_left_alone", typed),
    Test::new("daemon::detach_holds_until_it_reloads", detach_holds),
    Test::new("daemon::relays_what_cannot_be_steered", relays),
    Test::new("daemon::relays_for_attach_and_follows_its_bridge", relays_for_attach),
    Test::new("daemon::a_bridge_that_comes_again_is_attached_to_again", bridge_again),
    Test::new("daemon::a_second_one_is_refused", second),
    Test::new("daemon::what_cannot_be_attached_keeps_nothing_else_off", partly),
];

const ONE: &str = "[[attach]]\nservice = \"7001\"\nbridges = [\"br-a\"]\n";
const TWO: &str = "[[attach]]\nservice = \"7002:7001\"\nbridges = [\"br-b\"]\n";
const UNIX: &str = "[[attach]]\nservice = \"7003:unix:/run/no/such.sock\"\nbridges = [\"br-a\"]\n";
const ON_A: &str = "br-a-tcp-7001";
const ON_B: &str = "br-b-tcp-7002";

/// What `status` tells beside attachments, by code.
fn findings(cli: &Cli<'_>) -> Result<Vec<Value>> {
    let document: Value = serde_json::from_str(&cli.run(&["status", "--output", "json"])?.stdout)?;
    Ok(document["findings"].as_array().cloned().unwrap_or_default())
}

fn until_finding(cli: &Cli<'_>, code: &str) -> Result<Value> {
    until(&format!("status tells {code}"), patience(10), || {
        Ok(findings(cli)?.into_iter().find(|finding| finding["code"] == code))
    })
}

fn until_no_findings(cli: &Cli<'_>) -> Result<()> {
    until("status tells nothing", patience(10), || Ok(findings(cli)?.is_empty().then_some(())))
}

/// What `body` does is one connection by the attachment's counters, whatever carries it.
fn expect_counted(cli: &Cli<'_>, name: &str, body: impl FnOnce() -> Result<SocketAddr>) -> Result<()> {
    let before = cli.attachment(name)?.counters;
    body()?;
    let after = cli.attachment(name)?.counters;
    ensure!(after.since(before) == Some(Moved::accepted(1)), "{name}: {before:?} to {after:?}");
    Ok(())
}

fn follows_its_file() -> Result<()> {
    let rig = Rig::new()?;
    let cli = rig.cli();
    let _service = Service::start(&rig.net.host, local(7001))?;
    let daemon = Daemon::start(&cli, ONE)?;
    ensure!(cli.attachment(ON_A)?.raw["keeper"] == "config", "{}", cli.attachment(ON_A)?.raw);
    rig.expect(ON_A, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    let mut open = connect(&rig.net.a1, at(GATEWAY_A, 7001))?;
    daemon.write(&format!("{ONE}{TWO}"))?;
    until_ready(&cli, ON_B)?;
    rig.expect(ON_B, Moved::accepted(1), || answers(&rig.net.b1, at(GATEWAY_B, 7002)))?;
    daemon.write(TWO)?;
    until_gone(&cli, ON_A)?;
    refused(&rig.net.a1, at(GATEWAY_A, 7001))?;
    exchange(&mut open, b"what is open stays open")?;
    daemon.write("")?;
    until_gone(&cli, ON_B)?;
    drop(daemon);
    rig.net.host.nothing_pinned()
}

fn wrong_file() -> Result<()> {
    let rig = Rig::new()?;
    let cli = rig.cli();
    let _service = Service::start(&rig.net.host, local(7001))?;
    let mut daemon = Daemon::start(&cli, ONE)?;
    daemon.write("[[attach]]\nservice = \"7001\"\nbrigdes = [\"br-a\"]\n")?;
    let finding = until_finding(&cli, "config-refused")?;
    let cause = finding["cause"].as_str().unwrap_or_default();
    ensure!(cause.contains("config.toml:3") && cause.contains("bridges"), "the cause is {cause}");
    daemon.says(&["config.toml:3"])?;
    let check = cli.run(&["status", "--check"])?;
    ensure!(check.code == Some(1) && check.stdout.contains("config.toml:3"), "a health check says {check:?}");
    rig.expect(ON_A, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    daemon.signal(Signal::SIGHUP);
    daemon.told("READY=1")?;
    rig.expect(ON_A, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    daemon.write(&format!("{ONE}{TWO}"))?;
    until_ready(&cli, ON_B)?;
    until_no_findings(&cli)
}

fn killed() -> Result<()> {
    let rig = Rig::new()?;
    let cli = rig.cli();
    let _service = Service::start(&rig.net.host, local(7001))?;
    let daemon = Daemon::start(&cli, ONE)?;
    let mut open = connect(&rig.net.a1, at(GATEWAY_A, 7001))?;
    let ids = KernelIds::take()?;
    let directory = daemon.stop(Signal::SIGKILL)?;
    exchange(&mut open, b"nobody notices")?;
    rig.expect(ON_A, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    std::fs::write(directory.path().join("config.toml"), ONE)?;
    let daemon = Daemon::start(&cli, ONE)?;
    ids.wait_equal().context("a daemon that was started again made something again")?;
    exchange(&mut open, b"nor of the next one")?;
    rig.expect(ON_A, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    let daemon = daemon.restart(&cli, Signal::SIGTERM)?;
    ids.wait_equal().context("a daemon that was stopped took something off")?;
    drop(daemon);
    cli.ok(&["detach", "--all"])?;
    rig.net.host.nothing_pinned()
}

fn typed() -> Result<()> {
    let rig = Rig::new()?;
    let cli = rig.cli();
    let _service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7005:7001")?;
    let daemon = Daemon::start(&cli, ONE)?;
    ensure!(cli.attachment("br-a-tcp-7005")?.raw["keeper"] == "command", "it was typed");
    daemon.write(TWO)?;
    until_gone(&cli, ON_A)?;
    rig.expect("br-a-tcp-7005", Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7005)))?;
    // The file asks for it, too: from now on it follows the file.
    daemon.write("[[attach]]\nservice = \"7005:7001\"\nbridges = [\"br-a\"]\n")?;
    until("the file keeps it", patience(10), || {
        Ok((cli.attachment("br-a-tcp-7005")?.raw["keeper"] == "config").then_some(()))
    })?;
    daemon.write(TWO)?;
    until_gone(&cli, "br-a-tcp-7005")
}

fn detach_holds() -> Result<()> {
    let rig = Rig::new()?;
    let cli = rig.cli();
    let _service = Service::start(&rig.net.host, local(7001))?;
    let mut daemon = Daemon::start(&cli, &format!("{ONE}{TWO}"))?;
    cli.ok(&["detach", ON_A])?;
    // A new link is a reason to look again.
    rig.net.host.ip("link add extra0 type bridge")?;
    let all = cli.status()?;
    ensure!(all.iter().all(|one| one.name != ON_A), "it is attached again: {all:?}");
    refused(&rig.net.a1, at(GATEWAY_A, 7001))?;
    daemon.signal(Signal::SIGHUP);
    daemon.told("READY=1")?;
    rig.expect(ON_A, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    cli.ok(&["detach", "--all"])?;
    rig.net.host.ip("link del extra0")?;
    ensure!(cli.status()?.is_empty(), "something is attached after detach --all");
    rig.net.host.nothing_pinned()
}

fn relays() -> Result<()> {
    let rig = Rig::new()?;
    let cli = rig.cli();
    let _service = Service::start(&rig.net.host, local(7001))?;
    let config = format!("{ONE}datapath = \"splice\"\n{TWO}{UNIX}");
    let daemon = Daemon::start(&cli, &config)?;
    let status = cli.attachment(ON_A)?;
    ensure!(status.datapath == "splice" && status.raw["keeper"] == "config", "{}", status.raw);
    expect_counted(&cli, ON_A, || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    // The datapath of one changes, and nobody else's connection ends.
    let mut other = connect(&rig.net.b1, at(GATEWAY_B, 7002))?;
    daemon.write(&format!("{ONE}{TWO}{UNIX}"))?;
    until("it is steered", patience(10), || {
        let all = cli.status()?;
        Ok(all.iter().any(|one| one.name == ON_A && one.datapath == "steer").then_some(()))
    })?;
    rig.expect(ON_A, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    daemon.write(&config)?;
    until("it is relayed", patience(10), || {
        let all = cli.status()?;
        let found: Vec<_> = all.iter().filter(|one| one.name == ON_A).collect();
        Ok(matches!(found[..], [one] if one.datapath == "splice").then_some(()))
    })?;
    answers(&rig.net.a1, at(GATEWAY_A, 7001))?;
    exchange(&mut other, b"nothing happened here")?;
    cli.ok(&["detach", "br-a-tcp-7003"])?;
    ensure!(cli.status()?.len() == 2, "{:?}", cli.status()?);
    daemon.write(TWO)?;
    until_gone(&cli, ON_A)?;
    refused(&rig.net.a1, at(GATEWAY_A, 7001))
}

fn relays_for_attach() -> Result<()> {
    let rig = Rig::new()?;
    let cli = rig.cli();
    let _service = Service::start(&rig.net.host, local(7001))?;
    let relayed = ["attach", "7001", "--bridge", "br-a", "--datapath", "splice"];
    cli.refused(&relayed, 1, &["bridge-user run", "--foreground"])?;
    let daemon = Daemon::start(&cli, "")?;
    for _ in 0..2 {
        let report = cli.json(&relayed)?;
        ensure!(report["attachments"][0]["datapath"] == "splice", "{report}");
    }
    let serves = || expect_counted(&cli, ON_A, || answers(&rig.net.a1, at(GATEWAY_A, 7001)));
    serves()?;
    // What is typed is kept through another file, and not through a detach.
    daemon.write(TWO)?;
    until_ready(&cli, ON_B)?;
    serves()?;
    cli.ok(&["detach", ON_A])?;
    refused(&rig.net.a1, at(GATEWAY_A, 7001))?;
    cli.ok(&relayed)?;
    serves()
}

fn bridge_again() -> Result<()> {
    let rig = Rig::new()?;
    let cli = rig.cli();
    let _service = Service::start(&rig.net.host, local(7001))?;
    let made = "[[attach]]\nservice = \"7001\"\nbridges = [\"br-x\"]\n\
                [[attach]]\nservice = \"7004:7001\"\nbridges = [\"br-x\"]\ndatapath = \"splice\"\n";
    let daemon = Daemon::start(&cli, &format!("{TWO}{made}"))?;
    until_ready(&cli, ON_B)?;
    let finding = until_finding(&cli, "not-as-configured")?;
    ensure!(finding["cause"].as_str().is_some_and(|cause| cause.contains("br-x")), "{finding}");
    let x1 = Netns::new()?;
    for (round, subnet) in [51, 52, 51].into_iter().enumerate() {
        let link = format!(
            "link add br-x address 02:42:ac:1e:03:0{round} type bridge\naddr add 172.30.{subnet}.1/24 dev br-x\n\
             link set br-x up\nlink add vx1 type veth peer name eth0 netns {}\nlink set vx1 master br-x up\n",
            x1.path()
        );
        rig.net.host.ip(&link)?;
        x1.ip(&format!("addr add 172.30.{subnet}.11/24 dev eth0\nlink set eth0 up\n"))?;
        let gateway = Ipv4Addr::new(172, 30, subnet, 1);
        for (name, port) in [("br-x-tcp-7001", 7001), ("br-x-tcp-7004", 7004)] {
            until(&format!("{name} serves {gateway}"), patience(15), || {
                let all = cli.status()?;
                let gateways = [gateway.to_string()];
                let is_ready = all
                    .iter()
                    .any(|one| one.name == name && one.state == "ready" && one.gateways == gateways);
                Ok(is_ready.then_some(()))
            })?;
            expect_counted(&cli, name, || answers(&x1, at(gateway, port)))?;
        }
        until_no_findings(&cli)?;
        rig.net.host.ip("link del vx1\nlink del br-x\n")?;
        until_finding(&cli, "not-as-configured")?;
        let all = cli.status()?;
        let waits = |name: &str| all.iter().any(|one| one.name == name && one.state == "waiting-for-bridge");
        ensure!(waits("br-x-tcp-7001") && waits("br-x-tcp-7004"), "{all:?}");
    }
    drop(daemon);
    Ok(())
}

fn second() -> Result<()> {
    let rig = Rig::new()?;
    let cli = rig.cli();
    let daemon = Daemon::start(&cli, "")?;
    let config = daemon.config();
    cli.refused(&["run", "--config", &config.to_string_lossy()], 1, &["one answers", "systemctl stop"])?;
    // What a killed one leaves is in nobody's way.
    drop(daemon.restart(&cli, Signal::SIGKILL)?);
    Ok(())
}

fn partly() -> Result<()> {
    let rig = Rig::new()?;
    let cli = rig.cli();
    let _service = Service::start(&rig.net.host, local(7001))?;
    let in_the_way = Service::start(&rig.net.host, at(GATEWAY_B, 7002))?;
    let _daemon = Daemon::start(&cli, &format!("{TWO}{ONE}"))?;
    rig.expect(ON_A, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    let finding = until_finding(&cli, "not-as-configured")?;
    let cause = finding["cause"].as_str().unwrap_or_default();
    ensure!(cause.contains("7002") && cause.contains("already bound"), "the cause is {cause}");
    in_the_way.stop();
    until_ready(&cli, ON_B)?;
    rig.expect(ON_B, Moved::accepted(1), || answers(&rig.net.b1, at(GATEWAY_B, 7002)))?;
    until_no_findings(&cli)
}
