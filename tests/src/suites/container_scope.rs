//! `docker::container::*`: who gets in, and what a hostile container gains.
//!
//! Invariant: a refusal is counted, or the connection never reached the container's namespace.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::Test;
use super::pins::hide;
use super::privileges::with_mounts;
use crate::harness::client::{answers, dial, refused};
use crate::harness::containers::{ATTACH, NAME, Stage};
use crate::harness::netns::Netns;
use crate::harness::proc::{Guarded, run_in};
use crate::harness::rig::{Moved, expect_moved};
use crate::harness::service::Service;
use crate::harness::topology::local;
use crate::harness::wait::{patience, until};

pub(super) const TESTS: &[Test] = &[
    Test::on_host("docker::container::allow_list_admits_one_sibling_only", || Stage::run(allow_list)),
    Test::on_host("docker::container::other_networks_do_not_get_in", || Stage::run(other_network)),
    Test::on_host("docker::container::neighbour_with_the_same_loopback_port_gets_nothing", || {
        Stage::run(neighbour)
    }),
    Test::on_host("docker::container::detach_all_ends_what_is_hidden", || Stage::run(hidden)),
    Test::on_host("docker::container::hostile_one_keeps_no_other_from_being_detached", || {
        Stage::run(hostile)
    }),
];

fn allow_list(stage: &mut Stage) -> Result<()> {
    stage.engine.container("third", &["--network", "app"])?;
    let cli = stage.engine.cli();
    cli.ok(&[&ATTACH[..], &["--allow", "peer"]].concat())?;
    let attachment = stage.only("ready")?;
    ensure!(attachment.allow == ["peer"], "the list is {:?}", attachment.allow);
    stage.served()?;
    expect_moved(&cli, NAME, Moved::denied(2), || (0..2).try_for_each(|_| stage.refuses("third")))?;
    let events = cli.ok(&["events", "--container", "web"])?;
    let third = stage.engine.address("third", "app")?.to_string();
    let shown = events.contains(&third) && events.contains("denied") && events.contains(NAME);
    ensure!(shown, "the refusal is not in the events: {events}");
    cli.refused(&["events", "--container", "peer"], 1, &["container peer", "attach a service"])?;
    cli.ok(&[&ATTACH[..], &["--allow", "third"]].concat())?;
    expect_moved(&cli, NAME, Moved::accepted(1), || stage.gets("third", "web"))?;
    expect_moved(&cli, NAME, Moved::denied(1), || stage.refuses("peer"))?;
    cli.ok(&["detach", "web"]).map(drop)
}

fn other_network(stage: &mut Stage) -> Result<()> {
    stage.engine.container("stranger", &[])?;
    let cli = stage.engine.cli();
    cli.ok(&ATTACH)?;
    let (stranger, to) = (stage.engine.netns("stranger")?, stage.port_of("web")?);
    expect_moved(&cli, NAME, Moved::NOTHING, || match stranger.run(|| dial(to)) {
        // Docker drops what goes from one of its networks to another, so nobody answers.
        Err(_) => Ok(()),
        Ok(_) => bail!("a container of another network was served"),
    })?;
    stage.served()?;
    cli.ok(&["detach", "web"]).map(drop)
}

/// What steers inside a container ends also where another bpffs hides its pins.
fn hidden(stage: &mut Stage) -> Result<()> {
    let cli = stage.engine.cli();
    cli.ok(&ATTACH)?;
    stage.served()?;
    let detach = || with_mounts(&stage.engine.host, hide, &["detach", "--all"]);
    let ended = detach()?;
    ended.success()?;
    ensure!(ended.stdout.contains(&format!("detached {NAME}")), "it says {}", ended.stdout);
    stage.refuses("peer")?;
    let again = detach()?;
    again.success()?;
    ensure!(again.stdout.is_empty(), "it says {}", again.stdout);
    cli.ok(&ATTACH)?;
    stage.served()?;
    cli.ok(&["detach", "--all"]).map(drop)
}

/// A container with CAP_NET_ADMIN may do what it likes to its own network: what is attached there ends nevertheless,
/// and so do the others, whichever comes first.
fn hostile(stage: &mut Stage) -> Result<()> {
    stage.engine.container("third", &["--network", "app"])?;
    let cli = stage.engine.cli();
    for container in ["peer", "web", "third"] {
        cli.ok(&["attach", "7001", "--container", container])?;
    }
    let web = stage.engine.netns("web")?;
    let _owner = own_table(&web)?;
    web.ip("link set eth0 down\nlink set eth0 name mine\nlink set mine up\n")?;
    let said = cli.ok(&["detach", "7001"])?;
    for name in ["peer.app-tcp-7001", "third.app-tcp-7001", "web.app-tcp-7001"] {
        ensure!(said.contains(name), "it does not say {name}: {said}");
    }
    stage.refuses("third")?;
    let left: Vec<_> = cli.status()?.into_iter().map(|attachment| attachment.name).collect();
    ensure!(left.is_empty(), "{left:?} are still attached");
    cli.ok(&["detach", "--all"]).map(drop)
}

/// A table that is another process's, as long as that lives, with the name that bridge-user's had once.
fn own_table(netns: &Netns) -> Result<Guarded> {
    const TAKE: &str = "add table inet bridge_user { flags owner; }\n";
    let mut command = Command::new("nft");
    command.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut nft = netns.spawn(&mut command).context("failed to start nft")?;
    nft.stdin.as_mut().context("nft has no standard input")?.write_all(TAKE.as_bytes())?;
    let owner = Guarded::new(nft);
    until("the table has an owner", patience(10), || {
        let shown = run_in(netns, Command::new("nft").args(["list", "table", "inet", "bridge_user"]))?;
        Ok(shown.stdout.contains("owner").then_some(()))
    })?;
    Ok(owner)
}

fn neighbour(stage: &mut Stage) -> Result<()> {
    let (web, mallory) = (stage.engine.netns("web")?, stage.engine.netns("peer")?);
    stage.engine.container("third", &["--network", "app"])?;
    let third = stage.engine.netns("third")?;
    let cli = stage.engine.cli();
    let to = crate::harness::topology::at(stage.engine.address("web", "app")?, 7005);
    let name = "web.app-tcp-7005";
    // Before the attachment, while the service is down, and beside the service.
    let attacker = Service::start_shared(&mallory, local(7005))?;
    cli.ok(&["attach", "7005", "--container", "web"])?;
    expect_moved(&cli, name, Moved::no_listener(1), || refused(&third, to))?;
    let service = Service::start_shared(&web, local(7005))?;
    let second = Service::start_shared(&mallory, local(7005))?;
    expect_moved(&cli, name, Moved::accepted(8), || (0..8).try_for_each(|_| answers(&third, to).map(drop)))?;
    ensure!(service.peers().len() == 8, "the service saw {:?}", service.peers());
    service.stop();
    expect_moved(&cli, name, Moved::no_listener(1), || refused(&third, to))?;
    answers(&mallory, local(7005))?;
    let stolen = attacker.peers().len() + second.peers().len();
    ensure!(stolen == 1, "the attacker got more than its own connection: {stolen}");
    // The host's loopback is another namespace's, too.
    let _on_host = Service::start_shared(&stage.engine.host, local(7005))?;
    expect_moved(&cli, name, Moved::no_listener(1), || refused(&third, to))?;
    cli.ok(&["detach", "--all"]).map(drop)
}
