//! `partial::*`: each SPEC on each network stands alone.
//!
//! Invariants: what can be attached is, and shown to serve; what is refused is named once, on standard error and in
//! JSON; a dry run tells the same apart.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Test;
use super::refusals::lone_host;
use crate::harness::cli::{Cli, document};
use crate::harness::client::answers;
use crate::harness::foreground::Foreground;
use crate::harness::proc::Output;
use crate::harness::relay::{Datapath, NAME, counters, gateway};
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::Service;
use crate::harness::topology::{GATEWAY_A, GATEWAY_B, at, local};

pub(super) const TESTS: &[Test] = &[
    Test::new("partial::a_refused_spec_takes_no_other_down", one_of_several),
    Test::on_host("partial::a_dry_run_tells_the_same_apart", dry_run),
    Test::on_host("partial::what_needs_a_process_is_refused_alone", without_a_process),
    Test::new("partial::a_relay_serves_what_is_not_refused", in_the_foreground),
    Test::on_host("partial::an_engine_that_is_not_there_takes_no_bridge_down", without_engine),
    Test::on_host("partial::what_does_not_parse_attaches_nothing", usage),
];

/// Two services on three bridges, one of which is not there; and the port of one is taken on br-a.
const ATTACH: [&str; 9] =
    ["attach", "7001", "web=7002", "--bridge", "br-a", "--bridge", "br-zz", "--bridge", "br-b"];
const ATTACHED: [&str; 3] = ["br-a-tcp-7001", "br-b-tcp-7001", "br-b-web-7002"];

/// The lines on standard error, each of which has to say all of its words; the exit code is 1.
fn expect_refused(output: &Output, lines: &[&[&str]]) -> Result<()> {
    ensure!(output.code == Some(1), "exit code {:?} instead of 1: {}", output.code, output.stderr);
    let said: Vec<_> = output.stderr.lines().collect();
    ensure!(said.len() == lines.len(), "{} lines instead of {}: {}", said.len(), lines.len(), output.stderr);
    for (line, words) in said.iter().zip(lines) {
        ensure!(line.starts_with("bridge-user: failed to "), "it is no refusal: {line}");
        for word in *words {
            ensure!(line.contains(word), "it does not say {word}: {line}");
        }
    }
    Ok(())
}

/// (SPEC, network) of what a document says is refused; each has the error that standard error has.
fn refused(document: &Value, stderr: &str) -> Result<Vec<(String, String)>> {
    let list = document["refused"].as_array().with_context(|| format!("no list refused: {document}"))?;
    let text = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
    for one in list {
        let error = text(one, "error");
        ensure!(!error.is_empty() && stderr.contains(&error), "{error:?} is not said: {stderr}");
    }
    Ok(list.iter().map(|one| (text(one, "spec"), text(one, "network"))).collect())
}

const TAKEN: &[&str] = &["web (7002) on br-a", "172.30.1.1:7002", "choose another port"];
const GONE: &[&str] = &["br-zz"];

fn expect_both(document: &Value, stderr: &str) -> Result<()> {
    let both = refused(document, stderr)?;
    let expected = [("web=7002:127.0.0.1:7002", "br-a"), ("", "br-zz")];
    ensure!(both == expected.map(|(spec, network)| (spec.into(), network.into())), "refused are {both:?}");
    Ok(())
}

fn one_of_several() -> Result<()> {
    let rig = Rig::new()?;
    let _owner = Service::start(&rig.net.host, at(GATEWAY_A, 7002))?;
    let _services =
        [Service::start(&rig.net.host, local(7001))?, Service::start(&rig.net.host, local(7002))?];
    for _ in 0..2 {
        let output = rig.cli().run(&ATTACH)?;
        expect_refused(&output, &[TAKEN, GONE])?;
        let rows = output.stdout.lines().filter(|line| line.contains(" ready "));
        let names: Vec<_> = rows.filter_map(|line| line.split_whitespace().next()).collect();
        ensure!(names == ATTACHED, "attached are {names:?}: {}", output.stdout);
    }
    let json = rig.cli().run(&[&ATTACH[..], &["--output", "json"]].concat())?;
    expect_refused(&json, &[TAKEN, GONE])?;
    expect_both(&document(&json.stdout)?, &json.stderr)?;
    let names: Vec<_> = rig.cli().status()?.into_iter().map(|one| one.name).collect();
    ensure!(names == ATTACHED, "status shows {names:?}");
    rig.expect(ATTACHED[0], Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    rig.expect(ATTACHED[2], Moved::accepted(1), || answers(&rig.net.b1, at(GATEWAY_B, 7002)))?;
    Ok(())
}

fn dry_run() -> Result<()> {
    let rig = Rig::new()?;
    let _owner = Service::start(&rig.net.host, at(GATEWAY_A, 7002))?;
    let plain = rig.cli().run(&[&ATTACH[..], &["--dry-run"]].concat())?;
    expect_refused(&plain, &[TAKEN, GONE])?;
    let json = rig.cli().run(&[&ATTACH[..], &["--dry-run", "--output", "json"]].concat())?;
    let planned = document(&json.stdout)?;
    expect_both(&planned, &json.stderr)?;
    let choices = planned["choices"].as_array().context("no choices")?;
    let mut names: Vec<_> = choices.iter().filter_map(|choice| choice["name"].as_str()).collect();
    names.sort_unstable();
    ensure!(names == ATTACHED, "the choices are {names:?}");
    rig.net.host.nothing_pinned()
}

fn without_a_process() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    let attach = ["attach", "db=7003:unix:/run/x.sock", "7001", "--bridge", "br-a"];
    for options in [&["--dry-run"][..], &[]] {
        let output = rig.cli().run(&[&attach[..], options].concat())?;
        expect_refused(&output, &[&["db (7003)", "needs a relay", "--foreground"]])?;
    }
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))?;
    Ok(())
}

fn in_the_foreground() -> Result<()> {
    let rig = Rig::new()?;
    let _owner = Service::start(&rig.net.host, at(GATEWAY_A, 7002))?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    let attach = ["7001", "web=7002", "--bridge", "br-a", "--datapath", "splice"];
    let relay = Foreground::start(&rig.cli(), &attach)?;
    relay.says(TAKEN)?;
    let all = refused(relay.report(), &relay.said())?;
    ensure!(all == [("web=7002:127.0.0.1:7002".into(), "br-a".into())], "refused are {all:?}");
    answers(&rig.net.a1, gateway())?;
    let now = counters(&rig.cli(), NAME, Datapath::Splice)?;
    ensure!(now.accepted == 1, "the counters are {now:?}");
    Ok(())
}

fn without_engine() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    let output = rig.cli().run(&["attach", "7001", "--network", "app", "--bridge", "br-a"])?;
    expect_refused(&output, &[&["reach Docker", "/nonexistent/docker.sock"]])?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))?;
    Ok(())
}

fn usage() -> Result<()> {
    let host = lone_host()?;
    for wrong in [&["rediss"][..], &["redis", "--allow", "172.30.1.0/33"], &["redis", "--allow", "web"]] {
        let output = Cli::new(&host).run(&[&["attach", "7001", "--bridge", "br-a"], wrong].concat())?;
        ensure!(output.code == Some(2), "{wrong:?} gave {output:?}");
        host.nothing_pinned()?;
    }
    Ok(())
}
