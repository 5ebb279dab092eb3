//! `bridge::*`: what bridges lead to, and what becomes of them.
//!
//! Invariants: nothing is called ready that is not served, and whatever is served is shown by counters; who else could
//! connect is said before.

use anyhow::{Result, ensure};

use super::Test;
use super::only_relayed::into_vrf;
use crate::harness::client::{answers, refused};
use crate::harness::relay::{NAME, gateway};
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::Service;
use crate::harness::topology::{GATEWAY_A, at, local};
use crate::harness::wait::kernel_at_least;

pub(super) const TESTS: &[Test] = &[
    Test::on_host("bridge::with_a_tunnel_takes_an_allow_list", || {
        uplink(TUNNEL, "its port tunnel is of kind vxlan")
    }),
    Test::new("bridge::with_the_default_route_takes_an_allow_list", || {
        uplink("route add default via 172.30.1.11\n", "the default route goes over it")
    }),
    Test::on_host("bridge::an_uplink_that_comes_later_is_told_of", later_uplink),
    Test::new("bridge::that_is_down_is_not_ready", down),
    Test::in_guests("bridge::that_gets_into_a_vrf_has_failed", vrf),
    Test::new("bridge::that_was_renamed_is_served", renamed),
    Test::new("bridge::addresses_that_come_and_go_are_told_of", addresses),
];

/// A rig with a service behind 127.0.0.1:7001.
fn served() -> Result<(Rig, Service)> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    Ok((rig, service))
}

/// A port that leads to other machines. Kernels have this kind more often than others that would do as well.
const TUNNEL: &str =
    "link add tunnel type vxlan id 7 local 198.51.100.1 dstport 4789\nlink set tunnel master br-a up\n";

/// Who is beyond could connect, so it is to be said who may.
fn uplink(links: &str, said: &str) -> Result<()> {
    let (rig, service) = served()?;
    rig.net.host.ip(links)?;
    for options in [&[][..], &["--identity", "loopback"], &["--datapath", "splice", "--foreground"]] {
        let attach = [&["attach", "7001", "--bridge", "br-a"], options].concat();
        rig.cli().refused(&attach, 1, &["br-a", said, "use --allow", "--allow 172.30.1.0/24"])?;
    }
    rig.net.host.nothing_pinned()?;
    rig.attach_with("7001", &["--allow", "172.30.1.11"])?;
    let narrow = rig.expect_state(NAME, "ready")?;
    ensure!(narrow.findings.is_empty(), "findings: {:?}", narrow.findings);
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))?;
    rig.expect(NAME, Moved::denied(1), || refused(&rig.net.a2, gateway()))?;
    ensure!(service.peers().len() == 1, "the service saw {:?}", service.peers());
    rig.attach_with("7001", &["--allow", "172.30.1.0/24"])?;
    rig.expect_state(NAME, "ready")?.expect_finding("bridge-has-uplink")
}

fn later_uplink() -> Result<()> {
    let (rig, _service) = served()?;
    rig.attach("7001")?;
    let before = rig.expect_state(NAME, "ready")?;
    ensure!(before.findings.is_empty(), "findings: {:?}", before.findings);
    rig.net.host.ip(TUNNEL)?;
    rig.expect_state(NAME, "ready")?.expect_finding("bridge-has-uplink")?;
    rig.net.host.ip("link set tunnel nomaster\n")?;
    let after = rig.expect_state(NAME, "ready")?;
    ensure!(after.findings.is_empty(), "findings: {:?}", after.findings);
    Ok(())
}

fn down() -> Result<()> {
    let (rig, _service) = served()?;
    rig.net.host.ip("link set br-a down\n")?;
    rig.attach("7001")?;
    rig.expect_state(NAME, "waiting-for-bridge")?.expect_finding("bridge-down")?;
    rig.net.host.ip("link set br-a up\n")?;
    rig.expect_state(NAME, "ready")?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))?;
    Ok(())
}

/// A rule for the VRF would let in its other interfaces, so there is none, and nobody is served.
fn vrf() -> Result<()> {
    let (rig, service) = served()?;
    rig.attach("7001")?;
    rig.net.host.ip(&into_vrf("br-a"))?;
    let attachment = rig.expect_state(NAME, "failed")?;
    attachment.expect_finding("bridge-in-vrf")?;
    let cure = attachment.findings.iter().find(|finding| finding.code == "bridge-in-vrf");
    ensure!(cure.is_some_and(|finding| finding.cure.contains("--foreground")), "it says {cure:?}");
    // On 5.10 the reset does not come back out of the VRF, and the client waits.
    if kernel_at_least(5, 17)? {
        refused(&rig.net.a1, gateway())?;
    }
    ensure!(service.peers().is_empty(), "the service saw {:?}", service.peers());
    rig.net.host.ip("link del red\n")?;
    // Until then the last connection is one that arrived and was not steered.
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))?;
    rig.expect_state(NAME, "ready").map(drop)
}

fn renamed() -> Result<()> {
    let (rig, _service) = served()?;
    rig.attach("7001")?;
    rig.net.host.ip("link set br-a down\nlink set br-a name br-new\nlink set br-new up\n")?;
    rig.expect_state(NAME, "ready")?.expect_finding("bridge-renamed")?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))?;
    Ok(())
}

fn addresses() -> Result<()> {
    let (rig, _service) = served()?;
    let second = at([172, 30, 1, 3].into(), 7001);
    rig.attach("7001")?;
    rig.net.host.ip("addr add 172.30.1.3/24 dev br-a\n")?;
    rig.expect_state(NAME, "ready")?.expect_finding("gateway-added")?;
    rig.expect(NAME, Moved::NOTHING, || refused(&rig.net.a1, second))?;
    rig.attach("7001")?;
    let both = rig.expect_state(NAME, "ready")?;
    ensure!(both.gateways.len() == 2, "both are attached: {}", both.raw);
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, second))?;
    let served = rig.expect_state(NAME, "ready")?;
    ensure!(served.findings.is_empty(), "findings: {:?}", served.findings);
    rig.net.host.ip("addr del 172.30.1.3/24 dev br-a\n")?;
    rig.expect_state(NAME, "ready")?.expect_finding("gateway-removed")?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    Ok(())
}
