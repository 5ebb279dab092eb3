//! How other processes find and ask the relays of a network namespace: each relay process has a UNIX socket in a
//! private directory.
//!
//! Invariants: one request and one answer per connection; both sides accept only root and their own user on the other
//! side (SO_PEERCRED). Whatever a process answers, or does not, concerns that process alone: the others are asked, and
//! what went wrong is told at the end. At most [`AT_ONCE`] are asked at the same time, none for longer than
//! [`ANSWER_TIME`]. A process id is named only if the kernel says that it is that process's socket.
//!
//! A process finds those that share its `/run`. A relay in a mount namespace with another one serves all the same; it
//! is ended by a signal.

use std::{
    io,
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rustix::net::sockopt::socket_peercred;
use serde::{Deserialize, Serialize};

use super::{
    directory::{Directory, Entry, reach},
    wire::{self, WireError},
};
use crate::{
    model::{codes, finding::Finding},
    net::namespace::Namespace,
    observe::report::AttachmentReport,
};

/// How long a relay process may take to answer a question. On a host with nothing to spare it is seconds.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// How long a process that ended meanwhile may take to close its sockets.
const END_TIME: Duration = Duration::from_secs(2);
/// Longest request, and longest answer, in bytes.
const MAX_REQUEST: usize = 1 << 20;
const MAX_ANSWER: usize = 16 << 20;
/// Processes that are asked at the same time.
const AT_ONCE: usize = 16;

/// What can be asked of a relay process.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// All of its attachments.
    Status,
    /// Drain and stop the attachments with these names; answered when that is done.
    Stop(Vec<String>),
}

/// The attachments it was about.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    /// One entry each; none after a stop.
    pub entries: Vec<AttachmentReport>,
}

/// The relay processes of a network namespace.
#[derive(Default)]
pub struct Answers {
    /// Those that answered, and what they run.
    pub relays: Vec<(Peer, Vec<AttachmentReport>)>,
    /// Why others do not answer, or cannot be asked; each is a [`SilentRelay`].
    pub silent: Vec<anyhow::Error>,
}

/// A relay process that does not answer, or not in a way this version understands; or no way to look for them.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SilentRelay(Box<Finding>);

impl SilentRelay {
    /// What an error says, if it is one of these.
    pub fn finding(error: &anyhow::Error) -> Option<Finding> {
        error.downcast_ref::<Self>().map(|Self(finding)| Finding::clone(finding))
    }
}

/// A relay process, by its socket.
pub struct Peer {
    socket: PathBuf,
}

/// This process's socket, on which it is asked.
pub struct Door {
    /// Where questions come in.
    pub listener: UnixListener,
    /// Its name, for as long as this is kept.
    pub entry: DoorEntry,
    /// Whose processes may ask, besides root's.
    pub own: u32,
}

/// The name of a [`Door`]; dropped, nobody finds it any more.
pub struct DoorEntry {
    _entry: Entry,
}

/// Binds this process's socket.
///
/// # Errors
/// When the directory cannot be made, or is not private.
pub fn listen(namespace: &Namespace) -> anyhow::Result<Door> {
    let (listener, entry) = Directory::make()?.bind(namespace.inode())?;
    let own = rustix::process::geteuid().as_raw();
    Ok(Door { listener, entry: DoorEntry { _entry: entry }, own })
}

