//! Reproducible random streams, to be compared byte for byte at the other end.
//!
//! Invariant: neither end holds more than one block, so a stream may be larger than memory.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use anyhow::{Context, Error, Result, anyhow, ensure};

use super::endings::expect_fin;

/// A multiple of 8, and of nothing a relay uses.
const BLOCK: usize = 200_008;

/// xorshift64: every loss, repetition and reordering shows.
pub(crate) struct Noise(u64);

impl Noise {
    /// A stream of its own for each seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next bytes.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Writes the first `length` bytes of the seed's stream.
pub(crate) fn send(mut stream: &TcpStream, seed: u64, length: usize) -> Result<()> {
    let (mut noise, mut block) = (Noise::new(seed), vec![0; BLOCK]);
    let mut done = 0;
    while done < length {
        let part = &mut block[..BLOCK.min(length - done)];
        noise.fill(part);
        stream.write_all(part).with_context(|| format!("failed to send behind byte {done} of {length}"))?;
        done += part.len();
    }
    Ok(())
}

/// Reads exactly `length` bytes, which must be those [`send`] wrote.
pub(crate) fn expect(mut stream: impl Read, seed: u64, length: usize) -> Result<()> {
    let mut noise = Noise::new(seed);
    let (mut expected, mut found) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut done = 0;
    while done < length {
        let size = BLOCK.min(length - done);
        noise.fill(&mut expected[..size]);
        let read = stream.read_exact(&mut found[..size]);
        read.with_context(|| format!("failed to receive behind byte {done} of {length}"))?;
        let differs = expected[..size].iter().zip(&found).position(|(left, right)| left != right);
        ensure!(differs.is_none(), "byte {} of {length} differs", done + differs.unwrap_or(0));
        done += size;
    }
    Ok(())
}

/// Both directions at once, `length` bytes each, both ended by FIN.
pub(crate) fn both_ways(left: &TcpStream, right: &TcpStream, length: usize) -> Result<()> {
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (seed, from, to) in [(1, left, right), (2, right, left)] {
            threads.push(scope.spawn(move || {
                send(from, seed, length)?;
                from.shutdown(Shutdown::Write).context("failed to half-close")
            }));
            threads.push(scope.spawn(move || {
                expect(to, seed, length)?;
                expect_fin(to)
            }));
        }
        let joined =
            threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?);
        let mut errors: Vec<Error> = joined.filter_map(Result::err).collect();
        // A wrong byte counts more than the end of the connection.
        errors.sort_by_key(was_cut);
        errors.into_iter().next().map_or(Ok(()), Err)
    })
}

/// Whether a stream failed only because the connection was reset. Of two threads on one socket the second one sees
/// an early end.
pub(crate) fn was_cut(error: &Error) -> bool {
    let kinds = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe, ErrorKind::UnexpectedEof];
    let kind =
        error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind));
    kind.is_some_and(|kind| kinds.contains(&kind))
}
