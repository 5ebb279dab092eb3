//! `container::*`: what a kernel could do differently inside a container's namespace, on every kernel. Docker is a
//! stand-in; the "container" is a1 of the rig, and its peer is a2.
//!
//! Invariant: the host's namespace, a neighbour's and another network's hold listeners at the same port, and get
//! nothing.

use anyhow::{Result, ensure};

use super::Test;
use crate::harness::cli::Cli;
use crate::harness::client::{answers, refused};
use crate::harness::fake_docker::FakeDocker;
use crate::harness::netns::Netns;
use crate::harness::rig::{Moved, Rig, remove_pins};
use crate::harness::service::{Peer, Service};
use crate::harness::sys::mptcp_listener;
use crate::harness::topology::{A1, A2, at, local};
use crate::harness::wait::{patience, until};

pub(super) const TESTS: &[Test] = &[
    Test::new("container::steers_inside_another_namespace", steers).in_kernels(),
    Test::with_mptcp("container::steers_to_mptcp_inside_another_namespace", mptcp).in_kernels(),
    Test::new("container::tells_when_the_namespace_is_gone", gone).in_kernels(),
    Test::on_host("container::is_none_of_a_host_that_got_the_inode", inherited_inode),
];

const NAME: &str = "web.app-tcp-7001";

/// The rig, and a1 as container `web`.
struct Stage {
    rig: Rig,
    docker: FakeDocker,
}

impl Stage {
    fn new() -> Result<Self> {
        let rig = Rig::new()?;
        let mut docker = FakeDocker::start()?;
        docker.run("web", &rig.net.a1, A1)?;
        // Docker's name service loads such rules there, which changes what early lookups may do.
        const NAT: &str = "table ip nat { chain p { type nat hook prerouting priority -100; }; \
                           chain i { type nat hook input priority 100; }; }";
        rig.net.a1.nft(NAT)?;
        Ok(Self { rig, docker })
    }

    fn cli(&self) -> Cli<'_> {
        self.cli_in(&self.rig.net.host)
    }

    fn cli_in<'a>(&self, netns: &'a Netns) -> Cli<'a> {
        Cli::new(netns).with_docker(&self.docker.endpoint())
    }

    fn attach(&self, options: &[&str]) -> Result<()> {
        self.cli().ok(&[&["attach", "7001", "--container", "web"], options].concat()).map(drop)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for netns in [&self.rig.net.a1, &self.rig.net.a2] {
            remove_pins(netns);
        }
    }
}

fn steers() -> Result<()> {
    let stage = Stage::new()?;
    let (cli, net) = (stage.cli(), &stage.rig.net);
    let to = at(A1, 7001);
    let there_before = Service::start(&net.a1, local(7001))?;
    refused(&net.a2, to)?;
    stage.attach(&[])?;
    let remote = stage.rig.expect(NAME, Moved::accepted(1), || answers(&net.a2, to))?;
    let seen = there_before.peers();
    ensure!(seen == [Peer { remote, local: to }] && remote.ip() == A2, "the service saw {seen:?}");
    there_before.stop();
    // The host, a neighbour and another network's container listen at the same loopback port.
    let others = [&net.host, &net.a2, &net.b1].map(|netns| Service::start_shared(netns, local(7001)));
    let others = others.into_iter().collect::<Result<Vec<_>>>()?;
    stage.rig.expect(NAME, Moved::no_listener(1), || refused(&net.a2, to))?;
    let came_later = Service::start(&net.a1, local(7001))?;
    stage.rig.expect(NAME, Moved::accepted(4), || (0..4).try_for_each(|_| answers(&net.a2, to).map(drop)))?;
    ensure!(came_later.peers().len() == 4, "the service saw {:?}", came_later.peers());
    stage.attach(&["--allow", "172.30.1.99"])?;
    stage.rig.expect(NAME, Moved::denied(1), || refused(&net.a2, to))?;
    ensure!(
        others.iter().all(|other| other.peers().is_empty()),
        "another namespace's listener got a connection"
    );
    net.host.nothing_pinned()?;
    cli.ok(&["detach", NAME])?;
    refused(&net.a2, to)?;
    net.a1.nothing_pinned()
}

fn mptcp() -> Result<()> {
    let stage = Stage::new()?;
    let (cli, net) = (stage.cli(), &stage.rig.net);
    net.a1.sysctl("net/mptcp/enabled", "1")?;
    let service = Service::serve(net.a1.run(|| mptcp_listener(local(7001)))?)?;
    stage.attach(&[])?;
    let to = at(A1, 7001);
    for _ in 0..3 {
        let remote = stage.rig.expect_tc(NAME, Moved::accepted(1), || answers(&net.a2, to))?;
        ensure!(service.peers().last() == Some(&Peer { remote, local: to }), "it saw {:?}", service.peers());
    }
    cli.ok(&["detach", "--all"])?;
    refused(&net.a2, to)?;
    net.a1.nothing_pinned()
}

fn gone() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.attach(&[])?;
    ensure!(stage.cli().attachment(NAME)?.state == "waiting-for-listener", "nothing listens yet");
    // The next run is in another namespace, at another address.
    stage.docker.run("web", &stage.rig.net.a2, A2)?;
    let (cli, net) = (stage.cli(), &stage.rig.net);
    let left = cli.attachment(NAME)?;
    ensure!(left.state == "waiting-for-bridge" && left.gateways == [A1.to_string()], "left is {}", left.raw);
    let service = Service::start(&net.a2, local(7001))?;
    refused(&net.a1, at(A2, 7001))?;
    stage.attach(&[])?;
    ensure!(cli.status()?.len() == 1, "the earlier run is still shown");
    stage.rig.expect(NAME, Moved::accepted(1), || answers(&net.a1, at(A2, 7001)).map(drop))?;
    ensure!(service.peers().len() == 1, "the service saw {:?}", service.peers());
    net.a1.nothing_pinned()?;
    cli.ok(&["detach", "web"])?;
    net.a2.nothing_pinned()
}

/// Whoever attached in a container is gone, and what steers there is not. Another namespace has the inode since.
fn inherited_inode() -> Result<()> {
    let stage = Stage::new()?;
    let owner = Netns::new()?;
    let inode = owner.inode();
    stage.cli_in(&owner).ok(&["attach", "7001", "--container", "web"])?;
    ensure!(stage.cli_in(&owner).attachment(NAME)?.datapath == "steer", "its owner sees it");
    drop(owner);
    // Each takes the lowest inode that is free, so they come to it.
    let mut passed = Vec::new();
    let heir = until("a namespace gets the inode of one that is gone", patience(20), || {
        passed.push(Netns::new()?);
        Ok(passed.pop_if(|made| made.inode() == inode))
    })?;
    ensure!(stage.cli_in(&heir).status()?.is_empty(), "it is taken for another namespace's");
    stage.cli_in(&heir).ok(&["detach", "--all"])?;
    let _service = Service::start(&stage.rig.net.a1, local(7001))?;
    answers(&stage.rig.net.a2, at(A1, 7001)).map(drop)
}
