//! `lifecycle::*`: kill -9 at any moment leaves all or nothing.
//!
//! Two ways to find the moment: delays that cover the whole run of a verb, and a tracer that stops
//! it before each lasting change. Invariants: both come from a fixed sequence, so a failure repeats;
//! a trial fails unless processes really died in the middle.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::Test;
use crate::harness::client::{answers, refused};
use crate::harness::kernel_ids::KernelIds;
use crate::harness::proc::Guarded;
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::Service;
use crate::harness::stepper::{Ended, kill_before_change};
use crate::harness::topology::{GATEWAY_A, at, local};
use crate::harness::transcript::note;
use crate::harness::wait::scaled;

pub(super) const TESTS: &[Test] = &[
    Test::on_host("lifecycle::killed_attach_leaves_all_or_nothing", killed_attach),
    Test::on_host("lifecycle::first_attach_killed_before_each_change", first_attach_step_by_step),
    Test::on_host("lifecycle::second_attach_killed_before_each_change", second_attach_step_by_step),
    Test::on_host("lifecycle::second_detach_killed_before_each_change", second_detach_step_by_step),
    Test::on_host("lifecycle::last_detach_killed_before_each_change", last_detach_step_by_step),
];

const NAME: &str = "br-a-tcp-7001";
const SECOND: &str = "br-a-tcp-7002";
/// With everything an attach can put into the kernel.
const ATTACH: [&str; 6] = ["attach", "7001", "--bridge", "br-a", "--identity", "loopback"];

/// How long one undisturbed run of a verb takes here.
fn duration_of(rig: &Rig, arguments: &[&str]) -> Result<Duration> {
    let start = Instant::now();
    rig.cli().ok(arguments)?;
    Ok(start.elapsed())
}

/// Starts the verb and kills it after `delay`; says whether it died rather than finished.
fn kill_after(rig: &Rig, arguments: &[&str], delay: Duration) -> Result<bool> {
    let mut command = rig.cli().command(arguments)?;
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut process = Guarded::new(rig.net.host.spawn(&mut command)?);
    // The delay is what is being tested, not a wait for something.
    std::thread::sleep(delay);
    let status = process.stop(Signal::SIGKILL)?;
    note(format!("$ bridge-user {} killed after {delay:?}: {status}", arguments.join(" ")));
    Ok(status.code().is_none())
}

/// Delays over one run of `whole`, in an order that mixes early and late.
fn delays(whole: Duration, count: usize) -> impl Iterator<Item = Duration> {
    let count = u32::try_from(count).expect("a small count");
    (0..count).map(move |step| whole * (step * 7 % count) / count)
}

/// Either nothing is attached, or the one attachment is complete and serves.
fn all_or_nothing(rig: &Rig) -> Result<bool> {
    let attachments = rig.cli().status()?;
    if attachments.is_empty() {
        refused(&rig.net.a1, at(GATEWAY_A, 7001))?;
        return Ok(false);
    }
    rig.expect_state(NAME, "ready")?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    Ok(true)
}

/// A final detach leaves nothing at all.
fn nothing_remains(rig: &Rig, ids: &KernelIds) -> Result<()> {
    rig.cli().ok(&["detach", "--all"])?;
    rig.net.host.nothing_pinned()?;
    ids.wait_equal()
}

fn killed_attach() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    let ids = KernelIds::take()?;
    let whole = duration_of(&rig, &ATTACH)?;
    nothing_remains(&rig, &ids)?;
    let mut died = 0;
    for delay in delays(whole, scaled(40)) {
        died += usize::from(kill_after(&rig, &ATTACH, delay)?);
        all_or_nothing(&rig).with_context(|| format!("attach killed after {delay:?} of {whole:?}"))?;
        nothing_remains(&rig, &ids).with_context(|| format!("attach killed after {delay:?} of {whole:?}"))?;
    }
    ensure!(died > 0, "no attach was killed in the middle");
    rig.cli().ok(&ATTACH)?;
    ensure!(all_or_nothing(&rig)?, "attach after the crashes attached nothing");
    Ok(())
}

/// Crash points from 1 to `last`, all of them on fast machines and never fewer than some.
fn points(last: usize) -> impl Iterator<Item = usize> {
    let step = last.div_ceil(scaled(120).max(8)).max(1);
    (1..=last).step_by(step)
}

