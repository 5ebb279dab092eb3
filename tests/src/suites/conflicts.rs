//! `host::*`: ports that are taken, and listeners that cannot be steered.
//!
//! Invariant: the owner of a conflict is named, and what was attached before stays as it was.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, ensure};

use super::Test;
use super::refusals::{lone_host, refuse};
use crate::harness::cli::Cli;
use crate::harness::client::answers;
use crate::harness::kernel_ids::KernelIds;
use crate::harness::rig::{Moved, Rig, remove_pins};
use crate::harness::service::Service;
use crate::harness::topology::{GATEWAY_A, GATEWAY_B, at, local};

const NAME: &str = "br-a-tcp-7001";

pub(super) const TESTS: &[Test] = &[
    Test::new("host::port_attached_under_another_name", attached_under_another_name),
    Test::new("host::port_bound_on_the_gateway", bound_on_the_gateway),
    Test::new("host::port_bound_on_the_gateway_after_attach", bound_later),
    Test::new("host::service_on_every_address_is_told_of", || on_every_address(Ipv4Addr::UNSPECIFIED.into())),
    Test::new("host::dual_stack_service_on_every_address_is_told_of", || {
        on_every_address(Ipv6Addr::UNSPECIFIED.into())
    }),
    Test::new("host::service_on_every_address_may_see_local_clients", local_clients_everywhere),
    Test::new("host::another_service_on_every_address_is_a_conflict", another_on_every_address),
    Test::new("host::target_service_is_on_every_address_at_another_port", mapped_is_no_conflict),
];

/// This process as the owner of a socket, the way a refusal has to name it.
fn own_name_and_pid() -> Result<[String; 2]> {
    let name = std::fs::read_to_string("/proc/self/comm")?.trim().to_owned();
    Ok([name, std::process::id().to_string()])
}

fn attached_under_another_name() -> Result<()> {
    let host = lone_host()?;
    let cli = Cli::new(&host);
    cli.ok(&["attach", "first=7001", "--bridge", "br-a"])?;
    let (ids, before) = (KernelIds::take()?, cli.status()?);
    let refusal = cli.refused(&["attach", "second=7001", "--bridge", "br-a"], 1, &["7001", "first"]);
    let unchanged = ids.wait_equal();
    let after = cli.status()?;
    remove_pins(&host);
    refusal?;
    unchanged?;
    ensure!(before == after, "status went from {before:?} to {after:?}");
    Ok(())
}

fn bound_on_the_gateway() -> Result<()> {
    let host = lone_host()?;
    let _owner = Service::start(&host, at(GATEWAY_A, 7001))?;
    let [name, pid] = own_name_and_pid()?;
    refuse(&host, &["attach", "7001", "--bridge", "br-a"], 1, &["7001", "172.30.1.1", &name, &pid])
}

fn bound_later() -> Result<()> {
    let host = lone_host()?;
    let cli = Cli::new(&host);
    cli.ok(&["attach", "7001", "--bridge", "br-a"])?;
    let outcome =
        Service::start(&host, at(GATEWAY_A, 7001)).and_then(|_owner| cli.attachment("br-a-tcp-7001"));
    remove_pins(&host);
    let attachment = outcome?;
    ensure!(attachment.state == "conflict", "the state is {}", attachment.state);
    attachment.expect_finding("port-bound-on-gateway")
}

/// The service is reachable from containers already, and from everywhere else: that is said, whichever was there first.
fn on_every_address(address: IpAddr) -> Result<()> {
    let everywhere = SocketAddr::from((address, 7001));
    for service_first in [true, false] {
        let rig = Rig::new()?;
        let early = service_first.then(|| Service::start(&rig.net.host, everywhere)).transpose()?;
        rig.attach("7001")?;
        let late = (!service_first).then(|| Service::start(&rig.net.host, everywhere)).transpose()?;
        rig.expect_state(NAME, "ready")?.expect_finding("listener-on-every-address")?;
        rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
        // Other networks reach it without the attachment.
        rig.expect(NAME, Moved::NOTHING, || answers(&rig.net.b1, at(GATEWAY_B, 7001)))?;
        let seen: Vec<_> = early.iter().chain(&late).flat_map(Service::peers).collect();
        ensure!(seen.len() == 2, "the service saw {seen:?}");
    }
    Ok(())
}

/// What it is of use for: a service that answers only local clients, on its own port.
fn local_clients_everywhere() -> Result<()> {
    for service_first in [true, false] {
        let rig = Rig::new()?;
        let everywhere = at(Ipv4Addr::UNSPECIFIED, 7001);
        let early = service_first.then(|| Service::start(&rig.net.host, everywhere)).transpose()?;
        rig.attach_with("7001", &["--identity", "loopback"])?;
        let late = (!service_first).then(|| Service::start(&rig.net.host, everywhere)).transpose()?;
        rig.expect_state(NAME, "ready")?.expect_finding("listener-on-every-address")?;
        rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
        let seen: Vec<_> = early.iter().chain(&late).flat_map(Service::peers).collect();
        ensure!(seen.iter().all(|peer| peer.remote.ip().to_canonical().is_loopback()), "it saw {seen:?}");
        ensure!(seen.len() == 1, "the service saw {seen:?}");
    }
    Ok(())
}

fn another_on_every_address() -> Result<()> {
    let host = lone_host()?;
    // Both may have the port only where the more general one is bound first, by the same user.
    let _other = Service::start_shared(&host, at(Ipv4Addr::UNSPECIFIED, 7001))?;
    let _service = Service::start_shared(&host, local(7001))?;
    let [name, pid] = own_name_and_pid()?;
    refuse(&host, &["attach", "7001", "--bridge", "br-a"], 1, &["7001", "0.0.0.0", &name, &pid])
}

fn mapped_is_no_conflict() -> Result<()> {
    let host = lone_host()?;
    let _owner = Service::start(&host, at(Ipv4Addr::UNSPECIFIED, 7002))?;
    let cli = Cli::new(&host);
    let outcome = cli.ok(&["attach", "7001:7002", "--bridge", "br-a"]).and_then(|_| cli.status());
    remove_pins(&host);
    let attachments = outcome?;
    ensure!(attachments.len() == 1 && attachments[0].state == "ready", "status shows {attachments:?}");
    Ok(())
}
