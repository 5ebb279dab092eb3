//! `systemd::*`: the unit, in a machine that systemd manages: installed, started, sandboxed, removed.
//!
//! Invariant: every trial has a machine of its own ([`Machine`]), so none touches this one's units.

use anyhow::{Result, ensure};

use super::Test;
use crate::harness::cli::{Cli, expect_refusal};
use crate::harness::machine::{BINARY, Machine};
use crate::harness::redis::ping;
use crate::harness::relay::{NAME, gateway};
use crate::harness::rig::{Moved, Rig};
use crate::harness::wait::{patience, until};

pub(super) const TESTS: &[Test] = &[
    Test::on_host("systemd::install_starts_it_and_uninstall_removes_it", installed),
    Test::on_host("systemd::the_daemon_serves_and_is_started_again_when_it_is_killed", served),
    Test::on_host("systemd::a_start_that_fails_is_taken_back", taken_back),
    Test::on_host("systemd::the_unit_is_sound_and_sandboxed", sound),
    Test::on_host("systemd::attaching_works_in_the_units_sandbox", sandboxed),
    Test::on_host("systemd::without_it_or_from_a_passing_place_is_refused", refused),
];

/// A service of another user's, which listens on loopback before anything is attached.
const REDIS: &str = "[Service]\nType=notify\nUser=nobody\nExecStart=/usr/bin/redis-server --port 7001 --bind 127.0.0.1 \
                     --save '' --protected-mode no --supervised systemd\n";
const UNIT: &str = "bridge-user.service";
const UNIT_FILE: &str = "/etc/systemd/system/bridge-user.service";
const CONFIG: &str = "/etc/bridge-user/config.toml";
const ADDITION: &str = "/etc/systemd/system/bridge-user.service.d/trial.conf";
/// The exposure that docs/packaging.md tells of, in tenths; other releases of systemd count a little differently.
const EXPOSURE: &str = "45";

/// What the unit starts in these trials, in its sandbox: a command, and then the binary, as something that stays.
fn starting(command: &str) -> String {
    let stay = format!("{BINARY} attach 7009 --bridge br-b --datapath splice --foreground");
    let script = format!("{command} && systemd-notify --ready && exec {stay}");
    format!("[Service]\nNotifyAccess=all\nWatchdogSec=0\nExecStart=\nExecStart=/bin/sh -c '{script}'\n")
}

fn is(machine: &Machine, what: &str) -> Result<String> {
    Ok(machine.run(&["systemctl", what, UNIT])?.stdout.trim().to_owned())
}

fn expect_state(machine: &Machine, active: &str, enabled: &str) -> Result<()> {
    let found = (is(machine, "is-active")?, is(machine, "is-enabled")?);
    ensure!(found == (active.to_owned(), enabled.to_owned()), "{found:?} instead of {active}, {enabled}");
    Ok(())
}

fn installed() -> Result<()> {
    let rig = Rig::new()?;
    let machine = Machine::boot(&rig.net.host)?;
    let install = [BINARY, "systemd", "install"];
    let shown = machine.ok(&[BINARY, "systemd", "install", "--dry-run"])?;
    ensure!(shown.starts_with("would change, in this order:\n1. write /etc/systemd"), "dry run: {shown}");
    ensure!(machine.read(UNIT_FILE)?.is_none() && machine.read(CONFIG)?.is_none(), "a dry run wrote files");
    let done = machine.ok(&install)?;
    let steps = |text: &str, prefix: &str| -> Vec<String> {
        text.lines().filter_map(|line| line.split_once(prefix)).map(|(_, step)| step.to_owned()).collect()
    };
    ensure!(steps(&shown, ". ") == steps(&done, "done: "), "shown: {shown}done: {done}");
    let unit = machine.read(UNIT_FILE)?.unwrap_or_default();
    ensure!(unit.contains(&format!("\nExecStart={BINARY} run\n")), "unit: {unit}");
    expect_state(&machine, "active", "enabled")?;
    until("the unit runs the binary", patience(20), || {
        let process = machine.ok(&["systemctl", "show", "--property=MainPID", "--value", UNIT])?;
        let exe = format!("/proc/{}/exe", process.trim());
        let files = machine.run(&["stat", "--dereference", "--format=%d:%i", BINARY, &exe])?.stdout;
        Ok(files.split_once('\n').is_some_and(|(one, other)| one == other.trim()).then_some(()))
    })?;
    ensure!(machine.ok(&install)? == "nothing to change\n", "a second install changed something");
    machine.write(CONFIG, "# changed\n")?;
    let output = machine.run(&[BINARY, "systemd", "uninstall"])?;
    output.success()?;
    ensure!(output.stderr.contains("config.toml stays: it was changed"), "notes: {}", output.stderr);
    ensure!(machine.read(UNIT_FILE)?.is_none(), "the unit is still there");
    ensure!(machine.read(CONFIG)?.as_deref() == Some("# changed\n"), "a changed configuration was removed");
    ensure!(is(&machine, "is-active")? == "inactive", "the daemon still runs");
    let again = machine.ok(&[BINARY, "systemd", "uninstall"])?;
    ensure!(again == "nothing to change\n", "again: {again}");
    machine.ok(&["rm", CONFIG])?;
    machine.ok(&install)?;
    machine.ok(&[BINARY, "systemd", "uninstall"])?;
    ensure!(machine.read(CONFIG)?.is_none(), "the example configuration was left");
    Ok(())
}

