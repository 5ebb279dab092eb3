//! `nat::*`: rules of nat PREROUTING and OUTPUT that take connections before anything else sees them.
//!
//! Invariants: each rule is a real one, and shown to do what it does by who answers; a connection that it takes moves
//! no counter.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Test;
use crate::harness::client::answers;
use crate::harness::foreground::Foreground;
use crate::harness::kernel_ids::KernelIds;
use crate::harness::netns::Netns;
use crate::harness::proc::run_in;
use crate::harness::relay::{Datapath, NAME, counters, gateway};
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::Service;
use crate::harness::topology::{A1, GATEWAY_A, at, local};

pub(super) const TESTS: &[Test] = &[
    Test::new("nat::a_redirect_by_nft_is_a_conflict_and_voids_an_allow_list", || {
        taken(nft("redirect to :7002"))
    }),
    Test::new("nat::a_dnat_by_nft_with_sets_and_a_jump_is_found", || {
        taken(|host| {
            host.nft(
                "table inet hand { set ports { type inet_service; flags interval; elements = { 80, 7000-7001 }; }
                 chain mine { tcp dport @ports dnat ip to 172.30.1.1:7002; }
                 chain pre { type nat hook prerouting priority -110;
                 iifname { \"br-a\", \"br-z*\" } fib daddr type local jump mine; }
                 }",
            )
        })
    }),
    Test::on_host("nat::a_redirect_by_iptables_is_found", || {
        taken(|host| iptables(host, "iptables-nft", "-p tcp --dport 7001 -j REDIRECT --to-ports 7002"))
    }),
    Test::on_host("nat::a_dnat_by_iptables_legacy_is_found", || {
        let rule = "-i br-+ -m addrtype --dst-type LOCAL -p tcp -m multiport --dports 80,7000:7001 -j DNAT \
                    --to-destination 172.30.1.1:7002";
        taken(|host| iptables(host, "iptables-legacy", rule))
    }),
    Test::new("nat::rules_for_others_are_none_of_it", others),
    Test::new("nat::a_rule_that_may_match_is_no_ready", may_match),
    Test::new("nat::a_rule_that_comes_later_is_found_by_status_and_its_end_too", comes_later),
    Test::new("nat::a_target_that_only_a_rule_serves_is_relayed", only_a_rule),
    Test::new("nat::a_listener_that_a_rule_replaced_is_not_waited_for", replaced),
];

/// A rule for what comes over br-a to port 7001, with this verdict.
fn nft(verdict: &'static str) -> impl Fn(&Netns) -> Result<()> {
    move |host| {
        host.nft(&format!(
            "table ip hand {{ chain pre {{ type nat hook prerouting priority -110;
             iifname \"br-a\" tcp dport 7001 {verdict}; }}
             }}"
        ))
    }
}

fn iptables(host: &Netns, program: &str, rule: &str) -> Result<()> {
    let mut command = Command::new(program);
    command.args(["-t", "nat", "-I", "PREROUTING"]).args(rule.split_whitespace());
    run_in(host, &mut command)?.success().with_context(|| format!("{program} {rule}"))
}

/// The rule leads to port 7002 of the gateway, and so past an allow-list.
fn taken(add_rule: impl Fn(&Netns) -> Result<()>) -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    let other = Service::start(&rig.net.host, at(GATEWAY_A, 7002))?;
    add_rule(&rig.net.host)?;
    let ids = KernelIds::take()?;
    let narrow = ["attach", "7001", "--bridge", "br-a", "--allow", "172.30.1.12"];
    rig.cli().refused(&narrow, 1, &["rule", "chain", "172.30.1.1:7001", "--allow would keep nobody out"])?;
    ids.wait_equal()?;
    rig.net.host.nothing_pinned()?;
    rig.attach("7001")?;
    let attachment = rig.expect_state(NAME, "conflict")?;
    attachment.expect_finding("nat-rule-in-front")?;
    rig.expect(NAME, Moved::NOTHING, || answers(&rig.net.a1, gateway()))?;
    ensure!(other.peers().len() == 1 && service.peers().is_empty(), "the rule does not do what it says");
    let shown = rig.cli().ok(&["attach", "7001", "--bridge", "br-a", "--dry-run"])?;
    ensure!(shown.contains("error: br-a-tcp-7001: rule `"), "a dry run does not say it: {shown}");
    Ok(())
}

