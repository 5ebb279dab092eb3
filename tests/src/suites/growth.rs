//! `growth::*`: as much as one network namespace can hold, and what is refused beyond it.
//!
//! Invariant: what is too much is refused before anything is changed, with the value and the limit.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

use anyhow::{Context, Result, ensure};
use bridge_common::maps::{self, Meta};
use bridge_common::names::{ALLOW, ATTACHMENTS, META};

use super::Test;
use crate::harness::client::{answers, refused};
use crate::harness::kernel_ids::KernelIds;
use crate::harness::pinned;
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::{Port, Service, listener};
use crate::harness::topology::{GATEWAY_A, at, at6, local};

pub(super) const TESTS: &[Test] = &[
    Test::new("growth::as_many_attachments_as_fit_are_served", as_many_as_fit),
    Test::on_host("growth::an_allow_list_of_more_than_half_of_the_room_is_replaced", long_list),
    Test::on_host("growth::as_many_allow_entries_as_fit", full_lists),
    Test::new("growth::who_fills_the_listeners_of_some_leaves_room_for_others", filled_listeners),
    Test::new("growth::no_number_is_given_out_twice", numbers),
];

/// Ports of attachments begin here.
const FIRST: u16 = 7001;

fn name(port: u16) -> String {
    format!("br-a-tcp-{port}")
}

fn ports(count: u32) -> Vec<String> {
    (0..count).map(|at| (u32::from(FIRST) + at).to_string()).collect()
}

/// Attaches these ports on br-a.
fn attach(rig: &Rig, ports: &[String], options: &[String]) -> Result<String> {
    let arguments: Vec<&str> = ["attach", "--bridge", "br-a"]
        .into_iter()
        .chain(ports.iter().chain(options).map(String::as_str))
        .collect();
    rig.cli().ok(&arguments)
}

/// The entries of map `ATTACHMENTS`: allow set by id.
fn allow_sets(rig: &Rig) -> Result<BTreeMap<u32, u32>> {
    let map = pinned::hash::<u32, maps::Attachment>(&rig.net.host, ATTACHMENTS)?;
    map.iter().map(|entry| Ok(entry.map(|(id, state)| (id, state.allow_set))?)).collect()
}

fn as_many_as_fit() -> Result<()> {
    let ids = KernelIds::take()?;
    let rig = Rig::new()?;
    let all = ports(maps::MAX_ATTACHMENTS);
    let (first, last) = (FIRST, FIRST + u16::try_from(maps::MAX_ATTACHMENTS)? - 1);
    let _services =
        [Service::start(&rig.net.host, local(first))?, Service::start(&rig.net.host, local(last))?];
    attach(&rig, &all, &[])?;
    let names: BTreeSet<_> = rig.cli().status()?.into_iter().map(|attachment| attachment.name).collect();
    ensure!(names.len() == all.len(), "{} of {} are attached", names.len(), all.len());
    for port in [first, last] {
        rig.expect(&name(port), Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, port)))?;
    }
    let (before, held) = (allow_sets(&rig)?, KernelIds::take()?);
    rig.cli().refused(
        &["attach", "20000", "--bridge", "br-a"],
        1,
        &["tcp (20000)", "4097", "at most 4096"],
    )?;
    ensure!(allow_sets(&rig)? == before, "a refused attach changed something");
    held.wait_equal()?;
    rig.cli().ok(&["detach", &name(last)])?;
    rig.cli().ok(&["attach", "20000", "--bridge", "br-a"])?;
    refused(&rig.net.a1, at(GATEWAY_A, last))?;
    rig.expect(&name(first), Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, first)))?;
    rig.cli().ok(&["detach", "--all"])?;
    rig.net.host.nothing_pinned()?;
    ids.wait_equal()
}

/// So many addresses, each an allow-list entry of its own.
fn addresses(first: u32, count: u32) -> Vec<String> {
    (first..first + count).map(|word| format!("--allow={}/32", Ipv4Addr::from(word))).collect()
}

/// The number of entries of map `ALLOW`; those of the gateways are among them.
fn entries(rig: &Rig) -> Result<usize> {
    let map = pinned::lpm_trie::<maps::AllowKey, u32>(&rig.net.host, ALLOW)?;
    map.keys().try_fold(0, |count, key| key.map(|_| count + 1)).context("failed to walk map ALLOW")
}

