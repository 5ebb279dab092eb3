//! The relay with real sockets: every test runs its own relay between a client and a target on loopback, with
//! `lo` as the bridge. What the tests of this module share is here.

mod bytes;
mod endings;
mod faults;
mod lifecycle;
mod memory;
mod namespaces;
mod process;

use std::{
    io::Read,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::net::sockopt;

use super::{Relay, RelayConfig};
use crate::{kernel::redirect::Redirect, model::target::Target, net::namespace::Namespace};

/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A listener for the target's side, whose accept fails after a while rather than hang.
fn listener() -> TcpListener {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    sockopt::set_socket_timeout(&listener, sockopt::Timeout::Recv, Some(PATIENCE)).unwrap();
    listener
}

/// A relay's config from a free port on 127.0.0.1 to `target`, with one worker.
fn config(target: Target) -> RelayConfig {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let allow = vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
    RelayConfig {
        workers: Some(1),
        redirect: redirect(),
        offload_after: 0,
        ..RelayConfig::new("test", &Namespace::current().unwrap(), listen, "lo", target, allow)
    }
}

/// Set: the relays of these tests let the kernel redirect, which needs its privileges.
const REDIRECT: &str = "BRIDGE_USER_RELAY_TEST_REDIRECT";

fn redirect() -> Option<Arc<Redirect>> {
    std::env::var_os(REDIRECT).map(|_| Arc::new(Redirect::load(1024).unwrap()))
}

fn config_to(target: &TcpListener) -> RelayConfig {
    config(Target::Tcp(target.local_addr().unwrap()))
}

fn relay_to(target: &TcpListener) -> Relay {
    Relay::start(config_to(target)).unwrap()
}

fn connect(address: SocketAddr) -> TcpStream {
    patient(TcpStream::connect(address).unwrap())
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A client and the target's end of the same relayed connection.
fn pair(relay: &Relay, target: &TcpListener) -> (TcpStream, TcpStream) {
    let client = connect(relay.local_addr());
    (client, patient(target.accept().unwrap().0))
}

/// The same with a relay to a UNIX target of its own, whose path nobody needs any more.
fn unix_pair() -> (Relay, TcpStream, UnixStream) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let target = UnixListener::bind(&path).unwrap();
    let relay = Relay::start(config(Target::Unix(path))).unwrap();
    let client = connect(relay.local_addr());
    let (server, _) = target.accept().unwrap();
    (relay, client, server)
}

/// Closes with RST.
fn reset<T: AsFd>(stream: T) {
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what} did not happen within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Asserts that the peer's connection ended with RST, maybe after some bytes.
fn assert_reset(mut stream: &TcpStream) {
    let mut buffer = vec![0; 65536];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => panic!("FIN instead of RST"),
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
                return;
            }
        }
    }
}

/// Asserts that the peer said FIN and sent nothing before it.
fn assert_fin(mut stream: &TcpStream) {
    assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);
}

fn read_exactly(mut stream: impl Read, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Reproducible random bytes (xorshift64*), to be compared byte for byte at the other end.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let word = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// A block size for [`Noise`] streams; a multiple of 8 and of nothing the relay uses.
const BLOCK: usize = 40_008;

fn write_noise(mut stream: impl std::io::Write, seed: u64, len: usize) {
    let mut noise = Noise(seed);
    let mut block = vec![0; BLOCK];
    let mut left = len;
    while left > 0 {
        let size = left.min(BLOCK);
        noise.fill(&mut block[..size]);
        stream.write_all(&block[..size]).unwrap();
        left -= size;
    }
}

/// Reads exactly `len` bytes and asserts that they are the seed's.
fn read_noise(mut stream: impl Read, seed: u64, len: usize) {
    let mut noise = Noise(seed);
    let (mut expected, mut found) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut done = 0;
    while done < len {
        let size = (len - done).min(BLOCK);
        noise.fill(&mut expected[..size]);
        stream.read_exact(&mut found[..size]).unwrap();
        assert!(expected[..size] == found[..size], "bytes differ between {done} and {}", done + size);
        done += size;
    }
}
