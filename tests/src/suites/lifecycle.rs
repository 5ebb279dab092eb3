//! `lifecycle::*`: attach and detach are idempotent, exact, and per namespace.
//!
//! Invariant: "unchanged" means the kernel's lists of programs, maps and links are equal.

use anyhow::{Context, Result, ensure};

use super::Test;
use crate::harness::cli::Cli;
use crate::harness::client::{answers, connect, exchange, refused, while_connecting};
use crate::harness::kernel_ids::KernelIds;
use crate::harness::netns::Netns;
use crate::harness::proc::finish;
use crate::harness::rig::{Moved, Rig, remove_pins};
use crate::harness::service::Service;
use crate::harness::topology::{GATEWAY_A, Topology, at, local};
use crate::harness::wait::{patience, until};

pub(super) const TESTS: &[Test] = &[
    Test::new("lifecycle::attach_twice_changes_nothing", attach_twice).in_kernels(),
    Test::new("lifecycle::detach_removes_exactly_its_own", detach_one),
    Test::new("lifecycle::attach_of_another_does_not_disturb", attach_another),
    Test::new("lifecycle::detach_by_service_name", detach_by_service),
    Test::new("lifecycle::detach_of_an_unknown_name_fails", detach_unknown),
    Test::new("lifecycle::detach_of_several_plain_ports_by_one_word_fails", detach_plain),
    Test::new("lifecycle::detach_all_is_idempotent_and_leaves_nothing", detach_all).in_kernels(),
    Test::new("lifecycle::established_connection_survives_detach", established_survives).in_kernels(),
    Test::new("lifecycle::state_is_per_namespace", per_namespace),
    Test::new("lifecycle::pins_of_a_dead_namespace_are_replaced", dead_namespace).in_kernels(),
    Test::new(
        "lifecycle::pins_of_a_dead_namespace_are_removed_by_the_next_change_anywhere",
        pins_left_behind,
    ),
    Test::new("lifecycle::dry_run_changes_nothing", dry_run),
    Test::new("lifecycle::concurrent_attaches_all_land", concurrent),
];

const NAME: &str = "br-a-tcp-7001";

fn attach_twice() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    let ids = KernelIds::take()?;
    let before = rig.cli().status()?;
    rig.attach("7001")?;
    ids.wait_equal()?;
    let after = rig.cli().status()?;
    ensure!(before == after, "status went from {before:?} to {after:?}");
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    Ok(())
}

/// Two attachments, with a service behind each.
fn pair(rig: &Rig) -> Result<[Service; 2]> {
    let services = [Service::start(&rig.net.host, local(7001))?, Service::start(&rig.net.host, local(7002))?];
    rig.cli().ok(&["attach", "7001", "7002", "--bridge", "br-a"])?;
    Ok(services)
}

fn detach_one() -> Result<()> {
    let rig = Rig::new()?;
    let [_first, second] = pair(&rig)?;
    let ((), served) =
        while_connecting(&rig.net.a1, at(GATEWAY_A, 7002), 50, || rig.cli().ok(&["detach", NAME]).map(drop))?;
    ensure!(second.peers().len() as u64 == served, "{} arrived of {served}", second.peers().len());
    let names: Vec<_> = rig.cli().status()?.into_iter().map(|attachment| attachment.name).collect();
    ensure!(names == ["br-a-tcp-7002"], "status shows {names:?}");
    rig.expect("br-a-tcp-7002", Moved::NOTHING, || refused(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    rig.expect("br-a-tcp-7002", Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7002)))?;
    Ok(())
}

fn attach_another() -> Result<()> {
    let rig = Rig::new()?;
    let first = Service::start(&rig.net.host, local(7001))?;
    let _second = Service::start(&rig.net.host, local(7002))?;
    rig.attach("7001")?;
    let strays = rig.net.strays()?;
    let ((), served) = while_connecting(&rig.net.a1, at(GATEWAY_A, 7001), 50, || {
        rig.attach("7002")?;
        rig.cli().ok(&["detach", "br-a-tcp-7002"])?;
        rig.attach("7002")
    })?;
    ensure!(first.peers().len() as u64 == served, "{} arrived of {served}", first.peers().len());
    let counters = rig.cli().attachment(NAME)?.counters;
    ensure!(counters.no_listener == 0, "{counters:?} after {served} connections");
    rig.expect_counts(strays, counters, Moved { accepted: served, ..Moved::NOTHING })?;
    rig.expect("br-a-tcp-7002", Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7002)))?;
    Ok(())
}

