//! The relay's program and maps, and the socket options its protocol needs.
//!
//! Invariants: nothing is pinned, so all of it is gone with the process; every method takes `&self` and is one or a
//! few system calls, so any number of workers share one [`Redirect`] without a lock; the steering object is not
//! touched. What a flow is and which side writes what: `bridge_common::relay`.

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd},
};

use anyhow::Context as _;
use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, PerCpuArray, SockHash},
    programs::SkSkb,
};
use bridge_common::{
    names::relay as names,
    relay::{Credit, DOWN, Progress, Totals, UP},
};
use rustix::net::sockopt::socket_cookie;

use super::{programs::object, sys};

/// The object `cargo xtask build` made.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bridge-ebpf-relay"));

/// Send buffer of an enrolled socket, in bytes (the kernel doubles it). It has to hold a whole
/// `bridge_common::relay::BUDGET`, and what userspace may have left in the queue before, in any form: then the kernel's
/// worker never has to wait for room.
const SEND_BUFFER: libc::c_int = 1024 * 1024;

/// Receive buffer of an enrolled socket, in bytes (the kernel doubles it), and most that its peer may send ahead. What
/// is passed waits for userspace segment by segment, and is charged with each segment's overhead, which the window does
/// not know of. A buffer that overflows drops segments, and their repetitions may overlap what is there already, see
/// [`Redirect::seen_once`].
const RECEIVE_BUFFER: libc::c_int = 4 * 1024 * 1024;
const WINDOW: libc::c_int = 256 * 1024;

/// How often two numbers are read again that belong together, before it is left for later.
const TRIES: usize = 16;

/// The loaded program and its maps. One for each relay.
pub struct Redirect {
    sinks: SockHash<MapData, u64>,
    sources: SockHash<MapData, u64>,
    progress: MapData,
    credit: MapData,
    totals: PerCpuArray<MapData, Totals>,
    /// The program; detached and unloaded when dropped.
    _ebpf: Ebpf,
}

/// One direction of an enrolled connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnrolledFlow {
    /// The source's cookie, by which the flow is known.
    pub cookie: u64,
    /// What [`Sent::total`] of the sink said at the start.
    pub base: u64,
    /// Bytes that had come to the source and were read at the start.
    pub read: u64,
    /// [`UP`] or [`DOWN`].
    pub direction: u32,
}

/// What TCP has been given to send on one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Bytes written since the connection began (plus one for the SYN).
    pub total: u64,
    /// Those the peer has not acknowledged.
    pub unacknowledged: u64,
}

impl EnrolledFlow {
    /// A credit that allows nothing.
    pub fn closed(&self) -> Credit {
        Credit { cookie: self.cookie, direction: self.direction, ..Credit::default() }
    }
}

