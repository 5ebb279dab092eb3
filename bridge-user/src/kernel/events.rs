//! The event channel: what the programs wrote with aya-log, as records.

use std::{
    net::SocketAddr,
    os::fd::AsFd as _,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use aya::Ebpf;
use aya_log::EbpfLogger;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Collects formatted records.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<Event>>>);

/// One event.
#[derive(Clone, Debug)]
pub struct Event {
    /// How important it is.
    pub level: log::Level,
    /// What happened, in one line.
    pub message: String,
    /// When it was read. The programs write no time.
    pub read: SystemTime,
}

impl log::Log for Sink {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let read = SystemTime::now();
        let event = Event { level: record.level(), message: record.args().to_string(), read };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    fn flush(&self) {}
}

/// A reader of one instance's event channel. Each event is read once, by whichever reader comes first.
pub struct Events {
    logger: EbpfLogger<Sink>,
    sink: Sink,
}

impl Events {
    /// The channel of a pinned instance, found through its steering program.
    ///
    /// # Errors
    /// When the program or its ring buffer is gone, or CAP_SYS_ADMIN is missing (opening an object by id needs it).
    pub fn of_program(program_id: u32) -> anyhow::Result<Self> {
        let sink = Sink::default();
        let logger = EbpfLogger::init_from_id_with_logger(program_id, sink.clone())
            .context("failed to open the event channel: root, or CAP_SYS_ADMIN, is needed")?;
        Ok(Self { logger, sink })
    }

    /// The channel of an object this process loaded.
    ///
    /// # Errors
    /// When the object has no event channel.
    pub fn of_object(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        let sink = Sink::default();
        let logger =
            EbpfLogger::init_with_logger(ebpf, sink.clone()).context("failed to open the event channel")?;
        Ok(Self { logger, sink })
    }

    /// Takes the events that are there.
    pub fn drain(&mut self) -> Vec<Event> {
        self.logger.flush();
        std::mem::take(&mut *self.sink.0.lock().unwrap_or_else(PoisonError::into_inner))
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
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(error) => Err(error).context("failed to wait for events"),
        }
    }
}

impl Event {
    /// The client's address and port in the message, as written by the steering program.
    pub fn source(&self) -> Option<SocketAddr> {
        let (before, _) = self.message.split_once(" -> ")?;
        before.split_whitespace().next_back()?.parse().ok()
    }

    /// The gateway address and port in the message, as written by the steering program.
    pub fn destination(&self) -> Option<SocketAddr> {
        let (_, after) = self.message.split_once("-> ")?;
        after.split_whitespace().next()?.trim_end_matches(':').parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_from_every_form() {
        let read = SystemTime::UNIX_EPOCH;
        let event = |message: &str| Event { level: log::Level::Warn, message: message.to_owned(), read };
        let v4 = event("denied 172.17.0.3:40112 -> 172.17.0.1:6379: source not in the allow-list");
        assert_eq!(v4.destination(), "172.17.0.1:6379".parse().ok());
        assert_eq!(v4.source(), "172.17.0.3:40112".parse().ok());
        let v6 = event("steered [fd00::2]:40112 -> [fd00::1]:6379");
        assert_eq!(v6.destination(), "[fd00::1]:6379".parse().ok());
        assert_eq!(v6.source(), "[fd00::2]:40112".parse().ok());
        assert_eq!(event("tracked listener on port 6379").destination(), None);
    }
}