/// The daemon itself in its unit: what its file asks for is served, through its end and a reload.
fn served() -> Result<()> {
    let rig = Rig::new()?;
    let machine = Machine::boot(&rig.net.host)?;
    machine.write("/etc/systemd/system/redis.service", REDIS)?;
    machine.ok(&["systemctl", "start", "redis.service"])?;
    let one = "[[attach]]\nservice = \"7001\"\nbridges = [\"br-a\"]\n";
    machine.write(CONFIG, one)?;
    machine.ok(&[BINARY, "systemd", "install"])?;
    rig.expect(NAME, Moved::accepted(1), || ping(&rig.net.a1, gateway()))?;
    let process = || machine.ok(&["systemctl", "show", "--property=MainPID", "--value", UNIT]);
    let first = process()?;
    machine.ok(&["systemctl", "kill", "--signal=KILL", UNIT])?;
    rig.expect(NAME, Moved::accepted(1), || ping(&rig.net.a1, gateway()))?;
    until("systemd starts it again", patience(20), || {
        let is_new = process()? != first && is(&machine, "is-active")? == "active";
        Ok(is_new.then_some(()))
    })?;
    rig.expect(NAME, Moved::accepted(1), || ping(&rig.net.a1, gateway()))?;
    machine.write(CONFIG, &format!("{one}{}", one.replace("7001", "7002:7001")))?;
    machine.ok(&["systemctl", "reload", UNIT])?;
    until("what was added is attached", patience(20), || {
        let all = rig.cli().status()?;
        Ok(all.iter().any(|one| one.name == "br-a-tcp-7002" && one.state == "ready").then_some(()))
    })?;
    machine.ok(&["systemctl", "stop", UNIT])?;
    rig.expect(NAME, Moved::accepted(1), || ping(&rig.net.a1, gateway()))?;
    machine.ok(&[BINARY, "systemd", "uninstall"])?;
    machine.ok(&[BINARY, "detach", "--all"])?;
    rig.net.host.nothing_pinned()
}

fn taken_back() -> Result<()> {
    let rig = Rig::new()?;
    let machine = Machine::boot(&rig.net.host)?;
    machine.write(ADDITION, "[Service]\nExecStart=\nExecStart=/bin/false\nRestart=no\n")?;
    let output = machine.run(&[BINARY, "systemd", "install"])?;
    expect_refusal(&output, 1, &["journalctl -u bridge-user.service", "everything is as it was"])?;
    ensure!(machine.read(UNIT_FILE)?.is_none() && machine.read(CONFIG)?.is_none(), "files were left");
    ensure!(is(&machine, "is-active")? != "active", "the unit runs");
    let links = machine.run(&["ls", "/etc/systemd/system/multi-user.target.wants"])?;
    ensure!(!links.stdout.contains(UNIT), "the unit still starts at boot: {}", links.stdout);
    Ok(())
}

