//! `upgrade::*`: objects pinned by another build or another version of bridge-user.
//!
//! Another build is made by editing the pinned `META` map with bpftool, as if that build had written it.
//! Invariant: whoever was connected or connecting notices nothing, or the refusal says what to do.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Test;
use crate::harness::client::{answers, while_connecting};
use crate::harness::proc::run_in;
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::Service;
use crate::harness::topology::{GATEWAY_A, at, local};

pub(super) const TESTS: &[Test] = &[
    Test::on_host("upgrade::another_build_is_replaced_under_traffic", another_build),
    Test::on_host("upgrade::event_level_is_changed_under_traffic", event_level),
    Test::on_host("upgrade::another_map_layout_is_refused_and_can_be_cleaned", another_layout),
    Test::on_host("upgrade::a_pinned_map_of_another_size_is_refused", another_map),
];

const NAME: &str = "br-a-tcp-7001";
/// Offset and length of `Meta::abi` and `Meta::build` in the `META` value.
const ABI: std::ops::Range<usize> = 0..4;
const BUILD: std::ops::Range<usize> = 24..40;

fn bpftool(rig: &Rig, arguments: &[&str]) -> Result<serde_json::Value> {
    let output = run_in(&rig.net.host, Command::new("bpftool").arg("--json").args(arguments))?;
    output.success().with_context(|| format!("bpftool {}", arguments.join(" ")))?;
    if output.stdout.is_empty() {
        return Ok(serde_json::Value::Null);
    }
    serde_json::from_str(&output.stdout).context("bpftool printed no JSON")
}

fn pin(rig: &Rig, name: &str) -> String {
    rig.net.host.pins().join(name).display().to_string()
}

/// The ids of the attached programs: steering, tracking.
fn programs(rig: &Rig) -> Result<[u64; 2]> {
    let id = |link: &str| -> Result<u64> {
        let shown = bpftool(rig, &["link", "show", "pinned", &pin(rig, link)])?;
        shown["prog_id"].as_u64().with_context(|| format!("{link} has no program: {shown}"))
    };
    Ok([id("link_steer")?, id("link_sock_ops")?])
}

fn meta(rig: &Rig) -> Result<Vec<String>> {
    let shown = bpftool(rig, &["map", "lookup", "pinned", &pin(rig, "META"), "key", "0", "0", "0", "0"])?;
    let bytes = shown["value"].as_array().context("META has no value")?;
    bytes.iter().map(|byte| Ok(byte.as_str().context("a byte is not text")?.to_owned())).collect()
}

/// Overwrites part of `META` with 0x5a bytes.
fn falsify(rig: &Rig, range: std::ops::Range<usize>) -> Result<()> {
    let mut value = meta(rig)?;
    value[range].fill("0x5a".to_owned());
    let pin = pin(rig, "META");
    let mut arguments = vec!["map", "update", "pinned", &pin, "key", "0", "0", "0", "0", "value"];
    arguments.extend(value.iter().map(String::as_str));
    bpftool(rig, &arguments).map(drop)
}

/// Attaches the same again while connections are made, and expects every program to be another one.
fn replaced_under_traffic(rig: &Rig, service: &Service, options: &[&str]) -> Result<()> {
    let (before, strays) = (programs(rig)?, rig.net.strays()?);
    let ((), served) =
        while_connecting(&rig.net.a1, at(GATEWAY_A, 7001), 50, || rig.attach_with("7001", options))?;
    let after = programs(rig)?;
    ensure!(
        before.iter().zip(after).all(|(old, new)| *old != new),
        "programs went from {before:?} to {after:?}"
    );
    ensure!(service.peers().len() as u64 == served, "{} arrived of {served}", service.peers().len());
    let counters = rig.expect_state(NAME, "ready")?.counters;
    rig.expect_counts(strays, counters, Moved { accepted: served, ..Moved::NOTHING })
}

fn another_build() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    let written = meta(&rig)?;
    falsify(&rig, BUILD)?;
    replaced_under_traffic(&rig, &service, &[])?;
    ensure!(meta(&rig)? == written, "META went from {written:?} to {:?}", meta(&rig)?);
    service.stop();
    let _restarted = Service::start(&rig.net.host, local(7001))?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    Ok(())
}

fn event_level() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    replaced_under_traffic(&rig, &service, &["--event-level", "debug"])?;
    rig.cli().ok(&["events"])?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    let events = rig.cli().ok(&["events"])?;
    ensure!(events.contains("DEBUG steered"), "no event of a steered connection at level debug: {events:?}");
    Ok(())
}

fn another_layout() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    falsify(&rig, ABI)?;
    let layout = 0x5a5a_5a5a_u32.to_string();
    let needles = [layout.as_str(), "detach --all"];
    rig.cli().refused(&["attach", "7002", "--bridge", "br-a"], 1, &needles)?;
    rig.cli().refused(&["detach", NAME], 1, &needles)?;
    rig.cli().refused(&["status"], 1, &needles)?;
    answers(&rig.net.a1, at(GATEWAY_A, 7001)).context("what another version attached must go on working")?;
    rig.cli().ok(&["detach", "--all"])?;
    ensure!(!rig.net.host.pins().exists(), "detach --all left pins");
    rig.attach("7001")?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    Ok(())
}

/// aya takes a pinned map of any shape; bridge-user must look first.
fn another_map() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    let bound = pin(&rig, "SOCKET_NETNS");
    std::fs::remove_file(&bound).with_context(|| format!("failed to remove {bound}"))?;
    let shape = ["type", "hash", "key", "4", "value", "16", "entries", "8", "name", "SOCKET_NETNS"];
    bpftool(&rig, &[&["map", "create", bound.as_str()], &shape[..]].concat())?;
    falsify(&rig, BUILD)?;
    let before = programs(&rig)?;
    let needles = ["SOCKET_NETNS", "(4, 16)", "(8, 8)", "detach --all"];
    rig.cli().refused(&["attach", "7002", "--bridge", "br-a"], 1, &needles)?;
    rig.cli().refused(&["status"], 1, &needles)?;
    ensure!(programs(&rig)? == before, "a refused upgrade replaced a program");
    answers(&rig.net.a1, at(GATEWAY_A, 7001)).map(drop)
}
