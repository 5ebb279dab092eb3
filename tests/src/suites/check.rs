//! `check::*`: the capability report says what this kernel really does.
//!
//! Invariant: expectations come from `BRIDGE_EXPECT` (`name=1,name=0`) where a runner sets it, else
//! from the running kernel's version; a capability the report does not list is an error.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Test;
use crate::harness::cli::Cli;
use crate::harness::kernel_ids::KernelIds;
use crate::harness::netns::Netns;
use crate::harness::rig::Rig;
use crate::harness::sys::verified_instructions;
use crate::harness::wait::kernel_at_least;

pub(super) const TESTS: &[Test] = &[
    Test::new("check::reports_this_kernel", reports_this_kernel),
    Test::new("check::text_names_every_capability", text_names_all),
    Test::new("check::changes_nothing", changes_nothing),
    Test::new("check::steering_stays_cheap_to_verify", cheap_to_verify),
];

/// Most instructions the verifier may walk through for the steering program. It took 30,075 on Linux 6.18 when this was
/// written; a careless branch in front of its loops made it 139,385, and kernels that merge states less well gave up.
const VERIFIED_AT_MOST: u32 = 60_000;

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
    rig.attach("7001")?;
    let programs = KernelIds::take()?.new_programs(&before, "steer");
    let [program] = programs[..] else { bail!("expected one new steering program, found {programs:?}") };
    let verified = verified_instructions(program);
    if !kernel_at_least(5, 16)? {
        ensure!(verified.is_none(), "a kernel below 5.16 told {verified:?}");
        return Ok(());
    }
    let verified = verified.context("the kernel does not tell how many instructions it verified")?;
    ensure!(verified <= VERIFIED_AT_MOST, "{verified} instructions, at most {VERIFIED_AT_MOST} are expected");
    Ok(())
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

fn text_names_all() -> Result<()> {
    let host = Netns::new()?;
    let cli = Cli::new(&host);
    let document = cli.json(&["check"])?;
    let text = cli.ok(&["check"])?;
    for capability in capabilities(&document)? {
        let name = capability["name"].as_str().context("a capability without a name")?;
        let detail = capability["detail"].as_str().context("a capability without a detail")?;
        ensure!(text.contains(name) && text.contains(detail), "the text lacks {name} or {detail}: {text}");
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
