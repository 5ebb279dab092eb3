//! `scope::*`: a container that listens on its own 127.0.0.1:PORT gains nothing.
//!
//! The kernel side sees listen() in every namespace; only the attached one may count. Invariant:
//! every trial checks the attacker's socket really listened, and that it never got a connection.

use anyhow::{Result, ensure};

use super::Test;
use crate::harness::client::{answers, refused};
use crate::harness::netns::Netns;
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::Service;
use crate::harness::topology::{GATEWAY_A, at, local};

pub(super) const TESTS: &[Test] = &[
    Test::new("scope::container_that_listened_before_attach_gets_nothing", before_attach).in_kernels(),
    Test::new("scope::container_that_listens_after_attach_gets_nothing", after_attach).in_kernels(),
    Test::new("scope::container_that_listens_while_the_service_is_down_gets_nothing", while_down)
        .in_kernels(),
    Test::new("scope::container_in_a_shared_port_group_gets_nothing", shared_port).in_kernels(),
];

const NAME: &str = "br-a-tcp-7001";

/// An attacker in `netns` whose own loopback port is shown to work.
fn attacker(netns: &Netns) -> Result<Service> {
    let service = Service::start_shared(netns, local(7001))?;
    proven(netns, &service)?;
    Ok(service)
}

/// The attacker's service answers in its own namespace, and only its own probes reached it.
fn proven(netns: &Netns, attacker: &Service) -> Result<()> {
    let before = attacker.peers().len();
    answers(netns, local(7001))?;
    let peers = attacker.peers();
    ensure!(peers.len() == before + 1, "the attacker's own service does not answer");
    ensure!(peers.iter().all(|peer| peer.remote.ip().is_loopback()), "the attacker got {peers:?}");
    Ok(())
}

/// The victim is reached by both containers, and the attacker is not.
fn unharmed(rig: &Rig, service: &Service, attacker_service: &Service) -> Result<()> {
    let before = service.peers().len();
    rig.expect(NAME, Moved::accepted(16), || {
        for _ in 0..8 {
            answers(&rig.net.a1, at(GATEWAY_A, 7001))?;
            answers(&rig.net.a2, at(GATEWAY_A, 7001))?;
        }
        Ok(())
    })?;
    ensure!(service.peers().len() == before + 16, "the service saw {:?}", service.peers());
    proven(&rig.net.a2, attacker_service)
}

/// With only the attacker listening, the attachment waits and refuses.
fn still_waiting(rig: &Rig, attacker_service: &Service) -> Result<()> {
    rig.expect_state(NAME, "waiting-for-listener")?;
    rig.expect(NAME, Moved::no_listener(2), || {
        refused(&rig.net.a1, at(GATEWAY_A, 7001))?;
        refused(&rig.net.a2, at(GATEWAY_A, 7001))
    })?;
    proven(&rig.net.a2, attacker_service)
}

fn before_attach() -> Result<()> {
    let rig = Rig::new()?;
    let attacker_service = attacker(&rig.net.a2)?;
    rig.attach("7001")?;
    still_waiting(&rig, &attacker_service)?;
    let service = Service::start(&rig.net.host, local(7001))?;
    unharmed(&rig, &service, &attacker_service)
}

fn after_attach() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    let attacker_service = attacker(&rig.net.a2)?;
    unharmed(&rig, &service, &attacker_service)?;
    // Closing the attacker's listener must not remove the service's entry either.
    attacker_service.stop();
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    rig.expect_state(NAME, "ready")?;
    Ok(())
}

fn while_down() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    rig.expect_state(NAME, "ready")?;
    service.stop();
    let attacker_service = attacker(&rig.net.a2)?;
    still_waiting(&rig, &attacker_service)?;
    let service = Service::start(&rig.net.host, local(7001))?;
    unharmed(&rig, &service, &attacker_service)
}

/// `SO_REUSEPORT` on both sides: the attacker's socket is in no group of the host's.
fn shared_port() -> Result<()> {
    let rig = Rig::new()?;
    let first = Service::start_shared(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    let attacker_service = attacker(&rig.net.a2)?;
    unharmed(&rig, &first, &attacker_service)?;
    first.stop();
    still_waiting(&rig, &attacker_service)?;
    let second = Service::start_shared(&rig.net.host, local(7001))?;
    unharmed(&rig, &second, &attacker_service)
}
