//! `host::*`: what is missing from the process or the system is named.
//!
//! Invariant: capabilities and mounts are taken away only from the thread that starts the binary,
//! inside a private mount namespace; the machine's own mounts never change.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};

use super::Test;
use super::refusals::lone_host;
use crate::harness::cli::{Cli, binary, expect_refusal, note_run};
use crate::harness::mounts::{leave_mounts, unmount_all};
use crate::harness::netns::Netns;
use crate::harness::proc::{Output, finish};
use crate::harness::rig::remove_pins;
use crate::harness::sys::drop_from_bounding_set;
use crate::harness::wait::patience;

pub(super) const TESTS: &[Test] = &[
    Test::on_host("host::unprivileged_user", unprivileged_user),
    Test::on_host("host::root_without_cap_bpf", || without(&[CAP_BPF, CAP_SYS_ADMIN], "CAP_BPF")),
    Test::on_host("host::root_without_cap_net_admin", || {
        without(&[CAP_NET_ADMIN, CAP_SYS_ADMIN], "CAP_NET_ADMIN")
    }),
    Test::on_host("host::no_cgroup_v2", no_cgroup_v2),
    Test::on_host("host::bpffs_is_mounted_when_missing", bpffs_mounted_when_missing),
    Test::on_host("host::no_place_for_bpffs", no_bpffs),
    Test::on_host("host::nft_is_found_whatever_the_path", nft_without_path),
    Test::on_host("host::few_descriptors_are_made_more", few_descriptors),
    Test::on_host("host::no_descriptor_is_no_missing_feature", no_descriptors),
    Test::on_host("host::more_namespaces_than_the_kernel_takes", too_many),
];

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;
const ATTACH: [&str; 4] = ["attach", "7001", "--bridge", "br-a"];

/// Starts the prepared command and waits for it.
fn complete(spawned: Result<Child>) -> Result<Output> {
    let output = finish(spawned?, patience(60))?;
    note_run(&["(in a place of its own)"], &output);
    Ok(output)
}

fn piped(mut command: Command) -> Command {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn unprivileged_user() -> Result<()> {
    const NOBODY: u32 = 65534;
    let host = lone_host()?;
    // The build directory may be closed to other users.
    let directory = tempfile::tempdir()?;
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))?;
    let copy = directory.path().join("bridge-user");
    std::fs::copy(binary()?, &copy)?;
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755))?;
    let run = |arguments: &[&str]| {
        let mut command = piped(Command::new(&copy));
        command.args(arguments).uid(NOBODY).gid(NOBODY);
        complete(host.spawn(&mut command).context("failed to start as nobody"))
    };
    expect_refusal(&run(&ATTACH)?, 1, &["CAP_"])?;
    host.nothing_pinned().context("after a refusal")?;
    run(&["--version"])?.success()
}

fn without(capabilities: &[u32], named: &str) -> Result<()> {
    let host = lone_host()?;
    let spawned = host.run(|| -> Result<Child> {
        for capability in capabilities {
            drop_from_bounding_set(*capability)?;
        }
        Ok(piped(Cli::new(&host).command(&ATTACH)?).spawn()?)
    });
    expect_refusal(&complete(spawned)?, 1, &[named])?;
    host.nothing_pinned().context("after a refusal")?;
    Ok(())
}

/// Runs the binary in a private mount namespace that `prepare` has changed.
pub(super) fn with_mounts(
    host: &Netns,
    prepare: impl FnOnce() -> Result<()> + Send,
    arguments: &[&str],
) -> Result<Output> {
    complete(host.run(|| -> Result<Child> {
        leave_mounts()?;
        prepare()?;
        Ok(piped(Cli::new(host).command(arguments)?).spawn()?)
    }))
}

fn no_cgroup_v2() -> Result<()> {
    let host = lone_host()?;
    let prepare = || {
        ensure!(unmount_all("cgroup2")? > 0, "no cgroup v2 was mounted to begin with");
        Ok(())
    };
    let output = with_mounts(&host, prepare, &ATTACH)?;
    expect_refusal(&output, 1, &["cgroup"])?;
    ensure!(output.stderr.contains("mount"), "the refusal does not say what to mount: {}", output.stderr);
    host.nothing_pinned().context("after a refusal")?;
    Ok(())
}

