//! `dry_run::*`: what `--dry-run` prints is what is then done, in that order, nothing more and nothing less.
//!
//! Invariants: the plan is the JSON that was printed right before; what was done are the system calls of the run
//! itself, as a tracer saw them. Each kind of change has to show exactly its own calls.

use anyhow::{Context, Result, bail, ensure};
use bridge_user::{Namespace, Roots, Scope, planned_detach};
use serde_json::Value;

use super::Test;
use crate::harness::client::{answers, refused};
use crate::harness::kernel_ids::KernelIds;
use crate::harness::planned::{compare, kind};
use crate::harness::recorder::{record, refuse_change};
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::Service;
use crate::harness::sys::mptcp_listener;
use crate::harness::topology::{GATEWAY_A, at, local};
use crate::harness::transcript::note;

pub(super) const TESTS: &[Test] = &[
    Test::on_host("dry_run::shows_what_a_first_attach_does", first_attach),
    Test::on_host("dry_run::shows_what_a_second_attach_does", second_attach),
    Test::on_host("dry_run::shows_what_the_loopback_identity_takes", identity),
    Test::on_host("dry_run::shows_what_an_mptcp_listener_takes", mptcp),
    Test::on_host("dry_run::shows_what_another_event_level_takes", event_level),
    Test::on_host("dry_run::shows_what_changes_of_an_attachment", changed_attachment),
    Test::on_host("dry_run::the_plan_of_a_detach_is_what_it_does", detach),
    Test::on_host("dry_run::says_when_nothing_would_change", nothing_to_do),
    Test::on_host("dry_run::a_first_attach_that_fails_anywhere_is_undone", first_refused),
    Test::on_host("dry_run::a_second_attach_that_fails_anywhere_is_undone", second_refused),
];

const NAME: &str = "br-a-tcp-7001";

/// The changes that an attach with these arguments would make.
fn planned(rig: &Rig, attach: &[&str]) -> Result<Vec<Value>> {
    let document = rig.cli().json(&[attach, &["--dry-run"]].concat())?;
    let list = |key: &str| {
        let found = document[key].as_array().cloned();
        found.with_context(|| format!("the plan has no list {key}: {document}"))
    };
    let (steps, changes) = (list("steps")?, list("changes")?);
    ensure!(steps.len() == changes.len(), "{} sentences for {} changes", steps.len(), changes.len());
    ensure!(steps.iter().all(|step| step.as_str().is_some_and(|text| !text.is_empty())), "{steps:?}");
    Ok(changes)
}

/// Attaches, and requires that what is done is what was planned. Returns the kinds of the changes.
fn as_planned(rig: &Rig, attach: &[&str]) -> Result<Vec<String>> {
    let changes = planned(rig, attach)?;
    let made = record(&rig.net.host, &rig.cli().command(attach)?)?;
    compare(&changes, &made)?;
    changes.iter().map(|change| Ok(kind(change)?.to_owned())).collect()
}

fn first_attach() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    let kinds = as_planned(&rig, &["attach", "7001", "--bridge", "br-a"])?;
    ensure!(kinds.first().is_some_and(|kind| kind == "create-instance"), "{kinds:?}");
    ensure!(kinds.last().is_some_and(|kind| kind == "publish"), "{kinds:?}");
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    Ok(())
}

/// One service runs, the other does not yet.
fn second_attach() -> Result<()> {
    let rig = Rig::new()?;
    let _services =
        [Service::start(&rig.net.host, local(7001))?, Service::start(&rig.net.host, local(7002))?];
    rig.attach("7001")?;
    let kinds = as_planned(&rig, &["attach", "7002", "later=7003", "--bridge", "br-a"])?;
    ensure!(kinds == ["track-target", "track-target", "put-attachment", "put-attachment"], "{kinds:?}");
    rig.expect("br-a-tcp-7002", Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7002)))?;
    Ok(())
}

/// With the first attach, and added later.
fn identity() -> Result<()> {
    let rig = Rig::new()?;
    let _services =
        [Service::start(&rig.net.host, local(7001))?, Service::start(&rig.net.host, local(7002))?];
    let local_client = ["--bridge", "br-a", "--identity", "loopback"];
    as_planned(&rig, &[&["attach", "7001"][..], &local_client].concat())?;
    rig.cli().ok(&["detach", "--all"])?;
    rig.attach("7001")?;
    let kinds = as_planned(&rig, &[&["attach", "7002"][..], &local_client].concat())?;
    let attached = kinds.iter().filter(|kind| *kind == "attach-program").count();
    ensure!(attached == 5, "the identity has 5 programs: {kinds:?}");
    Ok(())
}

