//! `pins::*`: file systems that somebody else prepared, or that have odd names.
//!
//! Invariant: mounts change only in mount namespaces of their own; files that are not pins stay.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};

use super::Test;
use super::privileges::with_mounts;
use crate::harness::cli::expect_refusal;
use crate::harness::client::answers;
use crate::harness::mounts::unmount_all;
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::Service;
use crate::harness::topology::{GATEWAY_A, at, local};

pub(super) const TESTS: &[Test] = &[
    Test::new("pins::a_symbolic_link_in_their_place_is_not_followed", symbolic_link),
    Test::new("pins::a_directory_of_another_file_system_is_refused", other_file_system),
    Test::new("pins::a_bpffs_that_others_may_change_is_refused", open_to_others),
    Test::new("pins::a_cgroup2_mount_point_may_have_any_name", odd_name),
    Test::new("pins::a_part_of_the_cgroup_hierarchy_is_not_taken", part_of_cgroups),
];

const ATTACH: [&str; 4] = ["attach", "7001", "--bridge", "br-a"];
const BPFFS: &str = "/sys/fs/bpf";
const PINS: &str = "/sys/fs/bpf/bridge-user";

fn mount_bpffs(options: &str) -> Result<()> {
    Ok(mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some(options))?)
}

/// A directory that looks like that of an instance which was never finished, with somebody's file in it.
fn victim(rig: &Rig) -> Result<tempfile::TempDir> {
    let directory = tempfile::tempdir()?;
    let inside = directory.path().join(rig.net.host.inode().to_string());
    fs::create_dir(&inside)?;
    fs::write(inside.join("precious"), "not a pin")?;
    Ok(directory)
}

/// Both verbs that change something refuse, and the victim's file stays.
fn refuses(
    rig: &Rig,
    victim: &Path,
    prepare: impl Fn() -> Result<()> + Send + Sync,
    needles: &[&str],
) -> Result<()> {
    for arguments in [&ATTACH[..], &["detach", "--all"], &["detach", "7001"]] {
        let output = with_mounts(&rig.net.host, &prepare, arguments)?;
        expect_refusal(&output, 1, needles)?;
    }
    let file = victim.join(rig.net.host.inode().to_string()).join("precious");
    ensure!(file.exists(), "{} was removed", file.display());
    Ok(())
}

fn symbolic_link() -> Result<()> {
    let rig = Rig::new()?;
    let victim = victim(&rig)?;
    let prepare = || {
        mount_bpffs("mode=1777")?;
        Ok(symlink(victim.path(), PINS)?)
    };
    refuses(&rig, victim.path(), prepare, &["symbolic link", "remove it"])
}

fn other_file_system() -> Result<()> {
    let rig = Rig::new()?;
    let victim = victim(&rig)?;
    let prepare = || {
        mount_bpffs("mode=0700")?;
        fs::create_dir(PINS)?;
        Ok(mount(Some(victim.path()), PINS, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
    };
    refuses(&rig, victim.path(), prepare, &["not of a bpffs", "remove it"])
}

fn open_to_others() -> Result<()> {
    let rig = Rig::new()?;
    // It is mounted with the sticky bit, whatever mode is asked for.
    let prepare = || {
        mount_bpffs("mode=0777")?;
        Ok(fs::set_permissions(BPFFS, fs::Permissions::from_mode(0o777))?)
    };
    let output = with_mounts(&rig.net.host, prepare, &ATTACH)?;
    expect_refusal(&output, 1, &["777", "others may change", "mode=0700"])?;
    rig.net.host.nothing_pinned()
}

/// What listeners are tracked through: with it, a service that starts later is served.
fn odd_name() -> Result<()> {
    let rig = Rig::new()?;
    let directory = tempfile::tempdir()?;
    let odd = directory.path().join("a b\tc\\040");
    fs::create_dir(&odd)?;
    let prepare = || {
        unmount_all("cgroup2")?;
        Ok(mount(Some("none"), &odd, Some("cgroup2"), MsFlags::empty(), None::<&str>)?)
    };
    with_mounts(&rig.net.host, prepare, &ATTACH)?.success()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    rig.expect("br-a-tcp-7001", Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    Ok(())
}

fn part_of_cgroups() -> Result<()> {
    let rig = Rig::new()?;
    let directory = tempfile::tempdir()?;
    let [whole, part] = ["whole", "part"].map(|name| directory.path().join(name));
    fs::create_dir(&whole)?;
    fs::create_dir(&part)?;
    let prepare = || {
        unmount_all("cgroup2")?;
        mount(Some("none"), &whole, Some("cgroup2"), MsFlags::empty(), None::<&str>)?;
        let child = whole.join("bridge-user-trial");
        fs::create_dir(&child).or_else(|error| if child.is_dir() { Ok(()) } else { Err(error) })?;
        mount(Some(&child), &part, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        nix::mount::umount2(&whole, nix::mount::MntFlags::MNT_DETACH)?;
        Ok(())
    };
    let output = with_mounts(&rig.net.host, prepare, &ATTACH)?;
    let removed = with_mounts(
        &rig.net.host,
        || {
            mount(Some("none"), &whole, Some("cgroup2"), MsFlags::empty(), None::<&str>)?;
            fs::remove_dir(whole.join("bridge-user-trial")).context("failed to remove the trial's cgroup")
        },
        &["--version"],
    );
    removed?.success()?;
    expect_refusal(&output, 1, &["root of the hierarchy", "mount"])?;
    rig.net.host.nothing_pinned()
}
