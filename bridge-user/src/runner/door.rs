//! The socket on which a process with relays is asked.
//!
//! Invariant: what one asker does, or does not, holds up nobody else.

use std::{
    os::unix::net::{UnixListener, UnixStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::{
    directory::{Directory, Entry},
    protocol::{ANSWER_TIME, Answer, Ask, MAX_REQUEST, peer},
    wire::{self, WireError},
};
use crate::net::namespace::Namespace;

/// How long to wait when no question can be accepted.
const BACK_OFF: Duration = Duration::from_millis(100);

/// This process's socket, on which it is asked.
pub struct Door {
    listener: UnixListener,
    /// Whose processes may ask, besides root's.
    own: u32,
}

/// The name of a [`Door`]; dropped, nobody finds it any more.
pub struct DoorName {
    _entry: Entry,
}

impl Door {
    /// Binds this process's socket among those of relay processes.
    ///
    /// # Errors
    /// When the directory cannot be made, or is not private.
    pub fn of_relays(namespace: &Namespace) -> anyhow::Result<(Self, DoorName)> {
        Ok(Self::new(Directory::make()?.bind(namespace.inode())?))
    }

    /// Binds the daemon's socket.
    ///
    /// # Errors
    /// As [`Self::of_relays`]; when a daemon runs already.
    pub fn of_daemon(namespace: &Namespace) -> anyhow::Result<(Self, DoorName)> {
        Ok(Self::new(Directory::make()?.bind_daemon(&daemon_name(namespace))?))
    }

    fn new((listener, entry): (UnixListener, Entry)) -> (Self, DoorName) {
        let own = rustix::process::geteuid().as_raw();
        (Self { listener, own }, DoorName { _entry: entry })
    }

    /// Has every request answered on a thread of its own, from now until the process ends.
    pub fn serve(self, answer: impl Fn(&UnixStream, Ask) -> anyhow::Result<()> + Send + Sync + 'static) {
        let answer = Arc::new(answer);
        thread::spawn(move || {
            for stream in self.listener.incoming() {
                let Ok(stream) = stream else {
                    // Out of descriptors, most likely; whoever asks waits or gives up.
                    thread::sleep(BACK_OFF);
                    continue;
                };
                let answer = Arc::clone(&answer);
                // Where there is no thread to be had, nobody is answered, and this one goes on.
                let _ = thread::Builder::new().spawn(move || {
                    let asked = read_request(&stream, self.own);
                    let answered = asked.and_then(|ask| ask.map_or(Ok(()), |ask| answer(&stream, ask)));
                    if let Err(error) = answered {
                        log::warn!("failed to answer a request: {error:#}");
                    }
                });
            }
        });
    }
}

/// The name of the daemon's socket: the well-known one for the host's own namespace.
pub(super) fn daemon_name(namespace: &Namespace) -> String {
    match Namespace::of_process(1).is_ok_and(|first| first != *namespace) {
        true => format!("control-{}.sock", namespace.inode()),
        false => "control.sock".to_owned(),
    }
}

/// Reads the request of a connection; `None` if a process of another user than root and `own` is on the other side, or
/// one that only looks whether somebody is here.
///
/// # Errors
/// When it sends no request.
fn read_request(stream: &UnixStream, own: u32) -> anyhow::Result<Option<Ask>> {
    if peer(stream, own)?.is_none() {
        return Ok(None);
    }
    stream.set_write_timeout(Some(ANSWER_TIME))?;
    match wire::read(stream, MAX_REQUEST, Some(Instant::now() + ANSWER_TIME)) {
        Err(WireError::Closed) => Ok(None),
        request => Ok(Some(request.context("the request is not understood")?)),
    }
}

/// Answers a request.
///
/// # Errors
/// When the asker has gone.
pub fn write_answer(stream: &UnixStream, answer: &Answer) -> anyhow::Result<()> {
    Ok(wire::write(stream, answer)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_cross_the_socket() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let own = rustix::process::geteuid().as_raw();
        wire::write(&ours, &Ask::Stop(vec!["a".into()])).unwrap();
        assert_eq!(read_request(&theirs, own).unwrap(), Some(Ask::Stop(vec!["a".into()])));
        wire::write(&ours, &"nonsense").unwrap();
        assert!(read_request(&theirs, own).is_err());
        drop(ours);
        assert_eq!(read_request(&theirs, own).unwrap(), None, "it only looked whether somebody is here");
    }
}
