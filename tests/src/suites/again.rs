//! `again::*`: the same attach once more, when things have changed; and what a health check says of that.
//!
//! Invariants: what is attached is never refused and serves as before; but nobody stays admitted who is not asked for.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};

use super::Test;
use super::nat::carry_to_a1;
use crate::harness::cli::document;
use crate::harness::client::{answers, refused};
use crate::harness::relay::{NAME, gateway};
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::Service;
use crate::harness::topology::{A1, GATEWAY_A, at, local};

pub(super) const TESTS: &[Test] = &[
    Test::new("again::where_another_listener_took_the_port", || {
        served_again(&[], "conflict", Some("already bound on the gateway"), |rig| {
            Service::start(&rig.net.host, at(GATEWAY_A, 7001)).map(Some)
        })
    }),
    Test::on_host("again::where_the_bridge_leads_to_other_machines_now", || {
        served_again(&[], "ready", Some("leads to other machines"), |rig| {
            rig.net.host.ip(
                "link add tunnel type vxlan id 7 local 198.51.100.1 dstport 4789\nlink set tunnel master br-a up\n",
            )?;
            Ok(None)
        })
    }),
    Test::new("again::where_a_rule_is_in_front_of_an_allow_list", || {
        again(&["--allow", "172.30.1.11"], "conflict", Some("--allow would keep nobody out"), |rig| {
            rig.net.host.nft(
                "table ip hand { chain pre { type nat hook prerouting priority -110;
                 iifname \"br-a\" tcp dport 7001 redirect to :7002; }
                 }",
            )
        })
    }),
    Test::new("again::where_a_rule_serves_the_target_now", || {
        again(&[], "failed", Some("needs a relay"), |rig| {
            let other = Service::start(&rig.net.a1, at(A1, 80))?;
            carry_to_a1(&rig.net.host).map(|()| other)
        })
    }),
    Test::new("again::where_the_bridge_is_down", || {
        again(&[], "waiting-for-bridge", None, |rig| rig.net.host.ip("link set br-a down\n"))
    }),
    Test::new("again::where_the_bridge_is_gone", || {
        again(&[], "waiting-for-bridge", Some("br-a"), |rig| rig.net.host.ip("link del br-a\n"))
    }),
    Test::new("again::where_nothing_listens", || again(&[], "waiting-for-listener", None, |_| Ok(()))),
    Test::new("again::nobody_stays_admitted_who_is_not_asked_for", narrower),
    Test::new("again::a_health_check_says_what_is_wrong_and_nothing_else", health_check),
];

/// The text of an attach that is not refused, and its warnings, which JSON has, too.
fn attach(rig: &Rig, options: &[&str], warned: Option<&str>) -> Result<()> {
    let all = [&["attach", "7001", "--bridge", "br-a"], options].concat();
    let output = rig.cli().run(&all)?;
    output.success()?;
    let lines: Vec<_> = output.stderr.lines().collect();
    let json = document(&rig.cli().ok(&[&all[..], &["--output", "json"]].concat())?)?;
    ensure!(json["refused"].as_array().is_some_and(Vec::is_empty), "something is refused: {json}");
    let warnings = json["warnings"].as_array().context("no list of warnings")?;
    match (warned, &lines[..], &warnings[..]) {
        (None, [], []) => Ok(()),
        (Some(why), [line], [warning]) => {
            let warning = warning.as_str().unwrap_or_default();
            ensure!(*line == format!("bridge-user: warning: {warning}"), "{line} is not {warning}");
            ensure!(
                line.contains(&format!("{NAME} stays as it is: ")) && line.contains(why),
                "it says {line}"
            );
            Ok(())
        }
        found => anyhow::bail!("the warnings are {found:?}"),
    }
}

/// Attaches, changes something, and attaches again.
fn again<T>(
    options: &[&str],
    state: &str,
    warned: Option<&str>,
    change: impl FnOnce(&Rig) -> Result<T>,
) -> Result<()> {
    let rig = Rig::new()?;
    attach(&rig, options, None)?;
    let before = rig.cli().attachment(NAME)?;
    let _changed = change(&rig)?;
    attach(&rig, options, warned)?;
    let after = rig.expect_state(NAME, state)?;
    ensure!(after.allow == before.allow && after.gateways == before.gateways, "it is {}", after.raw);
    Ok(())
}

/// The same with a service, which is reached as before. The change may start another one.
fn served_again(
    options: &[&str],
    state: &str,
    warned: Option<&str>,
    change: impl FnOnce(&Rig) -> Result<Option<Service>>,
) -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    attach(&rig, options, None)?;
    let _other = change(&rig)?;
    attach(&rig, options, warned)?;
    rig.expect_state(NAME, state)?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))?;
    ensure!(service.peers().len() == 1, "the service saw {:?}", service.peers());
    Ok(())
}

fn narrower() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    let other = Service::start(&rig.net.host, at(GATEWAY_A, 7001))?;
    let narrow = ["attach", "7001", "--bridge", "br-a", "--allow", "172.30.1.12"];
    rig.cli().refused(&narrow, 1, &["tcp (7001) on br-a", "already bound"])?;
    other.stop();
    rig.cli().ok(&narrow)?;
    rig.expect(NAME, Moved::denied(1), || refused(&rig.net.a1, gateway()))?;
    Ok(())
}

fn health_check() -> Result<()> {
    let rig = Rig::new()?;
    ensure!(rig.cli().ok(&["status", "--check"])?.is_empty(), "it says something of nothing");
    let service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    rig.attach("web=7002")?;
    ensure!(rig.cli().ok(&["status", "7001", "--check"])?.is_empty(), "it says something of what is well");
    let expect = |arguments: &[&str], names: &[&str]| -> Result<()> {
        let output = rig.cli().run(&[&["status", "--check"], arguments].concat())?;
        ensure!(output.code == Some(1) && output.stderr.is_empty(), "it is {output:?}");
        let starts: Vec<_> = names.iter().map(|name| format!("{name} is waiting-for-listener: ")).collect();
        let lines: Vec<_> = output.stdout.lines().collect();
        let is_so = lines.len() == starts.len()
            && lines.iter().zip(&starts).all(|(line, start)| line.starts_with(start.as_str()));
        ensure!(is_so, "it says {lines:?}");
        Ok(())
    };
    expect(&[], &["br-a-web-7002"])?;
    service.stop();
    expect(&[], &[NAME, "br-a-web-7002"])?;
    expect(&["web"], &["br-a-web-7002"])?;
    let json = rig.cli().run(&["status", "--check", "--output", "json"])?;
    ensure!(
        json.code == Some(1)
            && document(&json.stdout)?["attachments"].as_array().is_some_and(|all| all.len() == 2)
    );
    let unknown = rig.cli().run(&["status", "nothing", "--check"])?;
    ensure!(
        unknown.code == Some(1) && unknown.stderr.contains("failed to show nothing"),
        "it is {unknown:?}"
    );
    let _service = Service::start(&rig.net.host, at(Ipv4Addr::UNSPECIFIED, 7001))?;
    ensure!(rig.cli().ok(&["status", "7001", "--check"])?.is_empty(), "a warning is no problem");
    Ok(())
}