impl Redirect {
    /// Loads the object, for `max_connections` connections at a time, and attaches the program to its map.
    ///
    /// # Errors
    /// When the kernel refuses; the chain holds the verifier's last words.
    pub fn load(max_connections: usize) -> anyhow::Result<Self> {
        let flows = u32::try_from(max_connections.saturating_mul(2)).unwrap_or(u32::MAX).clamp(2, 1 << 24);
        let mut loader = EbpfLoader::new();
        for name in [names::SINKS, names::SOURCES, names::PROGRESS, names::CREDIT] {
            loader.map_max_entries(name, flows);
        }
        let mut ebpf = loader.load(OBJECT).context(
            "failed to load the relay's eBPF object: run as root, or use the splice relay (--datapath splice)",
        )?;
        let mut take = |name: &'static str| {
            ebpf.take_map(name)
                .with_context(|| format!("map {name} is missing from the eBPF object: rebuild bridge-user"))
        };
        let sinks = take(names::SINKS)?.try_into()?;
        let sources: SockHash<MapData, u64> = take(names::SOURCES)?.try_into()?;
        let progress = hash(take(names::PROGRESS)?)?;
        let credit = hash(take(names::CREDIT)?)?;
        let totals = take(names::TOTALS)?.try_into()?;
        let program: &mut SkSkb = object::program(&mut ebpf, names::PROG_REDIRECT)?;
        program.load().map_err(|error| object::refusal(names::PROG_REDIRECT, error))?;
        program
            .attach(sources.fd())
            .with_context(|| format!("failed to attach program {}", names::PROG_REDIRECT))?;
        Ok(Self { sinks, sources, progress, credit, totals, _ebpf: ebpf })
    }

    /// Enrols a connection: its bytes pass the program from now on, which leaves all of them to userspace until
    /// [`Self::credit`] opens a flow. Returns the flows from the client and from the target.
    ///
    /// Both sockets must have an empty receive queue: the kernel would redirect the whole of a segment of which a part
    /// was read. If this fails before the program sees a socket, nothing has happened to either.
    ///
    /// # Errors
    /// The kernel's refusal; [`Enrolment::Half`] if the program sees one of the two sockets already.
    pub fn enroll(&self, client: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<Enrolment> {
        for socket in [client, target] {
            make_room(socket)?;
        }
        let flow = |source, sink, direction| -> io::Result<_> {
            let (cookie, base, read) = (socket_cookie(source)?, written(sink)?, read_so_far(source)?);
            Ok(EnrolledFlow { cookie, base, read, direction })
        };
        let (up, down) = (flow(client, target, UP)?, flow(target, client, DOWN)?);
        let prepared = self.prepare(up, target).and_then(|()| self.prepare(down, client));
        if let Err(error) = prepared.and_then(|()| self.watch(up, client)) {
            self.withdraw(up);
            self.withdraw(down);
            return Err(error);
        }
        match self.watch(down, target) {
            Ok(()) => Ok(Enrolment::Whole(up, down)),
            Err(_) => Ok(Enrolment::Half(up, down)),
        }
    }

    fn prepare(&self, flow: EnrolledFlow, sink: BorrowedFd<'_>) -> io::Result<()> {
        sys::map_insert(self.progress.fd().as_fd(), &flow.cookie, &Progress::default(), 0)?;
        self.credit(&flow.closed())?;
        sys::sockhash_insert(self.sinks.fd().as_fd(), &flow.cookie, sink, 0)
    }

    fn watch(&self, flow: EnrolledFlow, source: BorrowedFd<'_>) -> io::Result<()> {
        sys::sockhash_insert(self.sources.fd().as_fd(), &flow.cookie, source, 0)
    }

    /// Undoes [`Self::prepare`], as far as it came; safe only while no program sees the flow's sockets.
    fn withdraw(&self, flow: EnrolledFlow) {
        let _not_there = sys::map_delete(self.sinks.fd().as_fd(), &flow.cookie);
        self.forget(flow.cookie);
    }

    /// What the program has done with a flow.
    ///
    /// # Errors
    /// When the flow is not known.
    pub fn progress(&self, cookie: u64) -> io::Result<Progress> {
        sys::map_lookup(self.progress.fd().as_fd(), &cookie)
    }

    /// Whether the program has seen every byte that came to the source exactly once; `None` while it cannot be told,
    /// because more came just now. With the state of the flow at that moment.
    ///
    /// It may see a byte twice. TCP accepts a segment of which the beginning came before, and counts only what is new;
    /// the receive path of a socket map takes every segment whole (`tcp_read_skb`, which has no offset). A peer's
    /// needless repetition becomes such a segment when it is packed with bytes that follow, by the peer or in the
    /// socket's backlog. So what was passed must be checked before it is passed on, and what was redirected before the
    /// end of the stream is. Measured on loopback, 6.18.44, two busy cores: a block of 64 KiB twice once in 2 to 5 GB
    /// of bulk, never in exchanges.
    ///
    /// # Errors
    /// When the flow is not known, or the socket is no TCP socket.
    pub fn seen_once(&self, flow: EnrolledFlow, source: impl AsFd) -> io::Result<Option<(bool, Progress)>> {
        for _ in 0..TRIES {
            let before = sys::tcp_facts(&source)?;
            let progress = self.progress(flow.cookie)?;
            if sys::tcp_facts(&source)?.received == before.received {
                let seen = flow.read + progress.passed + progress.redirected;
                let intact = seen == before.received - u64::from(before.fin)
                    || (before.closed && seen == before.received);
                return Ok(Some((intact, progress)));
            }
        }
        Ok(None)
    }

    /// Tells the program what it may do with a flow.
    ///
    /// # Errors
    /// When the kernel has no memory for it.
    pub fn credit(&self, credit: &Credit) -> io::Result<()> {
        sys::map_insert(self.credit.fd().as_fd(), &credit.cookie, credit, 0)
    }

    /// Removes what is known of a flow whose sockets are closed; the kernel has removed those from the socket maps.
    pub fn forget(&self, cookie: u64) {
        let _not_there = sys::map_delete(self.progress.fd().as_fd(), &cookie);
        let _not_there = sys::map_delete(self.credit.fd().as_fd(), &cookie);
    }

    /// Redirected bytes since the program was loaded: from clients, and from targets.
    ///
    /// # Errors
    /// When the kernel refuses to read its counters.
    pub fn totals(&self) -> io::Result<[u64; 2]> {
        let sum = |direction| {
            let values = self.totals.get(&direction, 0).map_err(io::Error::other);
            values.map(|values| values.iter().map(|one| one.bytes).sum())
        };
        Ok([sum(UP)?, sum(DOWN)?])
    }
}