/// How many lasting changes a run of the verb makes; the run is completed.
fn changes_of(rig: &Rig, arguments: &[&str]) -> Result<usize> {
    let command = rig.cli().command(arguments)?;
    match kill_before_change(&rig.net.host, &command, usize::MAX)? {
        Ended::Finished { code: 0, changes } if changes > 0 => Ok(changes),
        other => bail!("bridge-user {} under tracing: {other:?}", arguments.join(" ")),
    }
}

/// Kills a run of the verb before change number `nth`.
fn kill_before(rig: &Rig, arguments: &[&str], nth: usize) -> Result<()> {
    let command = rig.cli().command(arguments)?;
    let ended = kill_before_change(&rig.net.host, &command, nth)?;
    note(format!("$ bridge-user {} before change {nth}: {ended:?}", arguments.join(" ")));
    ensure!(ended == Ended::Killed, "bridge-user {} made fewer than {nth} changes", arguments.join(" "));
    Ok(())
}

/// Every crash point of the first attach, which also loads and publishes the programs.
fn first_attach_step_by_step() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    let ids = KernelIds::take()?;
    let last = changes_of(&rig, &ATTACH)?;
    ensure!(all_or_nothing(&rig)?, "a traced attach attached nothing");
    nothing_remains(&rig, &ids)?;
    for nth in points(last) {
        kill_before(&rig, &ATTACH, nth)?;
        all_or_nothing(&rig).with_context(|| format!("attach killed before change {nth} of {last}"))?;
        nothing_remains(&rig, &ids)
            .with_context(|| format!("attach killed before change {nth} of {last}"))?;
    }
    Ok(())
}

/// Every crash point of adding an attachment: it is there and serves or is not there, and the
/// other one never notices.
fn second_attach_step_by_step() -> Result<()> {
    let rig = Rig::new()?;
    let _services =
        [Service::start(&rig.net.host, local(7001))?, Service::start(&rig.net.host, local(7002))?];
    rig.attach("7001")?;
    let attach = ["attach", "7002", "--bridge", "br-a"];
    let last = changes_of(&rig, &attach)?;
    rig.cli().ok(&["detach", SECOND])?;
    for nth in points(last) {
        kill_before(&rig, &attach, nth)?;
        second_is_whole(&rig).with_context(|| format!("attach killed before change {nth} of {last}"))?;
        rig.cli().ok(&attach)?;
        ensure!(second_is_whole(&rig)?, "attach after a crash attached nothing");
        rig.cli().ok(&["detach", SECOND])?;
    }
    Ok(())
}

/// Every crash point of removing one of two attachments.
fn second_detach_step_by_step() -> Result<()> {
    let rig = Rig::new()?;
    let _services =
        [Service::start(&rig.net.host, local(7001))?, Service::start(&rig.net.host, local(7002))?];
    rig.cli().ok(&["attach", "7001", "7002", "--bridge", "br-a"])?;
    let detach = ["detach", SECOND];
    let last = changes_of(&rig, &detach)?;
    for nth in points(last) {
        rig.cli().ok(&["attach", "7002", "--bridge", "br-a"])?;
        kill_before(&rig, &detach, nth)?;
        second_is_whole(&rig).with_context(|| format!("detach killed before change {nth} of {last}"))?;
    }
    Ok(())
}

/// The second attachment shows and serves, or neither; the first one serves.
fn second_is_whole(rig: &Rig) -> Result<bool> {
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    if !rig.cli().status()?.iter().any(|attachment| attachment.name == SECOND) {
        refused(&rig.net.a1, at(GATEWAY_A, 7002))?;
        return Ok(false);
    }
    rig.expect_state(SECOND, "ready")?;
    rig.expect(SECOND, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7002)))?;
    Ok(true)
}

/// Every crash point of the last detach, which also removes the programs: as soon as `status`
/// shows nothing, nothing is reachable either.
fn last_detach_step_by_step() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    let ids = KernelIds::take()?;
    rig.attach("7001")?;
    let last = changes_of(&rig, &["detach", "--all"])?;
    for nth in points(last) {
        rig.attach("7001")?;
        kill_before(&rig, &["detach", "--all"], nth)?;
        all_or_nothing(&rig).with_context(|| format!("detach killed before change {nth} of {last}"))?;
        // Attach over whatever is left must work as on a clean host.
        rig.attach("7001")?;
        ensure!(all_or_nothing(&rig)?, "attach after a killed detach attached nothing");
        nothing_remains(&rig, &ids)
            .with_context(|| format!("detach killed before change {nth} of {last}"))?;
    }
    Ok(())
}
