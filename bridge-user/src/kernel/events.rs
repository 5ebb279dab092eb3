//! The event channel, which is aya-log's: what the programs wrote into it, as values.
//!
//! Invariants: the channel is opened by its pin. aya-log would look for its name, which needs CAP_SYS_ADMIN, and is
//! missing where aya does not understand the kernel's version (release candidates). An event has the time at which it
//! happened, by the wall clock as it is when the event is read: a clock that was set in between moves old events with
//! it, so that times can be compared with those of other logs.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, anyhow};
use aya::Ebpf;
use aya_log::EbpfLogger;
use bridge_common::event::{self as abi, EventKind, LEVEL_DEBUG};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    time::{ClockId, clock_gettime},
};

use super::{instance::Instance, programs::object};
use crate::model::event_level::EventLevel;

/// One event. It prints as what happened, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When it happened.
    pub time: SystemTime,
    /// What happened.
    pub kind: EventKind,
    /// The client; `None` for a listener.
    pub source: Option<SocketAddr>,
    /// The gateway; of a listener, where it listens.
    pub destination: SocketAddr,
    /// The attachment's id; of a listener, 0, which no attachment has.
    pub attachment: u32,
    /// [`abi::Event::detail`].
    detail: u64,
}

impl Event {
    /// `now`: the wall clock, and the clock of events, at the same moment.
    fn new(event: &abi::Event, now: (SystemTime, Duration)) -> Self {
        let age = now.1.saturating_sub(Duration::from_nanos(event.boot_ns));
        let connection = &event.connection;
        let source = SocketAddr::new(IpAddr::from(connection.source), connection.source_port);
        Self {
            time: now.0.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH),
            kind: event.kind,
            source: (event.attachment != 0).then_some(source),
            destination: SocketAddr::new(IpAddr::from(connection.gateway), connection.port),
            attachment: event.attachment,
            detail: event.detail,
        }
    }

    /// The lowest level at which it is there.
    pub const fn level(&self) -> EventLevel {
        match self.kind.level() {
            LEVEL_DEBUG => EventLevel::Debug,
            _ => EventLevel::Warn,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, destination, detail, .. } = self;
        let (name, why) = match kind {
            EventKind::Steered => ("steered", ""),
            EventKind::Denied => ("denied", ": source not in the allow-list"),
            EventKind::NoListener => ("no-listener", ": nothing listens on the target"),
            EventKind::AssignFailed => ("assign-failed", ": the kernel refused the listener"),
            EventKind::Tracked => return write!(f, "tracked listener on {destination}"),
            EventKind::MptcpListener => return write!(f, "mptcp-listener on {destination}"),
            EventKind::ListenerRefused => {
                return write!(f, "listener on {destination} refused by the socket map: error {detail}");
            }
        };
        write!(f, "{name} ")?;
        if let Some(source) = self.source {
            write!(f, "{source} -> ")?;
        }
        write!(f, "{destination}{why}")?;
        match detail {
            0 => Ok(()),
            more => write!(f, " ({more} more not shown)"),
        }
    }
}

/// Where aya-log puts the text of each record.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<String>>>);

impl Sink {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl log::Log for Sink {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(record.args().to_string());
    }

    fn flush(&self) {}
}

/// A reader of one instance's event channel. Each event is read once, by whichever reader comes first.
pub struct Events {
    logger: EbpfLogger<Sink>,
    sink: Sink,
}

impl Events {
    /// The channel of a pinned instance.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn of(instance: &Instance) -> anyhow::Result<Self> {
        let dir = instance.path();
        object::open_pinned(&dir)
            .and_then(|mut ebpf| Self::of_object(&mut ebpf))
            .with_context(|| format!("failed to open the event channel in {}", dir.display()))
    }

    /// The channel of an object this process loaded.
    ///
    /// # Errors
    /// When the object has no event channel.
    pub fn of_object(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        let sink = Sink::default();
        let logger =
            EbpfLogger::init_with_logger(ebpf, sink.clone()).context("failed to read the event channel")?;
        Ok(Self { logger, sink })
    }

    /// Takes the events that are there.
    ///
    /// # Errors
    /// When the clock cannot be read, or the channel has something else than events.
    pub fn drain(&mut self) -> anyhow::Result<Vec<Event>> {
        let now = (SystemTime::now(), Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?));
        self.logger.flush();
        let event = |text: String| {
            let event = abi::Event::parse(&text).ok_or_else(|| {
                anyhow!("failed to read an event: it is of another version: \"{}\"", text.escape_debug())
            })?;
            Ok(Event::new(&event, now))
        };
        self.sink.take().into_iter().map(event).collect()
    }

    /// Blocks until there are events, at most for `limit`; says whether there are.
    ///
    /// # Errors
    /// When poll(2) fails.
    pub fn wait(&self, limit: Duration) -> anyhow::Result<bool> {
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.logger.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, limit) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(error).context("failed to wait for events"),
        }
    }
}

#[cfg(test)]
mod tests {
    use bridge_common::maps::ConnectionKey;

    use super::*;

    fn event(kind: EventKind, source: &str, gateway: &str, detail: u64) -> Event {
        let (source, gateway): (SocketAddr, SocketAddr) = (source.parse().unwrap(), gateway.parse().unwrap());
        let connection = ConnectionKey {
            source: source.ip().into(),
            gateway: gateway.ip().into(),
            source_port: source.port(),
            port: gateway.port(),
        };
        let attachment = u32::from(source.port() != 0);
        let event = abi::Event { kind, boot_ns: 7_000_000_000, detail, connection, attachment };
        Event::new(&event, (SystemTime::UNIX_EPOCH + Duration::from_secs(100), Duration::from_secs(10)))
    }

    #[test]
    fn each_says_what_happened() {
        let said = |kind, source, gateway, detail| event(kind, source, gateway, detail).to_string();
        assert_eq!(
            said(EventKind::Denied, "172.17.0.3:40112", "172.17.0.1:6379", 0),
            "denied 172.17.0.3:40112 -> 172.17.0.1:6379: source not in the allow-list"
        );
        assert_eq!(
            said(EventKind::NoListener, "[fd00::2]:40112", "[fd00::1]:6379", 3),
            "no-listener [fd00::2]:40112 -> [fd00::1]:6379: nothing listens on the target (3 more not shown)"
        );
        assert_eq!(
            said(EventKind::Tracked, "[::]:0", "127.0.0.1:6379", 0),
            "tracked listener on 127.0.0.1:6379"
        );
    }

    #[test]
    fn the_time_is_that_of_what_happened() {
        let denied = event(EventKind::Denied, "172.17.0.3:40112", "172.17.0.1:6379", 0);
        assert_eq!(denied.time, SystemTime::UNIX_EPOCH + Duration::from_secs(97));
        assert_eq!(denied.level(), EventLevel::Warn);
    }

    #[test]
    fn levels_are_those_of_aya_log() {
        assert_eq!(EventLevel::Warn.as_u8(), aya_log::Level::Warn as u8);
        assert_eq!(EventLevel::Debug.as_u8(), aya_log::Level::Debug as u8);
    }
}