fn sound() -> Result<()> {
    let rig = Rig::new()?;
    let machine = Machine::boot(&rig.net.host)?;
    machine.ok(&[BINARY, "systemd", "install"])?;
    let verified = machine.run(&["systemd-analyze", "verify", "--man=no", UNIT_FILE])?;
    verified.success()?;
    ensure!(verified.stderr.is_empty(), "systemd-analyze verify: {}", verified.stderr);
    let threshold = format!("--threshold={EXPOSURE}");
    machine.ok(&["systemd-analyze", "security", "--offline=true", &threshold, UNIT_FILE])?;
    Ok(())
}

/// Everything an attach does, with nothing but what the unit leaves it: bpffs, the cgroups, scratch namespaces, other
/// processes' sockets. And what it pinned is there for everybody else.
fn sandboxed() -> Result<()> {
    let rig = Rig::new()?;
    let machine = Machine::boot(&rig.net.host)?;
    machine.write("/etc/systemd/system/redis.service", REDIS)?;
    machine.ok(&["systemctl", "start", "redis.service"])?;
    machine.write(ADDITION, &starting(&format!("{BINARY} attach 7001 --bridge br-a && {BINARY} check")))?;
    let output = machine.run(&[BINARY, "systemd", "install"])?;
    let log = machine.read(&format!("/run/{UNIT}.log"))?.unwrap_or_default();
    ensure!(output.code == Some(0), "{}{log}", output.stderr);
    rig.expect(NAME, Moved::accepted(1), || ping(&rig.net.a1, gateway()))?;
    let removed = machine.run(&[BINARY, "systemd", "uninstall"])?;
    removed.success()?;
    ensure!(
        removed.stderr.contains(NAME) && removed.stderr.contains("detach --all"),
        "what stays attached is not named: {}",
        removed.stderr
    );
    rig.expect(NAME, Moved::accepted(1), || ping(&rig.net.a1, gateway()))?;
    machine.ok(&[BINARY, "detach", "--all"])?;
    rig.net.host.nothing_pinned()?;
    trapped(&rig, &machine)
}

/// What hardening guides recommend, and what it takes to undo it.
fn trapped(rig: &Rig, machine: &Machine) -> Result<()> {
    let hardened = format!("{BINARY} attach 7001 --bridge br-a");
    let trap = "ProtectKernelTunables=yes\nReadWritePaths=/sys/fs/bpf\nRestart=no\n";
    machine.write(ADDITION, &format!("{}{trap}", starting(&hardened)))?;
    let output = machine.run(&[BINARY, "systemd", "install"])?;
    expect_refusal(&output, 1, &["did not start", "everything is as it was"])?;
    let log = machine.read(&format!("/run/{UNIT}.log"))?.unwrap_or_default();
    ensure!(log.contains("set ProtectKernelTunables=no in the unit"), "the daemon said: {log}");
    rig.net.host.nothing_pinned()
}

fn refused() -> Result<()> {
    let rig = Rig::new()?;
    let cli = Cli::new(&rig.net.host);
    if !std::path::Path::new("/run/systemd/system").exists() {
        cli.refused(
            &["systemd", "install"],
            1,
            &["/run/systemd/system is missing", "start `bridge-user run`"],
        )?;
    }
    let machine = Machine::boot(&rig.net.host)?;
    machine.ok(&["install", "-m", "755", BINARY, "/tmp/bridge-user"])?;
    let output = machine.run(&["/tmp/bridge-user", "systemd", "install"])?;
    expect_refusal(
        &output,
        1,
        &["/tmp is emptied at boot", "install -m 755 /tmp/bridge-user /usr/local/bin/"],
    )?;
    machine.write(UNIT_FILE, "[Service]\nExecStart=/bin/true\n")?;
    let output = machine.run(&[BINARY, "systemd", "install"])?;
    expect_refusal(&output, 1, &[UNIT_FILE, "was not written by", "systemctl edit"])?;
    machine.ok(&["rm", UNIT_FILE])?;
    machine.ok(&["systemctl", "mask", "--quiet", UNIT])?;
    let output = machine.run(&[BINARY, "systemd", "install"])?;
    expect_refusal(&output, 1, &["masked", "systemctl unmask"])
}
