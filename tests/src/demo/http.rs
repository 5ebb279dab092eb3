//! The demo's web service and its client: just enough HTTP to be what people run, without any program.
//!
//! Invariants: the service says whom accept(2) named, so what a client reads is what the service saw; dropping the
//! service closes its listener before it returns.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use nix::sys::socket::{self, Shutdown};

use crate::harness::netns::Netns;
use crate::harness::service::{Port, listener};

/// No answer in this time is neither served nor refused.
const PATIENCE: Duration = Duration::from_secs(3);

/// A running web service.
pub(super) struct Web {
    listener: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

impl Web {
    /// Listens on `address` inside `netns`.
    pub(super) fn start(netns: &Netns, address: SocketAddr) -> Result<Self> {
        let listener = Arc::new(listener(netns, address, Port::Exclusive)?);
        let accepting = Arc::clone(&listener);
        let thread = std::thread::spawn(move || {
            while let Ok((stream, client)) = accepting.accept() {
                // A client that went away shows on its own side.
                drop(answer(&stream, client));
            }
        });
        Ok(Self { listener, thread: Some(thread) })
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        // Wakes the thread in accept(2).
        if let Err(error) = socket::shutdown(self.listener.as_raw_fd(), Shutdown::Both) {
            eprintln!("suite: failed to stop the web service: {error}");
        } else if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("suite: the web service panicked");
        }
    }
}

fn answer(mut stream: &TcpStream, client: SocketAddr) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    for line in BufReader::new(stream).lines() {
        if line?.is_empty() {
            break;
        }
    }
    let body = format!("hello {client}, you called {}\n", stream.local_addr()?);
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

/// The body at `http://<to>/` as a program inside `netns` gets it.
pub(super) fn get(netns: &Netns, to: SocketAddr) -> std::io::Result<String> {
    netns.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET / HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.trim_end().to_owned());
        body.ok_or_else(|| std::io::Error::other(format!("not an HTTP answer: {answer:?}")))
    })
}