fn detach_by_service() -> Result<()> {
    let rig = Rig::new()?;
    rig.cli().ok(&["attach", "web=7001", "db=7002", "--bridge", "br-a"])?;
    rig.cli().ok(&["detach", "web"])?;
    let names: Vec<_> = rig.cli().status()?.into_iter().map(|attachment| attachment.name).collect();
    ensure!(names == ["br-a-db-7002"], "status shows {names:?}");
    let document = rig.cli().json(&["status", "db"])?;
    ensure!(document["attachments"][0]["service"] == "db", "status db shows {document}");
    Ok(())
}

/// All plain ports are called `tcp`: none is detached for that, and what else is named is.
fn detach_plain() -> Result<()> {
    let rig = Rig::new()?;
    let _services = pair(&rig)?;
    rig.attach("web=7003")?;
    let output = rig.cli().run(&["detach", "tcp", "web"])?;
    ensure!(output.code == Some(1) && output.stdout.is_empty(), "it is {output:?}");
    for said in ["failed to detach tcp", "2 are attached", NAME, "br-a-tcp-7002", "br-a-web-7003 is detached"]
    {
        ensure!(output.stderr.contains(said), "it does not say {said}: {}", output.stderr);
    }
    let names: Vec<_> = rig.cli().status()?.into_iter().map(|one| one.name).collect();
    ensure!(names == [NAME, "br-a-tcp-7002"], "status shows {names:?}");
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    rig.cli().ok(&["detach", "7002"])?;
    rig.cli().ok(&["detach", "tcp"])?;
    refused(&rig.net.a1, at(GATEWAY_A, 7001))?;
    rig.net.host.nothing_pinned()
}

fn detach_unknown() -> Result<()> {
    let rig = Rig::new()?;
    rig.attach("7001")?;
    let ids = KernelIds::take()?;
    rig.cli().refused(&["detach", "no-such-thing"], 1, &["no-such-thing"])?;
    ids.wait_equal()?;
    rig.expect_state(NAME, "waiting-for-listener")?;
    // Whoever closes several, one of which is closed already, finds all of them closed.
    rig.cli().refused(
        &["detach", "no-such-thing", NAME],
        1,
        &["no-such-thing", "br-a-tcp-7001 is detached"],
    )?;
    ensure!(rig.cli().status()?.is_empty(), "{NAME} is still attached");
    rig.net.host.nothing_pinned()
}

fn detach_all() -> Result<()> {
    let ids = KernelIds::take()?;
    let rig = Rig::new()?;
    rig.cli().ok(&["detach", "--all"])?;
    let _services = pair(&rig)?;
    ensure!(KernelIds::take()?.added_since(&ids) > 0, "attach loaded nothing into the kernel");
    ensure!(rig.net.host.pins().exists(), "attach pinned nothing under {}", rig.net.host.pins().display());
    for _ in 0..2 {
        rig.cli().ok(&["detach", "--all"])?;
        ensure!(rig.cli().status()?.is_empty(), "status still shows attachments");
    }
    rig.net.host.nothing_pinned()?;
    ids.wait_equal()?;
    refused(&rig.net.a1, at(GATEWAY_A, 7001))
}

