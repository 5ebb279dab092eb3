//! `relay::*`: which datapath a service gets, what is refused, and what is said about it.
//!
//! Invariants: what attach would choose is what `--dry-run` shows, with a reason; a refusal and a
//! dry run change nothing.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Test;
use super::refusals::{lone_host, refuse};
use crate::harness::cli::Cli;
use crate::harness::client::answers;
use crate::harness::foreground::Foreground;
use crate::harness::kernel::sockmap_is_trusted;
use crate::harness::kernel_ids::KernelIds;
use crate::harness::netns::Netns;
use crate::harness::relay::{Datapath, NAME, counters, gateway};
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::Service;
use crate::harness::sys::mptcp_listener;
use crate::harness::topology::local;
use crate::harness::wait::kernel_at_least;

pub(super) const TESTS: &[Test] = &[
    Test::new("relay::auto_steers_a_plain_listener_also_in_the_foreground", auto_steers).in_kernels(),
    Test::new("relay::auto_splices_to_a_unix_target", auto_splices),
    Test::with_mptcp("relay::splice_serves_an_mptcp_listener", spliced_mptcp),
    Test::new("relay::without_foreground_it_is_refused", needs_foreground),
    Test::new("relay::sockmap_below_the_floor_needs_force", sockmap_floor).in_kernels(),
    Test::new("relay::dry_run_shows_the_datapath_and_changes_nothing", dry_run),
];

/// The only choice of a dry run, which must leave everything as it was.
fn planned(host: &Netns, arguments: &[&str]) -> Result<Value> {
    let (ids, listening) = (KernelIds::take()?, host.listening()?);
    let all = [&["attach"], arguments, &["--bridge", "br-a", "--dry-run"]].concat();
    let document = Cli::new(host).json(&all)?;
    ids.wait_equal().context("a dry run changed the kernel")?;
    host.nothing_pinned()?;
    ensure!(host.listening()? == listening, "a dry run changed who listens: {:?}", host.listening()?);
    let plan = document["choices"].get(0).with_context(|| format!("no choice in {document}"))?;
    ensure!(plan["reason"].as_str().is_some_and(|text| !text.is_empty()), "no reason: {plan}");
    Ok(plan.clone())
}

fn auto_steers() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    for options in [&["7001", "--foreground"][..], &["7001"]] {
        let plan = planned(&rig.net.host, options)?;
        ensure!(plan["datapath"] == "steer", "the plan for {options:?} is {plan}");
    }
    let relay = Foreground::start(&rig.cli(), &["7001", "--bridge", "br-a"])?;
    rig.expect_state(NAME, "ready")?;
    let from = rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))?;
    // No relay in between: the service talks to the client itself.
    let seen: Vec<_> = service.peers().iter().map(|peer| peer.remote).collect();
    ensure!(seen == [from], "the service saw {seen:?} instead of {from}");
    drop(relay);
    Ok(())
}

fn auto_splices() -> Result<()> {
    let host = lone_host()?;
    let plan = planned(&host, &["7001:unix:/run/no/such.sock", "--foreground"])?;
    ensure!(plan["datapath"] == "splice", "the plan is {plan}");
    let reason = plan["reason"].as_str().unwrap_or_default().to_lowercase();
    ensure!(reason.contains("unix"), "the reason is {reason}");
    Ok(())
}

fn spliced_mptcp() -> Result<()> {
    let rig = Rig::new()?;
    rig.net.host.sysctl("net/mptcp/enabled", "1")?;
    let listener = rig.net.host.run(|| mptcp_listener("127.0.0.1:7001".parse()?))?;
    let service = Service::serve(listener)?;
    let _relay = Foreground::start(&rig.cli(), &["7001", "--bridge", "br-a", "--datapath", "splice"])?;
    for _ in 0..5 {
        answers(&rig.net.a1, gateway())?;
    }
    let now = counters(&rig.cli(), NAME, Datapath::Splice)?;
    ensure!(now.accepted == 5 && service.peers().len() == 5, "the counters are {now:?}");
    now.prove(Datapath::Splice)
}

fn needs_foreground() -> Result<()> {
    let host = lone_host()?;
    for options in [&["7001:unix:/run/x.sock"][..], &["7001", "--datapath", "splice"]] {
        refuse(&host, &[&["attach"], options, &["--bridge", "br-a"]].concat(), 1, &["7001", "--foreground"])?;
    }
    Ok(())
}

/// Below the floor the kernel may lose bytes or worse; above it nobody needs to insist.
fn sockmap_floor() -> Result<()> {
    let host = lone_host()?;
    let attach = ["7001", "--datapath", "sockmap", "--foreground"];
    if sockmap_is_trusted()? {
        let plan = planned(&host, &attach)?;
        ensure!(plan["datapath"] == "sockmap", "the plan is {plan}");
        return Ok(());
    }
    let release = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    let branch: String = release.split('.').take(2).collect::<Vec<_>>().join(".");
    let all = [&["attach"], &attach[..], &["--bridge", "br-a"]].concat();
    refuse(&host, &all, 1, &["socket-map", &branch, "--force"])
}

fn dry_run() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    let sockmap = [&["7001", "--foreground"], Datapath::Sockmap.options()?].concat();
    // On 5.10 the probe refuses it, forced or not.
    let tried = if kernel_at_least(6, 1)? { 2 } else { 1 };
    for (name, options) in
        [("splice", &["7001", "--foreground", "--datapath", "splice"][..]), ("sockmap", &sockmap)]
            .into_iter()
            .take(tried)
    {
        let plan = planned(&rig.net.host, options)?;
        ensure!(plan["datapath"] == name, "the plan is {plan}");
        let text = rig.cli().ok(&[&["attach"], options, &["--bridge", "br-a", "--dry-run"]].concat())?;
        for needle in [name, "7001", "172.30.1.1"] {
            ensure!(text.contains(needle), "the plan does not say {needle}: {text}");
        }
    }
    ensure!(rig.cli().status()?.is_empty(), "status shows something after dry runs");
    Ok(())
}
