//! `import::*`: forwards made by hand are found, and what they are said to become serves in their place.
//!
//! Invariant: the units are in a machine of the trial's own ([`Machine`]); socat and its clients are real.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Test;
use crate::harness::cli::expect_refusal;
use crate::harness::machine::{BINARY, Machine};
use crate::harness::proc::run_in;
use crate::harness::redis::Session;
use crate::harness::relay::{NAME, gateway};
use crate::harness::rig::{Moved, Rig};
use crate::harness::wait::{patience, until};

pub(super) const TESTS: &[Test] = &[
    Test::on_host("import::what_a_unit_becomes_serves_in_its_place", replaced),
    Test::on_host("import::every_kind_of_origin_is_found", origins),
];

const REDIS: &str = "[Service]\nType=notify\nExecStart=/usr/bin/redis-server --port 7001 --bind 127.0.0.1 --save '' \
                     --protected-mode no --supervised systemd\n";
const ENABLED: &str = "[Install]\nWantedBy=multi-user.target\n";

/// A forward from br-a's gateway, as a template with an environment and an override.
fn write_units(machine: &Machine) -> Result<()> {
    machine.write("/etc/systemd/system/redis.service", REDIS)?;
    let template = format!(
        "[Service]\nEnvironmentFile=/etc/default/forward\n\
         ExecStart=/usr/bin/socat TCP4-LISTEN:%i,bind=${{GATEWAY}},reuseaddr,fork \\\n  TCP4:127.0.0.1:%i\n{ENABLED}"
    );
    machine.write("/etc/systemd/system/forward@.service", &template)?;
    machine.write("/etc/default/forward", "GATEWAY=172.30.1.1\n")?;
    machine.ok(&["systemctl", "daemon-reload"])?;
    machine.ok(&["systemctl", "start", "redis.service"])?;
    machine.ok(&["systemctl", "enable", "--quiet", "--now", "forward@7001.service"])?;
    until("socat listens", patience(20), || {
        let sockets = machine.ok(&["ss", "-Hltn", "sport", "=", ":7001"])?;
        Ok(sockets.contains("172.30.1.1:7001").then_some(()))
    })
}

/// What stands behind a label, in what was printed of one forward.
fn field<'a>(printed: &'a str, label: &str) -> Result<&'a str> {
    let start = format!("  {label}: ");
    let found = printed.lines().find_map(|line| line.strip_prefix(start.as_str()));
    found.with_context(|| format!("no {label} in: {printed}"))
}

fn replaced() -> Result<()> {
    let rig = Rig::new()?;
    let machine = Machine::boot(&rig.net.host)?;
    write_units(&machine)?;
    let mut before = Session::open(&rig.net.a1, gateway())?;
    ensure!(before.command("PING")? == "+PONG", "the forward does not work");
    let printed = machine.ok(&[BINARY, "import", "--dry-run", "forward@7001"])?;
    ensure!(printed.starts_with("forward@7001.service (enabled, pid "), "printed: {printed}");
    ensure!(field(&printed, "connected now")? == "172.30.1.11", "printed: {printed}");
    ensure!(field(&printed, "would lose access")?.starts_with("programs of this host"), "printed: {printed}");
    rig.net.host.nothing_pinned().context("after a dry run")?;
    let then: Vec<&str> = field(&printed, "then")?.split(' ').collect();
    ensure!(then == ["systemctl", "disable", "--now", "forward@7001.service"], "then: {then:?}");
    machine.ok(&then)?;
    let becomes: Vec<&str> = field(&printed, "becomes")?.split(' ').skip(1).collect();
    machine.ok(&[&[BINARY], becomes.as_slice()].concat())?;
    rig.expect(NAME, Moved::accepted(1), || {
        let mut session = Session::open(&rig.net.a1, gateway())?;
        let clients = session.command("CLIENT LIST")?;
        ensure!(clients.contains("addr=127.0.0.1:"), "the service sees another client: {clients}");
        Ok(())
    })
}

/// A disabled unit, one that is masked, a user's, a process of no unit, a DNAT rule, and one to leave alone.
fn origins() -> Result<()> {
    let rig = Rig::new()?;
    let machine = Machine::boot(&rig.net.host)?;
    write_units(&machine)?;
    let forward = |port: u16| {
        format!("[Service]\nExecStart=socat TCP-L:{port},fork,bind=172.30.1.1 TCP:localhost:{port}\n")
    };
    machine.write("/etc/systemd/system/disabled.service", &forward(7101))?;
    machine.write("/usr/lib/systemd/system/masked.service", &forward(7102))?;
    machine.ok(&["systemctl", "mask", "--quiet", "masked.service"])?;
    machine.write("/root/.config/systemd/user/mine.service", &forward(7103))?;
    let remote = "[Service]\nExecStart=socat TCP-LISTEN:7104,fork TCP:198.51.100.2:80\n";
    machine.write("/etc/systemd/system/remote.service", remote)?;
    let by_hand =
        "setsid socat TCP-LISTEN:7105,fork,range=172.30.2.0/24 TCP:127.0.0.1:7001 > /dev/null 2>&1 &";
    machine.ok(&["sh", "-c", by_hand])?;
    // iptables does not go on with a table that nft made.
    rig.net.host.nft("delete table ip nat\n")?;
    run_in(&rig.net.host, Command::new("iptables").args(RULE.split(' ')))?.success()?;
    let printed = until("the process is found", patience(20), || {
        let printed = machine.ok(&[BINARY, "import", "--dry-run"])?;
        Ok(printed.contains("no unit (pid ").then_some(printed))
    })?;
    for expected in [
        "disabled.service (disabled, not running)\n",
        "masked.service (masked, not running)\n",
        "mine.service of root (disabled, not running)\n",
        "forward@7001.service (enabled, pid ",
        "  left alone: its target is 198.51.100.2, not this host's loopback\n",
        "  becomes: bridge-user attach 7105:127.0.0.1:7001 --bridge br-b --identity loopback --allow 172.30.2.0/24\n",
        "  becomes: bridge-user attach 7106:127.0.0.1:7001 --bridge br-a --identity loopback\n",
        "  then: iptables -t nat -D PREROUTING -i br-a -p tcp ",
    ] {
        ensure!(printed.contains(expected), "{expected:?} is not in: {printed}");
    }
    let output = machine.run(&[BINARY, "import", "--dry-run", "redis"])?;
    expect_refusal(&output, 1, &["redis.service", "no such unit runs socat"])?;
    let output = machine.run(&[BINARY, "import"])?;
    expect_refusal(&output, 2, &["import --dry-run"])?;
    rig.net.host.nothing_pinned()
}

const RULE: &str = "-t nat -A PREROUTING -i br-a -p tcp --dport 7106 -j DNAT --to-destination 127.0.0.1:7001";