/// Reads the request of a connection; `None` if a process of another user than root and `own` is on the other side, or
/// one that only looks whether somebody is here.
///
/// # Errors
/// When it sends no request.
pub fn read_request(stream: &UnixStream, own: u32) -> anyhow::Result<Option<Ask>> {
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
pub fn write_answer(stream: &UnixStream, entries: Vec<AttachmentReport>) -> anyhow::Result<()> {
    Ok(wire::write(stream, &Answer { entries })?)
}

/// Asks every relay process of the network namespace what it runs. Those that have gone are left out.
pub fn ask_all(namespace: &Namespace) -> Answers {
    let peers = match peers(namespace) {
        Ok(peers) => peers,
        Err(error) => return Answers { silent: vec![no_directory(&error).into()], ..Answers::default() },
    };
    let mut all = Answers::default();
    for peers in in_groups(peers) {
        let answers: Vec<_> = thread::scope(|scope| {
            let start =
                |peer| thread::Builder::new().spawn_scoped(scope, move || Peer::ask(peer, &Ask::Status));
            let asked: Vec<_> = peers.iter().map(start).collect();
            // Where no thread is to be had, they are asked one after the other.
            let answer = |(thread, peer): (io::Result<thread::ScopedJoinHandle<'_, _>>, _)| match thread {
                Ok(thread) => thread.join().unwrap_or(Ok(None)),
                Err(_) => Peer::ask(peer, &Ask::Status),
            };
            asked.into_iter().zip(&peers).map(answer).collect()
        });
        for (peer, answer) in peers.into_iter().zip(answers) {
            match answer {
                Ok(answer) => all.relays.extend(answer.map(|answer| (peer, answer.entries))),
                Err(error) => all.silent.push(error.into()),
            }
        }
    }
    all
}

fn in_groups(peers: Vec<Peer>) -> impl Iterator<Item = Vec<Peer>> {
    let mut left = peers.into_iter();
    std::iter::from_fn(move || {
        Some(left.by_ref().take(AT_ONCE).collect::<Vec<_>>()).filter(|group| !group.is_empty())
    })
}

fn peers(namespace: &Namespace) -> anyhow::Result<Vec<Peer>> {
    let Some(directory) = Directory::open()? else { return Ok(Vec::new()) };
    let sockets = directory.sockets_of(namespace.inode())?;
    Ok(sockets.into_iter().map(|socket| Peer { socket }).collect())
}

/// Removes what killed relay processes left.
pub fn sweep() {
    if let Ok(Some(directory)) = Directory::open() {
        directory.sweep();
    }
}

/// Stops these attachments of the relay process with this socket, and waits until they are drained.
///
/// # Errors
/// When it does not say that it did, and goes on.
pub fn stop(socket: &Path, names: &[String]) -> anyhow::Result<()> {
    let peer = Peer { socket: socket.to_owned() };
    if peer.ask(&Ask::Stop(names.to_vec()))?.is_some() {
        return Ok(());
    }
    // A process that ended meanwhile relays nothing any more; its sockets close one after the other.
    let deadline = Instant::now() + END_TIME;
    while !reach(&peer.socket).is_err_and(|error| is_gone(&error)) {
        ensure!(
            Instant::now() < deadline,
            "relay process {} gave no answer: try again, or see who has that socket (fuser {0}) and end it",
            peer.socket.display()
        );
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

impl Peer {
    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks, and waits for the answer; `None` if the process ended meanwhile.
    ///
    /// # Errors
    /// When it does not answer in time, or not in a way this version understands.
    fn ask(&self, question: &Ask) -> Result<Option<Answer>, SilentRelay> {
        let stream = match reach(&self.socket) {
            Ok(stream) => stream,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(self.silent(None, &error.into())),
        };
        let process = match peer(&stream, rustix::process::geteuid().as_raw()) {
            Ok(Some(process)) => process,
            Ok(None) => return Err(self.silent(None, &anyhow::anyhow!("another user's process has it"))),
            Err(error) => return Err(self.silent(None, &error)),
        };
        self.exchange(&stream, question).map_err(|error| self.silent(process, &error))
    }

    fn exchange(&self, stream: &UnixStream, question: &Ask) -> anyhow::Result<Option<Answer>> {
        stream.set_write_timeout(Some(ANSWER_TIME))?;
        match wire::write(stream, question) {
            Err(error) if is_gone(&error) => return Ok(None),
            written => written?,
        }
        // Draining takes as long as the relay was told to wait.
        let deadline = (*question == Ask::Status).then(|| Instant::now() + ANSWER_TIME);
        match wire::read(stream, MAX_ANSWER, deadline) {
            Ok(answer) => Ok(Some(answer)),
            Err(WireError::Closed) => Ok(None),
            Err(error) => bail!(error),
        }
    }

    /// `process`: what the kernel says whose socket it is.
    fn silent(&self, process: Option<u32>, error: &anyhow::Error) -> SilentRelay {
        let socket = self.socket.display();
        let (who, cure) = match process {
            Some(process) => (
                format!(" (pid {process})"),
                format!(
                    "let it go on if it was stopped (kill -CONT {process}), or end it (kill -KILL {process})"
                ),
            ),
            None => (
                String::new(),
                format!("ask as root; otherwise see who has that socket (fuser {socket}) and end it"),
            ),
        };
        let cause = format!("failed to ask relay process {socket}{who}: {error:#}");
        let finding =
            codes::RELAY_SILENT.finding(socket.to_string(), cause, format!("{cure}, then try again"));
        SilentRelay(Box::new(finding))
    }
}

fn no_directory(error: &anyhow::Error) -> SilentRelay {
    let cause = format!("failed to look for relay processes: {error:#}");
    let cure = "ask as root, or correct the directory, then try again";
    SilentRelay(Box::new(codes::RELAY_DIRECTORY.finding("relay processes", cause, cure)))
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound};
    matches!(error.kind(), ConnectionRefused | ConnectionReset | BrokenPipe | NotFound)
}

/// The process on the other side, if it is root's or `own`'s; its id, if it is in a PID namespace that this process
/// sees. `None`: it is somebody else's.
fn peer(stream: impl AsFd, own: u32) -> anyhow::Result<Option<Option<u32>>> {
    let peer = socket_peercred(&stream).map_err(io::Error::from).context("failed to read SO_PEERCRED")?;
    let trusted = peer.uid.is_root() || peer.uid.as_raw() == own;
    Ok(trusted.then(|| u32::try_from(peer.pid.as_raw_nonzero().get()).ok()))
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

    /// Who accepts nobody, and who answers something else, are named by their socket and by the pid the kernel knows.
    #[test]
    fn nobody_is_waited_for_without_a_limit_and_nobody_is_believed() {
        let directory = tempfile::tempdir().unwrap();
        let peer = Peer { socket: directory.path().join("s") };
        assert!(peer.ask(&Ask::Status).unwrap().is_none(), "nothing is there");
        let listener = UnixListener::bind(peer.socket()).unwrap();
        let asked = thread::scope(|scope| {
            let asked = scope.spawn(|| peer.ask(&Ask::Status));
            let (mut stream, _) = listener.accept().unwrap();
            io::Write::write_all(&mut stream, b"{\"entries\":[]}\n").unwrap();
            asked.join().unwrap()
        });
        let error = asked.unwrap_err().to_string();
        let pid = format!("(pid {})", std::process::id());
        assert!(error.contains("another version") && error.contains(&pid), "{error}");
        // No room but for one: what waits there already is not accepted either.
        rustix::net::listen(&listener, 0).unwrap();
        let _first = UnixStream::connect(peer.socket()).unwrap();
        let error = peer.ask(&Ask::Status).unwrap_err().to_string();
        assert!(error.contains(&peer.socket.display().to_string()) && !error.contains("pid"), "{error}");
    }
}
