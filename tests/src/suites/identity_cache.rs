//! `identity::*`, the maps behind it: a connection looks local whichever map holds its identity, and no entry outlives
//! its socket.
//!
//! Invariant: what cannot be made to happen in time (a full map, a slot taken between a SYN and its ACK) is written
//! into the pinned maps; the connections are real, and steered.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, MapData};
use bridge_common::{
    Ip,
    maps::{MAX_IDENTITIES, PENDING_SLOTS, PendingHandshake, Steered, TargetKey},
    names,
};

use super::Test;
use crate::harness::client::{answers, connect};
use crate::harness::endings::reset;
use crate::harness::pinned;
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::{Port, Service, listener};
use crate::harness::topology::{GATEWAY_A, at, local};
use crate::harness::wait::{patience, until};

pub(super) const TESTS: &[Test] = &[
    Test::new("identity::nothing_is_kept_for_longer_than_the_socket", forgotten).in_kernels(),
    Test::new("identity::connections_look_local_when_the_identity_cache_is_full", no_room),
    Test::new("identity::connections_look_local_where_others_did_not_finish", unfinished),
    Test::new("identity::a_handshake_that_lost_its_slot_looks_local", lost_slot).in_kernels(),
];

const NAME: &str = "br-a-tcp-7001";

fn gateway() -> SocketAddr {
    at(GATEWAY_A, 7001)
}

fn rig() -> Result<Rig> {
    let rig = Rig::new()?;
    rig.attach_with("7001", &["--identity", "loopback"])?;
    Ok(rig)
}

/// A target that no real connection has.
fn nobodys_target() -> TargetKey {
    TargetKey::new(Ip::LOCALHOST_V6, 9)
}

/// A connection that waits for its socket for ever.
fn nobodys() -> Steered {
    Steered { target: nobodys_target(), attachment: 0 }
}

/// A cookie with this slot in `PENDING`, which the kernel will not hand out for years.
fn far_cookie(slot: u32) -> u64 {
    (1 << 40) * u64::from(PENDING_SLOTS) + u64::from(slot)
}

/// One connection, and what the service saw.
fn looks_local(rig: &Rig) -> Result<()> {
    let service = Service::start(&rig.net.host, local(7001))?;
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))?;
    let seen = service.peers()[0];
    ensure!(seen.remote.ip() == Ipv4Addr::LOCALHOST && seen.local == local(7001), "the service saw {seen:?}");
    Ok(())
}

fn forgotten() -> Result<()> {
    let rig = rig()?;
    let identities = pinned::hash::<u64, TargetKey>(&rig.net.host, names::IDENTITIES)?;
    let expect = |count: usize| {
        let kept = identities.keys().count();
        ensure!(kept == count, "{kept} identities are kept, expected {count}");
        Ok(())
    };
    let service = listener(&rig.net.host, local(7001), Port::Exclusive)?;
    let open = || rig.expect(NAME, Moved::accepted(1), || connect(&rig.net.a1, gateway()));
    let clients = [open()?, open()?, open()?];
    expect(3)?;
    let mut served = Vec::new();
    for _ in &clients {
        served.push(service.accept()?.0);
    }
    // The service closes first, or last, or finds the connection reset.
    served.pop();
    expect(2)?;
    drop(clients);
    expect(2)?;
    served.clear();
    expect(0)?;
    reset(open()?)?;
    expect(1)?;
    drop(service.accept()?);
    expect(0)
}

fn no_room() -> Result<()> {
    let rig = rig()?;
    let mut identities = pinned::hash::<u64, TargetKey>(&rig.net.host, names::IDENTITIES)?;
    for slot in 0..MAX_IDENTITIES {
        identities.insert(far_cookie(slot), nobodys_target(), 0)?;
    }
    ensure!(
        identities.insert(0, nobodys_target(), 0).is_err(),
        "there is room for more than {MAX_IDENTITIES}"
    );
    looks_local(&rig)
}

fn unfinished() -> Result<()> {
    let rig = rig()?;
    let mut pending = pinned::array::<PendingHandshake>(&rig.net.host, names::PENDING)?;
    for slot in 0..PENDING_SLOTS {
        pending.set(slot, PendingHandshake::new(far_cookie(slot), nobodys()), 0)?;
    }
    looks_local(&rig)?;
    let pending_lru = pinned::lru_hash::<u64, Steered>(&rig.net.host, names::PENDING_LRU)?;
    let moved: Vec<_> = pending_lru.iter().collect::<Result<_, _>>()?;
    ensure!(moved.len() == 1 && moved[0].1 == nobodys(), "what moved to PENDING_LRU: {moved:?}");
    let slot = u32::try_from(moved[0].0 % u64::from(PENDING_SLOTS))?;
    ensure!(moved[0].0 == far_cookie(slot), "the cookie that moved to PENDING_LRU is {:#x}", moved[0].0);
    ensure!(pending.get(&slot, 0)? == PendingHandshake::NONE, "the slot it had is not free again");
    Ok(())
}

fn lost_slot() -> Result<()> {
    let rig = rig()?;
    let mut pending = pinned::array::<PendingHandshake>(&rig.net.host, names::PENDING)?;
    let mut pending_lru = pinned::lru_hash::<u64, Steered>(&rig.net.host, names::PENDING_LRU)?;
    rig.net.a1.nft(
        "table inet hold { chain input { type filter hook input priority 0; \
         tcp flags & (syn | ack) == syn | ack drop; }; }",
    )?;
    std::thread::scope(|scope| {
        let connection = scope.spawn(|| looks_local(&rig));
        let held = until("a handshake is pending", patience(10), || waiting(&pending));
        // Long enough after a SYN was sent, and long before the next one is.
        std::thread::sleep(Duration::from_millis(100));
        let moved = held.and_then(|(slot, there)| {
            pending_lru.insert(there.cookie(), there.steered(), 0)?;
            pending.set(slot, PendingHandshake::NONE, 0)?;
            Ok(())
        });
        rig.net.a1.nft("delete table inet hold")?;
        let outcome = connection.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        moved.context("failed to take its slot away")?;
        outcome
    })?;
    let left = pending_lru.keys().count();
    ensure!(left == 0, "{left} handshakes are still in PENDING_LRU");
    Ok(())
}

/// The only pending handshake, and its slot.
fn waiting(pending: &Array<MapData, PendingHandshake>) -> Result<Option<(u32, PendingHandshake)>> {
    for slot in 0..PENDING_SLOTS {
        let there = pending.get(&slot, 0)?;
        if there != PendingHandshake::NONE {
            return Ok(Some((slot, there)));
        }
    }
    Ok(None)
}