fn long_list() -> Result<()> {
    const LONG: u32 = maps::MAX_ALLOW * 5 / 8;
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(FIRST))?;
    let with = |first| -> Result<()> {
        let mut options = addresses(first, LONG);
        options.push("--allow=172.30.1.11/32".to_owned());
        attach(&rig, &ports(1), &options)?;
        let allow = rig.cli().attachment(&name(FIRST))?.allow;
        ensure!(allow.len() == options.len(), "{} of {} sources are allowed", allow.len(), options.len());
        ensure!(allow.contains(&format!("{}/32", Ipv4Addr::from(first))), "{first} is not allowed");
        ensure!(entries(&rig)? == options.len() + 1, "{} entries are left", entries(&rig)?);
        rig.expect(&name(FIRST), Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, FIRST)))?;
        rig.expect(&name(FIRST), Moved::denied(1), || refused(&rig.net.a2, at(GATEWAY_A, FIRST)))
    };
    with(0x0a00_0000)?;
    with(0x0b00_0000)
}

fn full_lists() -> Result<()> {
    const EACH: u32 = 4096;
    let rig = Rig::new()?;
    attach(&rig, &ports(maps::MAX_ALLOW / EACH), &addresses(0x0a00_0000, EACH))?;
    let before = entries(&rig)?;
    ensure!(before == (maps::MAX_ALLOW + maps::MAX_ALLOW / EACH) as usize, "there are {before} entries");
    let needles = ["tcp (20000)", "65537 allow-list entries", "at most 65536", "subnet"];
    rig.cli().refused(&["attach", "20000", "--bridge", "br-a"], 1, &needles)?;
    ensure!(entries(&rig)? == before, "a refused attach changed something");
    let text = rig.cli().ok(&["status"])?;
    ensure!(text.contains("and 4090 more"), "a list of {EACH} is shown whole, or not at all");
    ensure!(rig.cli().attachment(&name(FIRST))?.allow.len() == EACH as usize, "JSON has a list that was cut");
    rig.cli().ok(&["detach", "--all"])?;
    rig.net.host.nothing_pinned()
}

/// Every socket that somebody may open on the port of a service that is down.
fn squat(rig: &Rig, port: u16) -> Result<Vec<TcpListener>> {
    let places = [local(port), at(Ipv4Addr::UNSPECIFIED, port), at6(Ipv6Addr::UNSPECIFIED, port)];
    let open = |place| listener(&rig.net.host, place, Port::Shared);
    places.iter().flat_map(|place| (0..maps::LISTENER_SLOTS).map(|_| open(*place))).collect()
}

/// More sockets on the ports of some attachments than the map once had room for.
fn filled_listeners() -> Result<()> {
    const SQUATTED: u32 = 195;
    let rig = Rig::new()?;
    let all = ports(SQUATTED + 1);
    attach(&rig, &all, &[])?;
    let last = FIRST + u16::try_from(SQUATTED)?;
    let taken: Vec<_> = (FIRST..last).map(|port| squat(&rig, port)).collect::<Result<_>>()?;
    let open: usize = taken.iter().map(Vec::len).sum();
    ensure!(open > 8192, "only {open} sockets are open");
    let service = Service::start(&rig.net.host, local(last))?;
    rig.expect_state(&name(last), "ready")?;
    rig.expect(&name(last), Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, last)))?;
    ensure!(service.peers().len() == 1, "the service saw {:?}", service.peers());
    Ok(())
}

fn numbers() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    rig.attach("7002")?;
    let before = allow_sets(&rig)?;
    rig.cli().ok(&["detach", &name(7002)])?;
    rig.attach("7003")?;
    rig.attach_with("7001", &["--allow", "172.30.1.11/32"])?;
    let after = allow_sets(&rig)?;
    let new: Vec<_> = after.keys().filter(|id| !before.contains_key(id)).collect();
    ensure!(new.len() == 1 && before.keys().all(|id| id < new[0]), "ids went from {before:?} to {after:?}");
    ensure!(
        after.values().all(|set| before.values().all(|old| old < set)),
        "allow sets went from {before:?} to {after:?}"
    );
    let mut map = pinned::array::<Meta>(&rig.net.host, META)?;
    let meta = map.get(&0, 0)?;
    for used_up in [Meta { next_allow_set: u32::MAX, ..meta }, Meta { next_id: u32::MAX, ..meta }] {
        map.set(0, used_up, 0)?;
        rig.cli().refused(&["attach", "7004", "--bridge", "br-a"], 1, &["number", "detach --all"])?;
        ensure!(allow_sets(&rig)? == after, "a refused attach changed something");
        rig.expect(&name(7001), Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    }
    drop(map);
    rig.cli().ok(&["detach", "--all"])?;
    rig.attach("7004")
}
