//! `relayed::*`: services that this host reaches, and steering does not.
//!
//! Invariants: without a process they are refused, with the relay as the way; with one they are served, and why it
//! relays is said.

use std::net::{Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use super::Test;
use crate::harness::client::answers;
use crate::harness::foreground::Foreground;
use crate::harness::netns::Netns;
use crate::harness::relay::{Datapath, counters};
use crate::harness::rig::Rig;
use crate::harness::service::{Port, Service, listener};
use crate::harness::topology::{GATEWAY_B, at, at6, local};

pub(super) const TESTS: &[Test] = &[
    Test::new("relayed::an_ipv6_service_on_a_bridge_without_ipv6", || {
        let six = at6(Ipv6Addr::LOCALHOST, 7001);
        relayed("7001:[::1]:7001", "bridge br-b has no IPv6 address", |host| Service::start(host, six))
    }),
    Test::new("relayed::a_listener_bound_to_an_interface", || {
        relayed("7001", "bound to an interface (SO_BINDTODEVICE)", |host| on_lo(host, local(7001)))
    }),
    Test::in_guests("relayed::a_bridge_in_a_vrf", || {
        relayed("7001", "bridge br-b is in VRF red", |host| {
            host.ip(&into_vrf("br-b"))?;
            Service::start(host, local(7001))
        })
    }),
    Test::new("relayed::the_hint_at_another_address_leads_there", hint),
];

/// As systemd-resolved has it.
fn on_lo(host: &Netns, address: SocketAddr) -> Result<Service> {
    let listener = listener(host, address, Port::Exclusive)?;
    host.run(|| setsockopt(&listener, sockopt::BindToDevice, &"lo".into()))?;
    Service::serve(listener)
}

/// The bridge gets into a VRF.
pub(super) fn into_vrf(bridge: &str) -> String {
    format!("link add red type vrf table 10\nlink set red up\nlink set {bridge} master red\n")
}

fn relayed(spec: &str, why: &str, start: impl Fn(&Netns) -> Result<Service>) -> Result<()> {
    let rig = Rig::new()?;
    let service = start(&rig.net.host)?;
    rig.cli().refused(
        &["attach", spec, "--bridge", "br-b"],
        1,
        &[why, "needs a relay", "add --foreground"],
    )?;
    let steered = ["attach", spec, "--bridge", "br-b", "--datapath", "steer"];
    rig.cli().refused(&steered, 1, &[why, "--datapath auto with --foreground"])?;
    rig.net.host.nothing_pinned()?;
    let relay = Foreground::start(&rig.cli(), &[spec, "--bridge", "br-b"])?;
    let attached = &relay.report()["attachments"][0];
    ensure!(attached["state"] == "ready", "the report is {attached}");
    ensure!(
        attached["reason"].as_str().is_some_and(|reason| reason.contains(why)),
        "the report is {attached}"
    );
    let tried = service.peers().len();
    answers(&rig.net.b1, at(GATEWAY_B, 7001))?;
    ensure!(service.peers().len() == tried + 1, "the service saw {:?}", service.peers());
    let now = counters(&rig.cli(), "br-b-tcp-7001", Datapath::Splice)?;
    ensure!(now.accepted == 1, "the counters are {now:?}");
    Ok(())
}

/// What status says of a service that is on ::1 alone is a command that works.
fn hint() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, at6(Ipv6Addr::LOCALHOST, 7001))?;
    rig.cli().ok(&["attach", "7001", "--bridge", "br-b"])?;
    let attachment = rig.expect_state("br-b-tcp-7001", "waiting-for-listener")?;
    attachment.expect_finding("listener-elsewhere")?;
    let cure = attachment.findings.iter().find(|finding| finding.code == "listener-elsewhere");
    let cure = cure.map(|finding| finding.cure.clone()).context("no finding")?;
    ensure!(cure.contains("attach 'tcp=7001:[::1]:7001' --foreground"), "the cure is {cure}");
    rig.cli().ok(&["detach", "7001"])?;
    let _relay = Foreground::start(&rig.cli(), &["tcp=7001:[::1]:7001", "--bridge", "br-b"])?;
    answers(&rig.net.b1, at(GATEWAY_B, 7001)).map(drop)
}
