//! `pins::*`: what steers is found, and not doubled, wherever its pins are.
//!
//! Invariant: mounts change only in mount namespaces of their own; what is served meanwhile is counted where it was
//! attached.

use anyhow::{Result, ensure};
use nix::mount::{MsFlags, mount};

use super::Test;
use super::privileges::{in_a_world, with_mounts};
use crate::harness::cli::{Finding, document, expect_refusal};
use crate::harness::client::{answers, refused};
use crate::harness::kernel_ids::KernelIds;
use crate::harness::proc::Output;
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::Service;
use crate::harness::topology::{GATEWAY_A, at, local};

pub(super) const TESTS: &[Test] = &[
    Test::new("pins::hidden_by_another_bpffs_nothing_is_built_beside_them", beside_hidden),
    Test::new("pins::detach_all_ends_what_is_hidden", end_hidden),
    Test::new("pins::another_steering_program_is_not_taken_for_ours", of_others),
    Test::on_host("pins::a_bpffs_of_ones_own_is_refused", own_bpffs),
    Test::new("pins::a_mount_namespace_with_the_same_bpffs_is_fine", same_bpffs),
    Test::new("pins::read_only_is_said_with_the_way", read_only),
];

const NAME: &str = "br-a-tcp-7001";
const BPFFS: &str = "/sys/fs/bpf";

/// Mounts an empty bpffs on top.
pub(super) fn hide() -> Result<()> {
    Ok(mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700"))?)
}

/// Runs the binary where the pins are hidden.
fn hidden(rig: &Rig, arguments: &[&str]) -> Result<Output> {
    with_mounts(&rig.net.host, hide, arguments)
}

fn served(rig: &Rig) -> Result<()> {
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001))).map(drop)
}

fn beside_hidden() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    let ids = KernelIds::take()?;
    for spec in ["7001", "7002"] {
        let refusal = hidden(&rig, &["attach", spec, "--bridge", "br-a"])?;
        expect_refusal(&refusal, 1, &["beside another instance", NAME, "detach --all"])?;
    }
    let shown = hidden(&rig, &["status", "--output", "json"])?;
    ensure!(shown.code == Some(1), "status ended with {:?}: {}", shown.code, shown.stderr);
    let findings = Finding::list(&document(&shown.stdout)?)?;
    let codes: Vec<_> = findings.iter().map(|finding| finding.code.as_str()).collect();
    ensure!(codes == ["hidden-instance"], "the findings are {codes:?}");
    let text = hidden(&rig, &["status"])?;
    ensure!(!text.stdout.contains("nothing is attached"), "status says {}", text.stdout);
    ensure!(text.stderr.contains(NAME), "status says {}", text.stderr);
    ids.wait_equal()?;
    served(&rig)
}

fn end_hidden() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    rig.attach_with("7001", &["--identity", "loopback"])?;
    served(&rig)?;
    let ended = hidden(&rig, &["detach", "--all"])?;
    ended.success()?;
    ensure!(ended.stdout.contains(&format!("detached {NAME}")), "it says {}", ended.stdout);
    refused(&rig.net.a1, at(GATEWAY_A, 7001))?;
    let again = hidden(&rig, &["detach", "--all"])?;
    again.success()?;
    ensure!(again.stdout.is_empty(), "it says {}", again.stdout);
    ensure!(rig.cli().status()?.is_empty(), "status shows what was ended");
    rig.attach("7001")?;
    served(&rig)?;
    ensure!(service.peers().len() == 2, "the service saw {:?}", service.peers());
    rig.cli().ok(&["detach", "--all"])?;
    rig.net.host.nothing_pinned()
}

/// Another namespace's programs, and no other kind, are there.
fn of_others() -> Result<()> {
    let rig = Rig::new()?;
    let other = Rig::new()?;
    other.attach("7001")?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    ensure!(
        hidden(&rig, &["status"])?.code == Some(0),
        "another namespace's programs were taken for this one's"
    );
    rig.attach("7001")?;
    served(&rig)?;
    hidden(&other, &["detach", "--all"])?.success()?;
    served(&rig)
}

fn own_bpffs() -> Result<()> {
    const INNER: &str = "mount -t bpf bpf /sys/fs/bpf && exec \"$0\" \"$@\"";
    let rig = Rig::new()?;
    let script = format!("unshare --mount --propagation private sh -c '{INNER}' \"$0\" \"$@\"");
    let output = in_a_world(&rig.net.host, &script, &["attach", "7001", "--bridge", "br-a"])?;
    expect_refusal(&output, 1, &["host's bpffs", "nsenter --net="])?;
    rig.net.host.nothing_pinned()
}

fn same_bpffs() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    with_mounts(&rig.net.host, || Ok(()), &["attach", "7001", "--bridge", "br-a"])?.success()?;
    served(&rig)
}

fn read_only() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    let close = || {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        Ok(mount(None::<&str>, BPFFS, None::<&str>, flags, None::<&str>)?)
    };
    let closed = |arguments: &[&str]| with_mounts(&rig.net.host, close, arguments);
    let needles = ["read-only", "set ProtectKernelTunables=no in the unit", "remount,rw"];
    expect_refusal(&closed(&["attach", "7001", "--bridge", "br-a"])?, 1, &needles)?;
    rig.net.host.nothing_pinned()?;
    rig.attach("7001")?;
    expect_refusal(&closed(&["attach", "7002", "--bridge", "br-a"])?, 1, &needles)?;
    expect_refusal(&closed(&["detach", NAME])?, 1, &needles)?;
    closed(&["status"])?.success()?;
    served(&rig)?;
    let checked = closed(&["check", "--output", "json"])?;
    ensure!(checked.code == Some(1), "check ended with {:?}: {}", checked.code, checked.stderr);
    let findings = Finding::list(&document(&checked.stdout)?)?;
    ensure!(findings.iter().any(|finding| finding.code == "bpffs-read-only"), "check found {findings:?}");
    Ok(())
}
