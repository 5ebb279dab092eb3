//! The functional probe of the relays: real connections through a real relay, on the loopback interface of the scratch
//! host, with every byte compared, and for the socket-map relay with proof that the kernel moved them.
//!
//! What is tried is what goes wrong on kernels with an incomplete socket map: bytes that were there before the socket
//! was enrolled, one direction that ends while the other goes on, a reader that stops, and both directions at once.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, ensure};

use super::scratch::Scratch;
use crate::{
    kernel::{floor, redirect::Redirect},
    model::target::Target,
    net::namespace::Namespace,
    relay::{Relay, RelayConfig},
};

/// How long anything may take. Generous: an emulated kernel is slow.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Question and answer of one exchange, in bytes.
const MESSAGE: usize = 100;
/// Exchanges before a connection counts as one the kernel moves, of which it is offered the first few.
const EXCHANGES: usize = 64;
/// After so many exchanges both sides are quiet for a moment: the kernel is given a direction only when the relay finds
/// nothing more to read in it, and where whoever it wakes runs before it goes on, it would always find the next
/// question.
const QUIET_EVERY: usize = 8;
const QUIET: Duration = Duration::from_millis(2);
/// More than the relay and the sockets on the way may take from a sender whose reader has stopped.
const MOST_TAKEN: usize = 48 * 1024 * 1024;
/// A writer that was not served for this long is stopped by its reader.
const STALLED: Duration = Duration::from_millis(300);

/// How often the socket-map relay is tried.
const TRIES: usize = 3;

/// What each relay did.
pub(crate) struct RelayFindings {
    /// A relayed connection works, with splice(2).
    pub(crate) splice: anyhow::Result<()>,
    /// The same, and all the rest, with the kernel's help.
    pub(crate) sockmap: anyhow::Result<()>,
}

/// Tries both relays; the socket-map relay only where its known bugs are mended: looking must not harm the host.
///
/// # Errors
/// When the scratch topology cannot be made; a relay that fails is in the findings.
pub(crate) fn run() -> anyhow::Result<RelayFindings> {
    Scratch::run(|scratch| {
        let sockmap = floor::require().context("not tried").and_then(|_| sockmap(&scratch.host));
        Ok(RelayFindings { splice: splice(&scratch.host), sockmap })
    })
}

/// Tries the socket-map relay only.
///
/// # Errors
/// When it does not work; says what was tried.
pub(crate) fn run_sockmap() -> anyhow::Result<()> {
    Scratch::run(|scratch| sockmap(&scratch.host))
}

fn splice(namespace: &Namespace) -> anyhow::Result<()> {
    let rig = Rig::start(namespace, None)?;
    both_ways_at_once(&rig).context("both directions at once")?;
    half_close(&rig, false).context("a half-closed connection")
}

/// Again where the kernel repeated bytes, which is nobody's fault and shows on a busy host.
fn sockmap(namespace: &Namespace) -> anyhow::Result<()> {
    for _ in 1..TRIES {
        let rig = Rig::start(namespace, Some(Arc::new(Redirect::load(64)?)))?;
        let outcome = try_sockmap(&rig);
        if outcome.is_ok() || rig.relay.stats().repeated == 0 {
            return outcome;
        }
    }
    try_sockmap(&Rig::start(namespace, Some(Arc::new(Redirect::load(64)?)))?)
}

fn try_sockmap(rig: &Rig) -> anyhow::Result<()> {
    early_bytes(rig).context("bytes sent before the connection was handed to the kernel")?;
    exchanges_are_redirected(rig).context("exchanges")?;
    both_ways_at_once(rig).context("both directions at once")?;
    for service_first in [false, true] {
        let who = if service_first { "service" } else { "client" };
        half_close(rig, service_first).with_context(|| format!("a connection half-closed by the {who}"))?;
        stalled_reader(rig, service_first).with_context(|| format!("a {who} that stops reading"))?;
    }
    ensure!(rig.relay.stats().resets == 0, "a connection was reset");
    Ok(())
}

/// A relay in front of a service.
struct Rig {
    namespace: Namespace,
    relay: Relay,
    service: TcpListener,
    in_kernel: bool,
}

impl Rig {
    fn start(namespace: &Namespace, redirect: Option<Arc<Redirect>>) -> anyhow::Result<Self> {
        let anywhere = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        let service =
            namespace.run(|| TcpListener::bind(anywhere))?.context("failed to open the probe's service")?;
        let target = Target::Tcp(service.local_addr()?);
        let allow = vec!["127.0.0.0/8".parse()?];
        let in_kernel = redirect.is_some();
        let relay = Relay::start(RelayConfig {
            workers: Some(1),
            redirect,
            offload_after: 2,
            ..RelayConfig::new("probe", namespace, anywhere, "lo", target, allow)
        })?;
        Ok(Self { namespace: namespace.clone(), relay, service, in_kernel })
    }

    /// A connection, from the client's and from the service's side.
    fn connect(&self) -> anyhow::Result<(TcpStream, TcpStream)> {
        Ok((self.client()?, patient(self.service.accept()?.0)?))
    }

    /// The client's side of a connection.
    fn client(&self) -> anyhow::Result<TcpStream> {
        let to = self.relay.local_addr();
        patient(self.namespace.run(|| TcpStream::connect_timeout(&to, TIMEOUT))??)
    }