/// How far [`Redirect::enroll`] came.
#[derive(Debug)]
pub enum Enrolment {
    /// The program sees both sockets.
    Whole(EnrolledFlow, EnrolledFlow),
    /// It sees the client only, the kernel refused the target. Neither flow may ever be opened, and the client's bytes
    /// may be read by recv(2) only.
    Half(EnrolledFlow, EnrolledFlow),
}

impl fmt::Debug for Redirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redirect")
    }
}

/// Makes the program look at segments that are in the receive queue already: those that came before the socket was
/// enrolled. Setting the lowest number of bytes worth a wake-up calls the same function as a new segment
/// (`tcp_set_rcvlowat` → `tcp_data_ready`, since Linux 4.18).
///
/// # Errors
/// When it is no TCP socket.
pub fn kick(source: impl AsFd) -> io::Result<()> {
    sys::set_int_option(source, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 1)
}

/// What TCP was given to send, never more than it was: the acknowledged bytes are read first, so acknowledgements that
/// come in between are in neither number. (`tcpi_bytes_sent` minus `tcpi_bytes_retrans` plus `tcpi_notsent_bytes` looks
/// as good and is not: a segment that the host's own queue drops counts as sent, and its repetition not as
/// retransmitted.)
///
/// # Errors
/// When it is no TCP socket.
pub fn sent(socket: impl AsFd) -> io::Result<Sent> {
    let acknowledged = sys::tcp_facts(&socket)?.acknowledged;
    let unacknowledged = sys::tcp_unacknowledged(&socket)?;
    Ok(Sent { total: acknowledged + unacknowledged, unacknowledged })
}

/// [`Sent::total`], exactly: nothing was acknowledged while it was read. Nobody may write meanwhile.
fn written(socket: BorrowedFd<'_>) -> io::Result<u64> {
    for _ in 0..TRIES {
        let before = sys::tcp_facts(socket)?.acknowledged;
        let unacknowledged = sys::tcp_unacknowledged(socket)?;
        if sys::tcp_facts(socket)?.acknowledged == before {
            return Ok(before + unacknowledged);
        }
    }
    Err(io::ErrorKind::WouldBlock.into())
}

/// How many of the bytes that came were read, exactly. The socket may not be in a socket map yet.
fn read_so_far(socket: BorrowedFd<'_>) -> io::Result<u64> {
    for _ in 0..TRIES {
        let before = sys::tcp_facts(socket)?;
        let unread = sys::tcp_unread(socket)?;
        if before.fin {
            // The kernel takes no such socket into the map either.
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        if sys::tcp_facts(socket)? == before {
            return Ok(before.received - unread);
        }
    }
    Err(io::ErrorKind::WouldBlock.into())
}

/// Sees to it that the worker never waits for room in the send queue: a large buffer, and no limit on unsent bytes
/// (net.ipv4.tcp_notsent_lowat).
fn make_room(socket: BorrowedFd<'_>) -> io::Result<()> {
    sys::set_int_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER)?;
    sys::set_int_option(socket, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, -1)?;
    sys::set_int_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER)?;
    sys::set_int_option(socket, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, WINDOW)
}

fn hash(map: Map) -> anyhow::Result<MapData> {
    match map {
        Map::HashMap(data) => Ok(data),
        _ => anyhow::bail!("a map of the relay's object is no hash map: rebuild bridge-user"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_has_the_program_and_every_map_with_the_shared_layout() {
        let object = aya_obj::Object::parse(OBJECT).unwrap();
        assert_eq!(object.programs.keys().collect::<Vec<_>>(), [names::PROG_REDIRECT]);
        assert_eq!(object::declared_maps(OBJECT), object::shared_layout(&names::MAPS));
    }

    #[test]
    fn it_is_shared_by_workers() {
        fn shared<T: Send + Sync>() {}
        shared::<Redirect>();
    }
}
