use std::net::Ipv4Addr;

use super::*;

const MIB: u64 = 1 << 20;

fn source(last: u8) -> IpAddr {
    Ipv4Addr::new(172, 17, 0, last).into()
}

fn places(max: usize) -> Arc<Places> {
    Places::new(max, &Arc::new(Ledger::new(100_000, 24 << 30)))
}

/// All that a source gets.
fn grab(places: &Arc<Places>, from: u8) -> Vec<Place> {
    std::iter::from_fn(|| places.take(source(from)).ok()).collect()
}

#[test]
fn one_source_gets_half_and_the_next_ones_find_as_much() {
    let places = places(120);
    let first = grab(&places, 1);
    assert_eq!(first.len(), 60);
    assert_eq!(places.take(source(1)).unwrap_err(), NoPlace::Share);
    let second = grab(&places, 2);
    let third = grab(&places, 3);
    assert_eq!((second.len(), third.len()), (30, 15));
    drop(first);
    assert_eq!(grab(&places, 4).len(), 38, "half of what is free now");
    assert_eq!(places.taken(), 45);
}

#[test]
fn the_last_place_is_for_a_source_that_has_none() {
    let places = places(2);
    let _first = places.take(source(1)).unwrap();
    assert_eq!(places.take(source(1)).unwrap_err(), NoPlace::Share);
    let second = places.take(source(2)).unwrap();
    assert_eq!(places.take(source(3)).unwrap_err(), NoPlace::Full);
    drop(second);
    assert!(places.take(source(3)).is_ok());
}

#[test]
fn relays_of_a_process_share_its_descriptors() {
    let ledger = Arc::new(Ledger::new(1000, 24 << 30));
    assert_eq!(ledger.max_connections(), (1000 - 128 - 125) / 2);
    let [one, other] = [0, 1].map(|_| Places::new(16_384, &ledger));
    let held = grab(&one, 1);
    assert_eq!(held.len(), 187);
    assert_eq!(grab(&other, 2).len(), 93);
    let pipes: Vec<_> = std::iter::from_fn(|| ledger.pipe()).collect();
    assert_eq!(pipes.len(), 62);
    drop(pipes);
    assert!(ledger.pipe().is_some());
}

/// A thousand stalled connections of one source cost less than a MiB each, and another source still gets full buffers.
#[test]
fn buffers_shrink_as_connections_grow() {
    let places = places(16_384);
    let held: Vec<_> = (0..1000).map(|_| places.take(source(1)).unwrap()).collect();
    assert_eq!(held[0].piece(), Piece::FULL);
    assert!(held.is_sorted_by(|one, next| one.piece() >= next.piece()));
    assert_eq!(held[999].piece(), Piece::SMALLEST);
    let cost: u64 = held.iter().map(|place| place.piece().cost()).sum();
    assert!(cost < 1000 * MIB, "{} MiB", cost / MIB);
    assert_eq!(places.take(source(2)).unwrap().piece(), Piece::FULL);
    drop(held);
    let taken = places.ledger.lock();
    assert_eq!((taken.bytes, taken.bytes_of.len()), (0, 0));
}

/// On a machine of 1.5 GB, sixty take a fraction of what the kernel gives TCP there (some 70 MiB).
#[test]
fn a_small_machine_has_a_small_budget() {
    let places = Places::new(16_384, &Arc::new(Ledger::new(100_000, 1536 * MIB)));
    let held: Vec<_> = (0..60).map(|_| places.take(source(1)).unwrap()).collect();
    let cost: u64 = held.iter().map(|place| place.piece().cost()).sum();
    assert!(cost < 36 * MIB, "{} MiB", cost / MIB);
}
