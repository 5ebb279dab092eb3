//! `host::*`: ports that are taken, and listeners that cannot be steered.
//!
//! Invariant: the owner of a conflict is named, and what was attached before stays as it was.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};

use super::Test;
use super::refusals::{lone_host, refuse};
use crate::harness::cli::Cli;
use crate::harness::kernel_ids::KernelIds;
use crate::harness::rig::remove_pins;
use crate::harness::service::Service;
use crate::harness::topology::{GATEWAY_A, at};

pub(super) const TESTS: &[Test] = &[
    Test::new("host::port_attached_under_another_name", attached_under_another_name),
    Test::new("host::port_bound_on_the_gateway", bound_on_the_gateway),
    Test::new("host::port_bound_on_the_gateway_after_attach", bound_later),
    Test::new("host::port_bound_on_every_address", bound_on_every_address),
    Test::new("host::dual_stack_service_on_every_address", bound_on_every_address_dual),
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

/// The service is reachable from containers already, and from everywhere else: say so.
fn bound_on_every_address() -> Result<()> {
    let host = lone_host()?;
    let _owner = Service::start(&host, at(Ipv4Addr::UNSPECIFIED, 7001))?;
    let [name, pid] = own_name_and_pid()?;
    refuse(&host, &["attach", "7001", "--bridge", "br-a"], 1, &["7001", "0.0.0.0", &name, &pid])
}

fn bound_on_every_address_dual() -> Result<()> {
    let host = lone_host()?;
    let any = std::net::SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 7001));
    let _owner = Service::start(&host, any)?;
    let [name, pid] = own_name_and_pid()?;
    refuse(&host, &["attach", "7001", "--bridge", "br-a"], 1, &["7001", &name, &pid])
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