fn established_survives() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    let mut stream = rig.expect(NAME, Moved::accepted(1), || connect(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    exchange(&mut stream, b"before")?;
    rig.cli().ok(&["detach", "--all"])?;
    exchange(&mut stream, b"after")?;
    refused(&rig.net.a1, at(GATEWAY_A, 7001))?;
    exchange(&mut stream, b"and still")
}

fn per_namespace() -> Result<()> {
    let rig = Rig::new()?;
    let other = Rig { net: Topology::new()? };
    let service = Service::start(&rig.net.host, local(7001))?;
    let other_service = Service::start(&other.net.host, local(7001))?;
    rig.attach("7001")?;
    ensure!(other.cli().status()?.is_empty(), "an attachment shows in another namespace");
    refused(&other.net.a1, at(GATEWAY_A, 7001))?;
    other.attach("7001")?;
    rig.expect(NAME, Moved::NOTHING, || {
        other.expect(NAME, Moved::accepted(1), || answers(&other.net.a1, at(GATEWAY_A, 7001)))
    })?;
    other.cli().ok(&["detach", "--all"])?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    ensure!(service.peers().len() == 1, "the first service saw {:?}", service.peers());
    ensure!(other_service.peers().len() == 1, "the second service saw {:?}", other_service.peers());
    Ok(())
}

/// The kernel reuses namespace inodes, so a new namespace can find the pins of one that died. Which
/// inode comes next cannot be chosen; renaming the pin directory gives the same picture.
fn dead_namespace() -> Result<()> {
    let dead = Netns::new()?;
    dead.ip("link add br-a type bridge\naddr add 172.30.1.1/24 dev br-a\nlink set br-a up\n")?;
    Cli::new(&dead).ok(&["attach", "7001", "--bridge", "br-a"])?;
    let left = dead.pins();
    drop(dead);
    let rig = Rig::new()?;
    let pins = rig.net.host.pins();
    let moved = std::fs::rename(&left, &pins).inspect_err(|_| drop(std::fs::remove_dir_all(&left)));
    moved.context("failed to move the dead namespace's pins")?;
    let service = Service::start(&rig.net.host, local(7001))?;
    refused(&rig.net.a1, at(GATEWAY_A, 7001))?;
    rig.attach("7001").context("attach over pins of a dead namespace")?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    ensure!(service.peers().len() == 1, "the service saw {:?}", service.peers());
    rig.cli().ok(&["detach", "--all"])?;
    rig.net.host.nothing_pinned()?;
    Ok(())
}

/// Whatever its programs were attached to there is gone, but for what is on the root cgroup.
fn pins_left_behind() -> Result<()> {
    let rig = Rig::new()?;
    let ids = KernelIds::take()?;
    let dead = Netns::new()?;
    dead.ip("link add br-a type bridge\naddr add 172.30.1.1/24 dev br-a\nlink set br-a up\n")?;
    Cli::new(&dead).ok(&["attach", "7001", "--bridge", "br-a", "--identity", "loopback"])?;
    let left = dead.pins();
    drop(dead);
    until("the pins of a namespace that is gone are removed from another one", patience(20), || {
        rig.cli().ok(&["detach", "--all"])?;
        Ok((!left.try_exists()?).then_some(()))
    })?;
    ids.wait_equal()
}

fn dry_run() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    let ids = KernelIds::take()?;
    let printed = rig.cli().ok(&["attach", "7001", "--bridge", "br-a", "--dry-run"])?;
    ids.wait_equal()?;
    rig.net.host.nothing_pinned()?;
    ensure!(rig.cli().status()?.is_empty(), "a dry run shows in status");
    for needle in
        [NAME, "br-a", "172.30.1.1", "7001", "127.0.0.1:7001", "172.30.1.0/24", "/sys/fs/bpf/bridge-user"]
    {
        ensure!(printed.contains(needle), "the plan does not name {needle}: {printed}");
    }
    refused(&rig.net.a1, at(GATEWAY_A, 7001))?;
    rig.attach("7001")?;
    let ids = KernelIds::take()?;
    rig.cli().ok(&["attach", "7002", "--bridge", "br-a", "--dry-run"])?;
    ids.wait_equal()?;
    ensure!(rig.cli().status()?.len() == 1, "a dry run added an attachment");
    remove_pins(&rig.net.host);
    Ok(())
}

fn concurrent() -> Result<()> {
    let rig = Rig::new()?;
    let ports = [7001, 7002, 7003, 7004];
    let services = ports.map(|port| Service::start(&rig.net.host, local(port)));
    let started = ports.map(|port| {
        let mut command = rig.cli().command(&["attach", &port.to_string(), "--bridge", "br-a"])?;
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        Ok(rig.net.host.spawn(&mut command)?)
    });
    // Every process is waited for before any of them is judged.
    let outputs = started.map(|child: Result<_>| finish(child?, patience(60)));
    for (output, port) in outputs.into_iter().zip(ports) {
        output?.success().with_context(|| format!("the attach of {port}"))?;
    }
    for (service, port) in services.into_iter().zip(ports) {
        let (service, name) = (service?, format!("br-a-tcp-{port}"));
        rig.expect(&name, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, port)))?;
        ensure!(service.peers().len() == 1, "the service on {port} saw {:?}", service.peers());
    }
    Ok(())
}