/// Its table may have been taken away, too.
fn mptcp() -> Result<()> {
    let rig = Rig::new()?;
    rig.net.host.sysctl("net/mptcp/enabled", "1")?;
    let _service = Service::serve(rig.net.host.run(|| mptcp_listener(local(7001)))?)?;
    let attach = ["attach", "7001", "--bridge", "br-a"];
    for change in planned(&rig, &attach)?.iter().filter(|change| !change["optional"].is_null()) {
        ensure!(change["optional"] == false, "the listener is there: {change}");
    }
    as_planned(&rig, &attach)?;
    rig.expect_tc(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    Ok(())
}

fn event_level() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    rig.attach_with("7001", &["--identity", "loopback"])?;
    let attach = ["attach", "7001", "--bridge", "br-a", "--identity", "loopback", "--event-level", "debug"];
    let kinds = as_planned(&rig, &attach)?;
    ensure!(kinds == ["replace-programs"], "{kinds:?}");
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    Ok(())
}

/// Another target and another allow-list. Nobody listens on the old target, so that there is nothing to forget but
/// that.
fn changed_attachment() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7002))?;
    rig.attach("7001")?;
    let attach =
        ["attach", "7001:7002", "--bridge", "br-a", "--allow", "172.30.1.0/24", "--allow", "10.0.0.0/8"];
    let kinds = as_planned(&rig, &attach)?;
    ensure!(kinds == ["track-target", "put-attachment", "untrack-target"], "{kinds:?}");
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    Ok(())
}

/// Of one of two, then of the other. Nobody listens, so that there are no listeners to forget.
fn detach() -> Result<()> {
    let rig = Rig::new()?;
    rig.cli().ok(&["attach", "7001", "7002", "--bridge", "br-a"])?;
    let scope = Scope { namespace: rig.net.host.run(Namespace::current)?, roots: Roots::of_this_host()? };
    for (name, first, last) in
        [(NAME, "remove-attachment", "untrack-target"), ("br-a-tcp-7002", "withdraw", "remove-instance")]
    {
        let changes = planned_detach(&scope, |attachment| attachment.name() == name)?;
        let Value::Array(changes) = serde_json::to_value(&changes)? else { bail!("no list: {changes:?}") };
        let made = record(&rig.net.host, &rig.cli().command(&["detach", name])?)?;
        compare(&changes, &made)?;
        let ends =
            [changes.first(), changes.last()].map(|change| change.map(|change| change["kind"].clone()));
        ensure!(ends == [Some(first.into()), Some(last.into())], "{changes:?}");
    }
    rig.net.host.nothing_pinned()
}

fn nothing_to_do() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    let attach = ["attach", "7001", "--bridge", "br-a"];
    let kinds = as_planned(&rig, &attach)?;
    ensure!(kinds.is_empty(), "{kinds:?}");
    let said = rig.cli().ok(&[&attach[..], &["--dry-run"]].concat())?;
    ensure!(said.contains("nothing would change"), "it says {said}");
    Ok(())
}

/// Every change of a first attach fails once: then all of it is undone, unless it was one that a plain service does
/// without.
fn first_refused() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    let ids = KernelIds::take()?;
    let attach = ["attach", "7001", "--bridge", "br-a", "--identity", "loopback"];
    each_refused(&rig, &attach, |is_attached| {
        if is_attached {
            rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
            rig.cli().ok(&["detach", "--all"])?;
        }
        refused(&rig.net.a1, at(GATEWAY_A, 7001))?;
        rig.net.host.nothing_pinned()?;
        ids.wait_equal()
    })
}

/// The same of a second one, which the first never notices.
fn second_refused() -> Result<()> {
    let rig = Rig::new()?;
    let _services =
        [Service::start(&rig.net.host, local(7001))?, Service::start(&rig.net.host, local(7002))?];
    rig.attach("7001")?;
    let ids = KernelIds::take()?;
    each_refused(&rig, &["attach", "7002", "later=7003", "--bridge", "br-a"], |is_attached| {
        rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
        ensure!(!is_attached, "none of its changes can be done without");
        refused(&rig.net.a1, at(GATEWAY_A, 7002))?;
        ensure!(rig.cli().status()?.len() == 1, "status shows {:?}", rig.cli().status()?);
        let left = planned(&rig, &["attach", "7001", "--bridge", "br-a"])?;
        ensure!(left.is_empty(), "it left something: {left:?}");
        ids.wait_equal()
    })
}

/// Runs an attach again and again; in each run the next change fails. `check` is told whether it attached anything.
fn each_refused(rig: &Rig, attach: &[&str], check: impl Fn(bool) -> Result<()>) -> Result<()> {
    for nth in 1.. {
        let (refused, code) = refuse_change(&rig.net.host, &rig.cli().command(attach)?, nth)?;
        let Some(refused) = refused else {
            ensure!(nth > 1, "an attach made no change");
            return rig.cli().ok(&["detach", "--all"]).map(drop);
        };
        note(format!("change {nth}, {refused:?}, failed: exit code {code:?}"));
        check(code == Some(0)).with_context(|| format!("change {nth}, {refused:?}, failed"))?;
    }
    Ok(())
}
