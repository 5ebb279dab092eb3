//! `relay::*`: a gateway port has one owner, and a second one is told who that is.
//!
//! Invariant: a refused attach exits 1, names port and owner, and the owner goes on serving.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};

use super::Test;
use crate::harness::client::{answers, many_rounds};
use crate::harness::kernel_ids::KernelIds;
use crate::harness::relay::{Datapath, NAME, Stage, counters, gateway, start};
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::Service;
use crate::harness::topology::{GATEWAY_A, at, local};

pub(super) const TESTS: &[Test] = both_relays![
    Host: "port_bound_on_the_gateway_names_its_owner" => |datapath| bound(datapath, GATEWAY_A),
    Host: "port_bound_on_every_address_names_its_owner" => |datapath| bound(datapath, Ipv4Addr::UNSPECIFIED),
    Host: "second_relay_on_the_same_port_is_refused" => second_relay,
    Host: "steering_a_relays_port_is_refused" => steer_after_relay,
    Host: "relaying_a_steered_port_is_refused" => relay_after_steer,
    Host: "two_relays_on_two_ports_do_not_meet" => two_relays,
];

/// The arguments of a foreground attach that is to be refused.
fn refused_attach(rig: &Rig, spec: &str, datapath: Datapath, needles: &[&str]) -> Result<()> {
    let head = ["attach", spec, "--bridge", "br-a", "--foreground"];
    rig.cli().refused(&[&head, datapath.options()?].concat(), 1, needles)
}

fn bound(datapath: Datapath, address: Ipv4Addr) -> Result<()> {
    let rig = Rig::new()?;
    let owner = Service::start(&rig.net.host, at(address, 7001))?;
    let ids = KernelIds::take()?;
    let name = std::fs::read_to_string("/proc/self/comm")?.trim().to_owned();
    let pid = std::process::id().to_string();
    refused_attach(&rig, "7001:7002", datapath, &["7001", &name, &pid])?;
    ids.wait_equal()?;
    ensure!(rig.cli().status()?.is_empty(), "a refused relay shows in status");
    answers(&rig.net.a1, gateway())?;
    ensure!(owner.peers().len() == 1, "the owner saw {:?}", owner.peers());
    Ok(())
}

fn second_relay(datapath: Datapath) -> Result<()> {
    let stage = Stage::new(datapath)?;
    let pid = stage.relay.pid().to_string();
    refused_attach(&stage.rig, "7001", datapath, &["7001", &pid])?;
    refused_attach(&stage.rig, "other=7001:7002", datapath, &["7001", &pid])?;
    drop(stage.warm_pair()?);
    stage.all_ended_well(1).map(drop)
}

fn steer_after_relay(datapath: Datapath) -> Result<()> {
    let stage = Stage::new(datapath)?;
    let pid = stage.relay.pid().to_string();
    let attach = ["attach", "7001", "--bridge", "br-a", "--datapath", "steer"];
    stage.rig.cli().refused(&attach, 1, &["7001", &pid])?;
    stage.rig.net.host.nothing_pinned()?;
    drop(stage.warm_pair()?);
    stage.all_ended_well(1).map(drop)
}

fn relay_after_steer(datapath: Datapath) -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    refused_attach(&rig, "7001", datapath, &["7001", NAME])?;
    refused_attach(&rig, "other=7001:7002", datapath, &["7001", NAME])?;
    rig.expect_state(NAME, "ready")?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))?;
    Ok(())
}

/// Side by side, with different targets; status tells them apart, and one ends without the other.
fn two_relays(datapath: Datapath) -> Result<()> {
    let rig = Rig::new()?;
    let services = [Service::start(&rig.net.host, local(7001))?, Service::start(&rig.net.host, local(7002))?];
    let first = start(&rig.cli(), "7001", datapath, &[])?;
    let _second = start(&rig.cli(), "7002", datapath, &[])?;
    for (port, count) in [(7001, 30), (7002, 50)] {
        for _ in 0..count {
            rig.net.a1.run(|| many_rounds(at(GATEWAY_A, port)))?;
        }
    }
    for (name, service, count) in [(NAME, &services[0], 30), ("br-a-tcp-7002", &services[1], 50)] {
        let now = counters(&rig.cli(), name, datapath)?;
        ensure!(now.accepted == count && service.peers().len() as u64 == count, "{name}: {now:?}");
        now.prove(datapath)?;
    }
    rig.cli().ok(&["detach", NAME])?;
    let names: Vec<_> = rig.cli().status()?.into_iter().map(|attachment| attachment.name).collect();
    ensure!(names == ["br-a-tcp-7002"], "status shows {names:?}");
    answers(&rig.net.a1, at(GATEWAY_A, 7002))?;
    drop(first);
    Ok(())
}
