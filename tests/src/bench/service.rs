//! The measured service: the same code behind every target, as cheap as plain sockets allow.
//!
//! A connection says in its first byte what it wants: [`PUT`] is read to its end and answered with the byte count,
//! [`GET`] is written to for the time it names, [`ECHO`] sends back what comes, [`BYTE`] echoes one byte.
//! Invariants: blocking sockets only; a fixed pool of threads accepts and serves, so no thread starts during a
//! measurement; connections of one echo group are served by one thread with poll(2); the client closes first
//! (except after GET, where the end of the data is the answer), so TIME_WAIT is the client's for every target alike.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, Shutdown};

use super::interrupt::Clock;
use crate::harness::netns::Netns;
use crate::harness::service::{Port, listener};
use crate::harness::sys::mptcp_listener;

/// First byte: read to the end, answer with the count (8 bytes, little-endian).
pub(super) const PUT: u8 = b'P';
/// First byte, then milliseconds (4 bytes, little-endian): send for that long, then close.
pub(super) const GET: u8 = b'G';
/// First byte, then the size of the group (1 byte): send back everything, once the group is complete.
pub(super) const ECHO: u8 = b'E';
/// First byte and whole request: answer with the same byte.
pub(super) const BYTE: u8 = b'B';
/// Bytes per read and write of bulk data, on both sides.
pub(super) const CHUNK: usize = 256 * 1024;
/// Bytes an echo group takes in at once.
pub(super) const ECHO_MOST: usize = 16 * 1024;
/// More threads than connections that any measure keeps open, bar echo groups.
const WORKERS: usize = 6;

/// A running service; dropping it ends its threads.
pub(crate) struct LoadService {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    address: SocketAddr,
    listener: TcpListener,
    accepted: AtomicU64,
    /// Echo connections that wait for the rest of their group.
    group: Mutex<Vec<TcpStream>>,
}

impl LoadService {
    /// Listens on `address` inside `netns` and serves.
    pub(crate) fn start(netns: &Netns, address: SocketAddr) -> Result<Self> {
        Ok(Self::serve(address, listener(netns, address, Port::Exclusive)?))
    }

    /// The same on an MPTCP listener.
    pub(crate) fn start_mptcp(netns: &Netns, address: SocketAddr) -> Result<Self> {
        netns.sysctl("net/mptcp/enabled", "1")?;
        Ok(Self::serve(address, netns.run(|| mptcp_listener(address))?))
    }

    fn serve(address: SocketAddr, listener: TcpListener) -> Self {
        let (accepted, group) = (AtomicU64::new(0), Mutex::new(Vec::new()));
        let shared = Arc::new(Shared { address, listener, accepted, group });
        let worker = |_| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.accept())
        };
        let workers = (0..WORKERS).map(worker).collect();
        Self { shared, workers }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Connections accepted so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for LoadService {
    fn drop(&mut self) {
        // Wakes every thread in accept(2); connections have ended, or end with the client's side.
        if let Err(error) = socket::shutdown(self.shared.listener.as_raw_fd(), Shutdown::Both) {
            eprintln!("suite: failed to stop a load service: {error}");
            return;
        }
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                eprintln!("suite: a thread of a load service panicked");
            }
        }
    }
}

impl Shared {
    /// Serves one connection after the other until the listener is shut down.
    fn accept(&self) {
        while let Ok((stream, _)) = self.listener.accept() {
            self.accepted.fetch_add(1, Ordering::Relaxed);
            // A connection that breaks shows on the client's side, which reports it.
            drop(self.serve(stream));
        }
    }

    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut kind = [0];
        stream.read_exact(&mut kind)?;
        match kind[0] {
            PUT => swallow(stream),
            GET => pour(stream),
            ECHO => self.gather(stream),
            BYTE => {
                stream.write_all(&kind)?;
                // Waits for the client to close first.
                stream.read(&mut kind).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Serves the whole group when `stream` completes it.
    fn gather(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut size = [0];
        stream.read_exact(&mut size)?;
        stream.set_nodelay(true)?;
        let mut group = self.group.lock().unwrap_or_else(PoisonError::into_inner);
        group.push(stream);
        if group.len() < usize::from(size[0]) {
            return Ok(());
        }
        let complete = std::mem::take(&mut *group);
        drop(group);
        echo(complete)
    }
}

fn swallow(mut stream: TcpStream) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut count = 0u64;
    loop {
        match stream.read(&mut chunk)? {
            0 => break,
            length => count += length as u64,
        }
    }
    stream.write_all(&count.to_le_bytes())
}

fn pour(mut stream: TcpStream) -> std::io::Result<()> {
    let mut millis = [0; 4];
    stream.read_exact(&mut millis)?;
    let clock = Clock::start(Duration::from_millis(u32::from_le_bytes(millis).into()));
    let chunk = vec![0x5a; CHUNK];
    while !clock.over() {
        stream.write_all(&chunk)?;
    }
    Ok(())
}

fn echo(mut streams: Vec<TcpStream>) -> std::io::Result<()> {
    let mut record = [0; ECHO_MOST];
    while !streams.is_empty() {
        let mut ended = Vec::new();
        let mut fds: Vec<_> = streams.iter().map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN)).collect();
        while ended.is_empty() {
            poll(&mut fds, PollTimeout::NONE)?;
            for (index, (fd, mut stream)) in fds.iter().zip(&streams).enumerate() {
                if fd.any() != Some(true) {
                    continue;
                }
                match stream.read(&mut record)? {
                    0 => ended.push(index),
                    length => stream.write_all(&record[..length])?,
                }
            }
        }
        drop(fds);
        for index in ended.into_iter().rev() {
            drop(streams.remove(index));
        }
    }
    Ok(())
}