    /// A connection that has made some exchanges, and is the kernel's.
    fn warm(&self) -> anyhow::Result<(TcpStream, TcpStream)> {
        let before = self.relay.stats().offloaded;
        let (mut client, mut service) = self.connect()?;
        for number in 1..=EXCHANGES {
            exchange(&mut client, &mut service)?;
            if number % QUIET_EVERY == 0 {
                thread::sleep(QUIET);
            }
        }
        let taken = self.relay.stats().offloaded - before;
        ensure!(!self.in_kernel || taken == 1, "the kernel did not take the connection");
        Ok((client, service))
    }
}

fn patient(stream: TcpStream) -> anyhow::Result<TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

fn exchange(client: &mut TcpStream, service: &mut TcpStream) -> anyhow::Result<()> {
    client.write_all(&pattern(0, MESSAGE))?;
    expect(service, 0, MESSAGE)?;
    service.write_all(&pattern(0, MESSAGE))?;
    expect(client, 0, MESSAGE)
}

/// The bytes of a probe's stream from `at` on; the period is prime, so that nothing shifted looks right.
fn pattern(at: usize, len: usize) -> Vec<u8> {
    (at..at + len).map(|i| (i % 251) as u8).collect()
}

fn expect(stream: &mut TcpStream, at: usize, len: usize) -> anyhow::Result<()> {
    let mut found = vec![0; len];
    stream.read_exact(&mut found).with_context(|| format!("{len} bytes from byte {at} on did not come"))?;
    ensure!(found == pattern(at, len), "bytes {at} to {} are not those that were sent", at + len);
    Ok(())
}

fn expect_end(stream: &mut TcpStream) -> anyhow::Result<()> {
    let more = stream.read(&mut [0; 16]).context("the end of the stream did not come")?;
    ensure!(more == 0, "{more} bytes more came than were sent");
    Ok(())
}

/// Sends `len` bytes in pieces of changing size, and says that there are no more.
fn send_all(mut stream: &TcpStream, len: usize) -> anyhow::Result<()> {
    let mut at = 0;
    while at < len {
        let piece = (1 + at % 3001).min(len - at);
        stream.write_all(&pattern(at, piece))?;
        at += piece;
    }
    Ok(stream.shutdown(Shutdown::Write)?)
}

fn receive_all(stream: &mut TcpStream, len: usize) -> anyhow::Result<()> {
    const PIECE: usize = 10_007;
    for at in (0..len).step_by(PIECE) {
        expect(stream, at, PIECE.min(len - at))?;
    }
    expect_end(stream)
}

fn early_bytes(rig: &Rig) -> anyhow::Result<()> {
    const EARLY: usize = 10_000;
    let mut client = rig.client()?;
    client.write_all(&pattern(0, EARLY))?;
    let mut service = patient(rig.service.accept()?.0)?;
    expect(&mut service, 0, EARLY)?;
    // One side does not wait for the other while the connection changes hands.
    for at in (0..EARLY).step_by(10) {
        client.write_all(&pattern(at, 10))?;
        service.write_all(&pattern(at, 10))?;
    }
    expect(&mut service, 0, EARLY)?;
    expect(&mut client, 0, EARLY)
}

fn exchanges_are_redirected(rig: &Rig) -> anyhow::Result<()> {
    let before = rig.relay.stats();
    drop(rig.warm()?);
    let after = rig.relay.stats();
    let (all, redirected) = (2 * EXCHANGES * MESSAGE, (after.redirected - before.redirected) as usize);
    let counted = (after.bytes_up + after.bytes_down - before.bytes_up - before.bytes_down) as usize;
    ensure!(counted == all, "{counted} bytes were counted, {all} were sent");
    ensure!(2 * redirected > all, "the kernel moved {redirected} of {all} bytes itself, expected most");
    Ok(())
}

fn both_ways_at_once(rig: &Rig) -> anyhow::Result<()> {
    const LEN: usize = 3_000_000;
    let (mut client, mut service) = rig.warm()?;
    let (client_writes, service_writes) = (client.try_clone()?, service.try_clone()?);
    thread::scope(|scope| {
        let parts = [
            scope.spawn(move || send_all(&client_writes, LEN)),
            scope.spawn(move || send_all(&service_writes, LEN)),
            scope.spawn(|| receive_all(&mut client, LEN)),
            scope.spawn(|| receive_all(&mut service, LEN)),
        ];
        parts.into_iter().try_for_each(|part| part.join().map_err(|_| anyhow!("the probe panicked"))?)
    })
}

fn half_close(rig: &Rig, service_first: bool) -> anyhow::Result<()> {
    let (client, service) = rig.warm()?;
    let (mut first, mut second) = if service_first { (service, client) } else { (client, service) };
    send_all(&first, MESSAGE)?;
    receive_all(&mut second, MESSAGE)?;
    // The other direction goes on as if nothing had happened.
    for at in 0..EXCHANGES {
        second.write_all(&pattern(at, MESSAGE))?;
        expect(&mut first, at, MESSAGE)?;
    }
    second.shutdown(Shutdown::Write)?;
    expect_end(&mut first)
}

fn stalled_reader(rig: &Rig, service_stalls: bool) -> anyhow::Result<()> {
    let (client, service) = rig.warm()?;
    let (mut sender, mut reader) = if service_stalls { (client, service) } else { (service, client) };
    sender.set_nonblocking(true)?;
    let (mut taken, mut last) = (0, Instant::now());
    while last.elapsed() < STALLED {
        match sender.write(&pattern(taken, 16_384)) {
            Ok(written) => (taken, last) = (taken + written, Instant::now()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(error).context("the sender was cut off"),
        }
        ensure!(taken < MOST_TAKEN, "{taken} bytes were taken from a sender nobody reads from");
    }
    sender.shutdown(Shutdown::Write)?;
    receive_all(&mut reader, taken)
}