/// Another port, another bridge, another source, another protocol, and a rule that returns before.
fn others() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    rig.net.host.nft(
        "table ip hand { chain mine { return; tcp dport 7001 redirect to :7002; }
         chain pre { type nat hook prerouting priority -110;
         tcp dport 7003 redirect to :7002
         iifname \"br-b\" tcp dport 7001 redirect to :7002
         ip saddr 10.0.0.0/8 tcp dport 7001 redirect to :7002
         udp dport 7001 redirect to :7002
         jump mine; }
         }",
    )?;
    rig.attach_with("7001", &["--allow", "172.30.1.11"])?;
    rig.expect_state(NAME, "ready")?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))?;
    ensure!(service.peers().len() == 1, "the service saw {:?}", service.peers());
    Ok(())
}

/// It depends on what is not known before a packet is there: then nothing is promised.
fn may_match() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    nft("ip saddr 172.30.1.12 redirect to :7002")(&rig.net.host)?;
    rig.attach("7001")?;
    let attachment = rig.expect_state(NAME, "conflict")?;
    attachment.expect_finding("nat-rule-in-front")?;
    let said = attachment.raw["detail"].as_str().unwrap_or_default();
    ensure!(said.contains("may take"), "the finding promises too much: {said}");
    // The others are served.
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))?;
    Ok(())
}

fn comes_later() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    rig.attach_with("7001", &["--allow", "172.30.1.11"])?;
    rig.expect_state(NAME, "ready")?;
    nft("redirect to :7002")(&rig.net.host)?;
    rig.expect_state(NAME, "conflict")?.expect_finding("nat-rule-in-front")?;
    rig.net.host.nft("delete table ip hand\n")?;
    rig.expect_state(NAME, "ready")?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))?;
    Ok(())
}

/// This host's own connections to 127.0.0.1:7001 go to port 80 of a1.
pub(super) fn carry_to_a1(host: &Netns) -> Result<()> {
    host.sysctl("net/ipv4/conf/br-a/route_localnet", "1")?;
    host.nft(&format!(
        "table ip hand {{ chain out {{ type nat hook output priority -110;
         ip daddr 127.0.0.1 tcp dport 7001 dnat to {A1}:80; }}
         chain post {{ type nat hook postrouting priority 90;
         oifname \"br-a\" ip saddr 127.0.0.0/8 masquerade; }}
         }}"
    ))
}

fn only_a_rule() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.a1, at(A1, 80))?;
    carry_to_a1(&rig.net.host)?;
    answers(&rig.net.host, local(7001)).context("the rule serves this host")?;
    let said = ["no socket listens on 127.0.0.1:7001", "handle", "--foreground"];
    let attach = ["attach", "7001", "--bridge", "br-a"];
    rig.cli().refused(&attach, 1, &said)?;
    rig.cli().refused(&[&attach[..], &["--datapath", "steer", "--foreground"]].concat(), 1, &said)?;
    rig.net.host.nothing_pinned()?;
    let relay = Foreground::start(&rig.cli(), &["7001", "--bridge", "br-a"])?;
    ensure!(relay.report()["attachments"][0]["state"] == "ready", "the report is {}", relay.report());
    let seen = service.peers().len();
    answers(&rig.net.a2, gateway())?;
    let now = counters(&rig.cli(), NAME, Datapath::Splice)?;
    ensure!(now.accepted == 1 && service.peers().len() > seen, "the counters are {now:?}");
    // When nothing answers any more, that is told.
    rig.net.host.nft("delete table ip hand\n")?;
    let attachment = rig.cli().attachment(NAME)?;
    ensure!(attachment.state == "waiting-for-listener", "the state is {}", attachment.state);
    Ok(())
}

fn replaced() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    rig.expect_state(NAME, "ready")?;
    service.stop();
    rig.expect_state(NAME, "waiting-for-listener")?;
    carry_to_a1(&rig.net.host)?;
    rig.expect_state(NAME, "failed")?.expect_finding("answered-elsewhere")
}