/// Where the first process has the same mounts: what is mounted elsewhere nobody else would see.
fn bpffs_mounted_when_missing() -> Result<()> {
    const UNMOUNT: &str =
        "while umount -l /sys/fs/bpf 2> /dev/null; do :; done; \"$0\" \"$@\" && findmnt -n /sys/fs/bpf";
    let host = lone_host()?;
    let output = in_a_world(&host, UNMOUNT, &ATTACH)?;
    output.success()?;
    ensure!(output.stdout.contains("/sys/fs/bpf"), "bpffs is not mounted: {}", output.stdout);
    Ok(())
}

/// Runs a shell script, with the binary's command line as `$0` and `$@`, as the first process of a world with processes
/// and mounts of its own.
pub(super) fn in_a_world(host: &Netns, script: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = piped(Command::new("unshare"));
    command.args(["--pid", "--fork", "--mount-proc", "--propagation", "private", "sh", "-c", script]);
    command.arg(binary()?).args(arguments).env("DOCKER_HOST", "unix:///nonexistent/docker.sock");
    complete(host.spawn(&mut command).context("failed to start unshare"))
}

/// /sys/fs is a read-only directory without a place for bpffs; cgroup v2 is there.
fn no_bpffs() -> Result<()> {
    let host = lone_host()?;
    let prepare = || {
        unmount_all("bpf")?;
        unmount_all("cgroup2")?;
        mount(Some("none"), "/sys/fs", Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
        std::fs::create_dir("/sys/fs/cgroup")?;
        mount(Some("none"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), None::<&str>)?;
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, "/sys/fs", None::<&str>, read_only, None::<&str>)?;
        Ok(())
    };
    let output = with_mounts(&host, prepare, &ATTACH)?;
    expect_refusal(&output, 1, &["bpf", "/sys/fs/bpf"])?;
    host.nothing_pinned().context("after a refusal")?;
    Ok(())
}

/// As cron has it.
fn nft_without_path() -> Result<()> {
    let host = lone_host()?;
    for arguments in [&ATTACH[..], &["detach", "--all"]] {
        let mut command = piped(Cli::new(&host).command(arguments)?);
        command.env("PATH", "/nowhere");
        complete(host.spawn(&mut command).context("failed to start bridge-user"))?.success()?;
    }
    host.nothing_pinned()
}

/// Starts the binary with these limits on descriptors.
fn limited(host: &Netns, limit: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = piped(Command::new("sh"));
    command.args(["-c", &format!("{limit} && exec \"$0\" \"$@\"")]).arg(binary()?).args(arguments);
    complete(host.spawn(&mut command).context("failed to start a shell"))
}

fn few_descriptors() -> Result<()> {
    let host = lone_host()?;
    let output = limited(&host, "ulimit -Sn 20", &ATTACH)?;
    output.success()?;
    let attached = Attached(host);
    let shown = Cli::new(&attached.0).attachment("br-a-tcp-7001")?;
    ensure!(shown.datapath == "steer", "it is carried by {}", shown.datapath);
    limited(&attached.0, "ulimit -Sn 20", &["check"])?.success()
}

/// Whoever is told that a kernel cannot steer relays, and shows its service other clients.
fn no_descriptors() -> Result<()> {
    let host = lone_host()?;
    for arguments in [&ATTACH[..], &[&ATTACH[..], &["--foreground"]].concat(), &["check"]] {
        let output = limited(&host, "ulimit -n 20", arguments)?;
        expect_refusal(&output, 1, &["no more files can be opened", "ulimit -n"])?;
    }
    host.nothing_pinned()
}

/// A namespace with something attached.
struct Attached(Netns);

impl Drop for Attached {
    fn drop(&mut self) {
        remove_pins(&self.0);
    }
}

/// Each has a program on the root cgroup, where the kernel takes 64.
fn too_many() -> Result<()> {
    const QUICKLY: [&str; 6] = ["attach", "7001", "--bridge", "br-a", "--datapath", "steer"];
    let mut attached = Vec::new();
    let one_more = loop {
        ensure!(attached.len() < 65, "{} namespaces are attached", attached.len());
        let host = lone_host()?;
        let output = Cli::new(&host).run(&QUICKLY)?;
        if output.code != Some(0) {
            expect_refusal(&output, 1, &["sock_ops", "64", "detach"])?;
            break host;
        }
        attached.push(Attached(host));
    };
    ensure!(attached.len() > 50, "only {} namespaces could be attached", attached.len());
    one_more.nothing_pinned()?;
    let first = attached.swap_remove(0);
    Cli::new(&first.0).ok(&["detach", "--all"])?;
    Cli::new(&one_more).ok(&QUICKLY)?;
    drop(Attached(one_more));
    Ok(())
}
