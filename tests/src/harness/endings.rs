//! How connections end, seen from either peer: orderly, or by a reset.
//!
//! Invariants: a reset is ECONNRESET and the end of a stream is a read of nothing; one never passes
//! for the other, and neither does a timeout. Of two threads on one socket only one learns of a
//! reset, so a stream is checked by one thread.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use super::client::dial;
use super::netns::Netns;
use super::wait::patience;

/// Closes with a reset.
pub(crate) fn reset(stream: TcpStream) -> Result<()> {
    let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&stream, sockopt::Linger, &at_once).context("failed to arm a reset")?;
    drop(stream);
    Ok(())
}

/// Reads on until the peer's reset; what still comes before it is counted.
pub(crate) fn expect_reset(mut stream: &TcpStream) -> Result<usize> {
    let mut buffer = vec![0; 64 * 1024];
    let mut count = 0;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => {
                bail!("the stream ended as if it were complete, after {count} bytes, instead of by a reset")
            }
            Ok(length) => count += length,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(count),
            Err(error) => return Err(error).context("a reset was to come"),
        }
    }
}

/// Writes on until the peer's reset.
pub(crate) fn write_until_reset(mut stream: &TcpStream) -> Result<()> {
    let block = vec![7; 64 * 1024];
    loop {
        match stream.write(&block) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                return Ok(());
            }
            Err(error) => return Err(error).context("a reset was to come"),
        }
    }
}

/// Expects the end of the stream, and nothing before it.
pub(crate) fn expect_fin(mut stream: &TcpStream) -> Result<()> {
    let length = stream.read(&mut [0; 16]).context("the stream was to end")?;
    ensure!(length == 0, "{length} bytes came where the stream was to end");
    Ok(())
}

/// Expects exactly these bytes next.
pub(crate) fn expect_bytes(mut stream: &TcpStream, expected: &[u8]) -> Result<()> {
    let mut found = vec![0; expected.len()];
    let read = stream.read_exact(&mut found);
    read.with_context(|| format!("failed to receive {} bytes", expected.len()))?;
    ensure!(found == expected, "{:?} came instead of {:?}", text(&found), text(expected));
    Ok(())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned()
}

/// Expects `netns` to be turned away by a relay at `to`: a relay looks at an established connection
/// and resets it.
pub(crate) fn expect_turned_away(netns: &Netns, to: SocketAddr) -> Result<()> {
    match netns.run(|| dial(to)) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error).with_context(|| format!("{to} was to accept and then to reset")),
        Ok(stream) => {
            let count = expect_reset(&stream).with_context(|| format!("{to} was to reset"))?;
            ensure!(count == 0, "{to} sent {count} bytes before the reset");
            Ok(())
        }
    }
}

/// Writes zeros until nothing more is taken; returns how many went. The deadline is that of
/// progress, not of the whole.
pub(crate) fn fill(mut stream: &TcpStream, limit: usize) -> Result<usize> {
    stream.set_write_timeout(Some(patience(1) / 2))?;
    let block = vec![0; 256 * 1024];
    let mut total = 0;
    while total < limit {
        match stream.write(&block) {
            Ok(written) => total += written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error).context("failed to fill the connection"),
        }
    }
    stream.set_write_timeout(Some(patience(5)))?;
    Ok(total)
}
