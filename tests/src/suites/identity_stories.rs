//! `identity::*`, what is kept for it: a connection looks local whichever map its story is in, and none is kept for
//! longer than its socket.
//!
//! Invariant: what cannot be made to happen in time (a full map, a place taken between a SYN and its ACK) is written
//! into the pinned maps; the connections are real, and steered.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, MapData};
use bridge_common::{
    Ip,
    maps::{ARRIVING_SLOTS, Arriving, MAX_STORIES, TargetKey},
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
    Test::new("identity::connections_look_local_when_no_room_is_left_for_their_stories", no_room),
    Test::new("identity::connections_look_local_where_others_did_not_finish", unfinished),
    Test::new("identity::a_handshake_that_lost_its_place_looks_local", overtaken).in_kernels(),
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

/// A story no real connection has.
fn somebody() -> TargetKey {
    TargetKey::new(Ip::LOCALHOST_V6, 9)
}

/// A cookie with this place in `ARRIVING`, which the kernel will not hand out for years.
fn far_cookie(place: u32) -> u64 {
    (1 << 40) * u64::from(ARRIVING_SLOTS) + u64::from(place)
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
    let stories = pinned::hash::<u64, TargetKey>(&rig.net.host, names::STORIES)?;
    let expect = |count: usize| {
        let kept = stories.keys().count();
        ensure!(kept == count, "{kept} stories are kept, expected {count}");
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
    let mut stories = pinned::hash::<u64, TargetKey>(&rig.net.host, names::STORIES)?;
    for place in 0..MAX_STORIES {
        stories.insert(far_cookie(place), somebody(), 0)?;
    }
    ensure!(stories.insert(0, somebody(), 0).is_err(), "there is room for more than {MAX_STORIES}");
    looks_local(&rig)
}

fn unfinished() -> Result<()> {
    let rig = rig()?;
    let mut arriving = pinned::array::<Arriving>(&rig.net.host, names::ARRIVING)?;
    for place in 0..ARRIVING_SLOTS {
        arriving.set(place, Arriving::new(far_cookie(place), somebody()), 0)?;
    }
    looks_local(&rig)?;
    let overtaken = pinned::lru_hash::<u64, TargetKey>(&rig.net.host, names::OVERTAKEN)?;
    let moved: Vec<_> = overtaken.iter().collect::<Result<_, _>>()?;
    ensure!(moved.len() == 1 && moved[0].1 == somebody(), "what went elsewhere: {moved:?}");
    let place = u32::try_from(moved[0].0 % u64::from(ARRIVING_SLOTS))?;
    ensure!(
        moved[0].0 == far_cookie(place),
        "the cookie of the one that went elsewhere is {:#x}",
        moved[0].0
    );
    ensure!(arriving.get(&place, 0)? == Arriving::NONE, "the place it had is not free again");
    Ok(())
}

fn overtaken() -> Result<()> {
    let rig = rig()?;
    let mut arriving = pinned::array::<Arriving>(&rig.net.host, names::ARRIVING)?;
    let mut overtaken = pinned::lru_hash::<u64, TargetKey>(&rig.net.host, names::OVERTAKEN)?;
    rig.net.a1.nft(
        "table inet hold { chain input { type filter hook input priority 0; \
         tcp flags & (syn | ack) == syn | ack drop; }; }",
    )?;
    std::thread::scope(|scope| {
        let connection = scope.spawn(|| looks_local(&rig));
        let held = until("a handshake is under way", patience(10), || waiting(&arriving));
        // Long enough after a SYN was sent, and long before the next one is.
        std::thread::sleep(Duration::from_millis(100));
        let moved = held.and_then(|(place, there)| {
            overtaken.insert(there.cookie(), there.own(), 0)?;
            arriving.set(place, Arriving::NONE, 0)?;
            Ok(())
        });
        rig.net.a1.nft("delete table inet hold")?;
        let outcome = connection.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        moved.context("failed to take its place away")?;
        outcome
    })?;
    let left = overtaken.keys().count();
    ensure!(left == 0, "{left} handshakes are still remembered");
    Ok(())
}

/// The only handshake under way, and its place.
fn waiting(arriving: &Array<MapData, Arriving>) -> Result<Option<(u32, Arriving)>> {
    for place in 0..ARRIVING_SLOTS {
        let there = arriving.get(&place, 0)?;
        if there != Arriving::NONE {
            return Ok(Some((place, there)));
        }
    }
    Ok(None)
}
