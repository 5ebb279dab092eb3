//! Memory stays bounded: idle connections, stalled readers.

use std::{io::Write, thread};

use super::{process::ChildRelay, *};
use crate::relay::raise_descriptor_limit;

#[test]
fn two_thousand_idle_connections_take_little_memory_each() {
    const COUNT: usize = 2000;
    raise_descriptor_limit().unwrap();
    let target = listener();
    let child = ChildRelay::start(&target, 16_384);
    let open = |count| -> Vec<_> {
        let one = |_| {
            let mut client = connect(child.address);
            let server = target.accept().unwrap().0;
            // Each has worked once, so whatever it holds on to, it holds.
            client.write_all(b"x").unwrap();
            assert_eq!(read_exactly(&server, 1), b"x");
            (client, server)
        };
        (0..count).map(one).collect()
    };
    let _warm = open(10);
    let before = child.resident();
    let _connections = open(COUNT);
    let each = (child.resident() - before) / COUNT;
    println!("{each} bytes of resident memory per idle connection");
    assert!(each <= 16 * 1024, "{each} bytes per idle connection");
}

/// The same for a target and for a client that never reads, in copied and in spliced bytes: what the relay
/// takes is bounded by the kernel's socket buffers, its own memory does not grow, and nothing is lost.
#[test]
fn a_reader_that_stalls_costs_no_memory_and_gets_everything_later() {
    for target_stalls in [true, false] {
        let target = listener();
        let child = ChildRelay::start(&target, 64);
        let client = connect(child.address);
        let server = patient(target.accept().unwrap().0);
        let (sender, reader) = if target_stalls { (&client, &server) } else { (&server, &client) };
        let before = child.resident();
        const LEN: usize = 96 << 20;
        thread::scope(|scope| {
            let writing = scope.spawn(|| write_noise(sender, 3, LEN));
            thread::sleep(Duration::from_millis(1500));
            assert!(!writing.is_finished(), "96 MiB disappeared in buffers");
            let grown = child.resident().saturating_sub(before);
            assert!(grown <= 1 << 20, "the relay grew by {grown} bytes");
            read_noise(reader, 3, LEN);
        });
    }
}
