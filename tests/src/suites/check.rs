//! `check::*`: the capability report says what this kernel really does.
//!
//! Invariant: expectations come from `BRIDGE_EXPECT` (`name=1,name=0`) where a runner sets it, else
//! from the running kernel's version; a capability the report does not list is an error.

use anyhow::{Context, Result, ensure};
use bridge_common::names;
use serde_json::Value;

use super::Test;
use crate::harness::cli::{Cli, Finding};
use crate::harness::kernel_ids::KernelIds;
use crate::harness::netns::Netns;
use crate::harness::rig::Rig;
use crate::harness::sys::verified_instructions;
use crate::harness::wait::kernel_at_least;

pub(super) const TESTS: &[Test] = &[
    Test::new("check::reports_this_kernel", reports_this_kernel).in_kernels(),
    Test::new("check::text_names_every_capability", text_names_all),
    Test::new("check::changes_nothing", changes_nothing),
    Test::new("check::steering_stays_cheap_to_verify", cheap_to_verify).in_kernels(),
];

/// Most instructions the verifier may walk through for a program. For `steer` that was 7,167 on Linux 6.18 and 8,060
/// on 6.1 when this was written. A branch in the wrong place made it 205,028 on 6.1, and one more than the million it
/// gives up at.
const VERIFIED_AT_MOST: u32 = 30_000;

/// `(name, ok)` for every capability that must be reported.
fn expected() -> Result<Vec<(String, bool)>> {
    if let Ok(text) = std::env::var("BRIDGE_EXPECT") {
        return text.split(',').map(parse_expectation).collect();
    }
    Ok(vec![
        ("steer".to_owned(), true),
        ("ingress_ifindex".to_owned(), kernel_at_least(5, 17)?),
        ("netns_cookie".to_owned(), kernel_at_least(5, 15)?),
    ])
}

fn parse_expectation(item: &str) -> Result<(String, bool)> {
    let (name, value) = item.trim().split_once('=').with_context(|| format!("BRIDGE_EXPECT item {item}"))?;
    ensure!(value == "0" || value == "1", "BRIDGE_EXPECT item {item}: the value must be 0 or 1");
    Ok((name.to_owned(), value == "1"))
}

fn capabilities(document: &Value) -> Result<&Vec<Value>> {
    document["capabilities"].as_array().context("check has no capabilities list")
}

fn cheap_to_verify() -> Result<()> {
    let before = KernelIds::take()?;
    let rig = Rig::new()?;
    rig.attach_with("7001", &["--identity", "loopback"])?;
    let now = KernelIds::take()?;
    let mut verified = Vec::new();
    for name in [names::PROG_STEER, names::PROG_STEER_TC, names::PROG_SOCK_OPS, names::PROG_GETPEERNAME6] {
        let programs = now.new_programs(&before, name);
        ensure!(programs.len() == usize::from(is_loaded(name)?), "new programs {name}: {programs:?}");
        verified.extend(programs.into_iter().map(|program| (name, verified_instructions(program))));
    }
    if !kernel_at_least(5, 16)? {
        ensure!(verified.iter().all(|(_, count)| count.is_none()), "a kernel below 5.16 told {verified:?}");
        return Ok(());
    }
    let cheap = |count: Option<u32>| count.is_some_and(|count| count <= VERIFIED_AT_MOST);
    ensure!(
        verified.iter().all(|(_, count)| cheap(*count)),
        "instructions verified, of which at most {VERIFIED_AT_MOST} are expected: {verified:?}"
    );
    Ok(())
}

fn is_loaded(program: &str) -> Result<bool> {
    Ok(program != names::PROG_STEER_TC || kernel_at_least(5, 19)?)
}

fn reports_this_kernel() -> Result<()> {
    let host = Netns::new()?;
    let document = Cli::new(&host).json(&["check"])?;
    let release = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    ensure!(
        document["kernel"].as_str() == Some(&release),
        "check names kernel {} on {release}",
        document["kernel"]
    );
    let list = capabilities(&document)?;
    expect_findings(&document, list)?;
    for (name, ok) in expected()? {
        let found = list.iter().find(|capability| capability["name"] == name.as_str());
        let found = found.with_context(|| format!("check does not report {name}: {document}"))?;
        ensure!(found["ok"] == ok, "{name} was to be {ok}: {found}");
    }
    for capability in list {
        ensure!(capability["ok"].is_boolean(), "a capability without ok: {capability}");
        ensure!(
            capability["detail"].as_str().is_some_and(|text| !text.is_empty()),
            "no detail: {capability}"
        );
        // What a missing capability means for the user is never left out.
        let consequence = capability["consequence"].as_str();
        ensure!(
            capability["ok"] == true || consequence.is_some_and(|text| !text.is_empty()),
            "no consequence: {capability}"
        );
    }
    Ok(())
}

/// One finding for each capability that is missing, an error if attaching needs it.
fn expect_findings(document: &Value, list: &[Value]) -> Result<()> {
    let mut expected = Vec::new();
    for capability in list.iter().filter(|capability| capability["ok"] == false) {
        let name = capability["name"].as_str().context("a capability without a name")?;
        expected.push((format!("missing-{}", name.replace('_', "-")), capability["required"] == true));
    }
    let findings = Finding::list(document)?;
    let found: Vec<_> =
        findings.into_iter().map(|finding| (finding.code, finding.severity == "error")).collect();
    ensure!(found == expected, "check has the findings {found:?} instead of {expected:?}");
    Ok(())
}

fn text_names_all() -> Result<()> {
    let host = Netns::new()?;
    let cli = Cli::new(&host);
    let document = cli.json(&["check"])?;
    let text = cli.ok(&["check"])?;
    // A detail may have several lines.
    let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for capability in capabilities(&document)? {
        let name = capability["name"].as_str().context("a capability without a name")?;
        let detail = capability["detail"].as_str().context("a capability without a detail")?;
        ensure!(
            text.contains(name) && text.contains(&detail.split_whitespace().collect::<Vec<_>>().join(" ")),
            "the text lacks {name} or {detail}: {text}"
        );
    }
    Ok(())
}

fn changes_nothing() -> Result<()> {
    let host = Netns::new()?;
    let ids = KernelIds::take()?;
    Cli::new(&host).json(&["check"])?;
    ids.wait_equal()?;
    host.nothing_pinned()?;
    let links = host.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))?;
    ensure!(links.lines().count() == 3, "check left links behind: {links}");
    Ok(())
}
