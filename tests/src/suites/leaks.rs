//! `lifecycle::*`: many cycles leave exactly what there was before.
//!
//! Invariant: counted are file descriptors of the service's process, pins, and the kernel's
//! programs, maps and links.

use anyhow::{Result, ensure};

use super::Test;
use crate::harness::client::answers;
use crate::harness::kernel_ids::KernelIds;
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::Service;
use crate::harness::topology::{GATEWAY_A, at, local};
use crate::harness::wait::{patience, scaled, until};

pub(super) const TESTS: &[Test] = &[
    Test::new("lifecycle::connection_cycles_leak_nothing", connection_cycles),
    Test::new("lifecycle::attach_cycles_leak_nothing", attach_cycles).in_kernels(),
    Test::new("lifecycle::listener_cycles_leak_nothing", listener_cycles),
    Test::new("lifecycle::attach_keeps_no_hold_on_the_listener", no_hold),
];

const NAME: &str = "br-a-tcp-7001";

/// Open descriptors of this process, which is also the service's.
fn open_files() -> Result<usize> {
    Ok(std::fs::read_dir("/proc/self/fd")?.count())
}

/// Connections end on the service's thread, so the count is awaited; and the one before may have been counted too
/// early.
fn files_settle(before: usize) -> Result<()> {
    until(&format!("no more than {before} descriptors are open"), patience(10), || {
        Ok((open_files()? <= before).then_some(()))
    })
}

fn connection_cycles() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    answers(&rig.net.a1, at(GATEWAY_A, 7001))?;
    let (ids, before) = (KernelIds::take()?, rig.cli().attachment(NAME)?);
    let files = open_files()?;
    let count = 200;
    rig.expect(NAME, Moved::accepted(count), || {
        (0..count).try_for_each(|_| answers(&rig.net.a1, at(GATEWAY_A, 7001)).map(drop))
    })?;
    files_settle(files)?;
    ids.wait_equal()?;
    let mut after = rig.cli().attachment(NAME)?;
    after.counters = before.counters;
    after.raw["counters"] = before.raw["counters"].clone();
    ensure!(before == after, "besides its counters the attachment went from {before:?} to {after:?}");
    ensure!(service.peers().len() == count + 1, "the service saw {}", service.peers().len());
    Ok(())
}

fn attach_cycles() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    let (ids, files) = (KernelIds::take()?, open_files()?);
    for round in 0..scaled(50) {
        rig.attach("7001")?;
        if round % 10 == 0 {
            rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
        }
        rig.cli().ok(&["detach", NAME])?;
    }
    rig.net.host.nothing_pinned()?;
    ids.wait_equal()?;
    files_settle(files)
}

/// Each listen() adds to a kernel map and each close must take away, or the map fills up.
fn listener_cycles() -> Result<()> {
    let rig = Rig::new()?;
    rig.attach("7001")?;
    let ids = KernelIds::take()?;
    for _ in 0..scaled(3000) {
        Service::start(&rig.net.host, local(7001))?.stop();
    }
    ids.wait_equal()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    Ok(())
}

/// A held duplicate of the listener would keep the port busy and swallow connections.
fn no_hold() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    rig.expect_state(NAME, "ready")?;
    service.stop();
    let listening = rig.net.host.listening()?;
    ensure!(listening.is_empty(), "after the service closed, {listening:?} still listens");
    // Without SO_REUSEADDR and SO_REUSEPORT only a really free port can be bound.
    let again = rig.net.host.run(|| std::net::TcpListener::bind(local(7001)))?;
    drop(again);
    rig.expect_state(NAME, "waiting-for-listener")?;
    Ok(())
}
