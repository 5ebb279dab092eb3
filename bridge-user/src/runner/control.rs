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
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};

use super::{
    directory::{Directory, reach},
    door::daemon_name,
    protocol::{ANSWER_TIME, Answer, Ask, MAX_ANSWER, peer},
    wire::{self, WireError},
};
use crate::{
    model::{codes, finding::Finding},
    net::namespace::Namespace,
    observe::report::AttachmentReport,
    plan::{RelayPlace, request::Request},
};

/// How long a process that ended meanwhile may take to close its sockets.
const END_TIME: Duration = Duration::from_secs(2);
/// Processes that are asked at the same time.
const AT_ONCE: usize = 16;

/// The relay processes of a network namespace.
#[derive(Default)]
pub struct Answers {
    /// Those that answered, and what they run.
    pub relays: Vec<(Peer, Vec<AttachmentReport>)>,
    /// What the daemon has to tell.
    pub findings: Vec<Finding>,
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
    is_daemon: bool,
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
                Ok(None) => {}
                Ok(Some(answer)) => {
                    all.findings.extend(answer.findings);
                    all.relays.push((peer, answer.entries));
                }
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
    let relays = sockets.into_iter().map(|socket| Peer { socket, is_daemon: false });
    let daemon = Peer { socket: directory.daemon(&daemon_name(namespace)), is_daemon: true };
    Ok(relays.chain([daemon]).collect())
}

/// The daemon of the namespace, if one runs, and where its relays listen.
///
/// # Errors
/// When there is no way to look for it, or it does not answer.
pub fn daemon(namespace: &Namespace) -> anyhow::Result<Option<(Peer, Vec<RelayPlace>)>> {
    let Some(daemon) = peers(namespace)?.into_iter().find(Peer::is_daemon) else { return Ok(None) };
    let answer = daemon.ask(&Ask::Places)?;
    Ok(answer.map(|answer| (daemon, answer.places)))
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
    let peer = Peer { socket: socket.to_owned(), is_daemon: false };
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
    /// Whether it is the daemon.
    pub fn is_daemon(&self) -> bool {
        self.is_daemon
    }

    /// Keeps these attachments of the daemon off until it is told otherwise. What it relays of them goes on.
    ///
    /// # Errors
    /// When it does not say that it did.
    pub fn hold(&self, names: &[String]) -> anyhow::Result<()> {
        if !names.is_empty() {
            self.ask(&Ask::Hold(names.to_vec()))?;
        }
        Ok(())
    }

    /// Keeps all of the daemon's attachments off until it is told otherwise.
    ///
    /// # Errors
    /// When it does not say that it did.
    pub fn hold_all(&self) -> anyhow::Result<()> {
        self.ask(&Ask::HoldAll)?;
        Ok(())
    }

    /// Has the daemon relay what comes of a request.
    ///
    /// # Errors
    /// When it does not answer, or refuses the request as a whole.
    pub fn attach(&self, request: &Request) -> anyhow::Result<Answer> {
        let answer = self.ask(&Ask::Attach(Box::new(request.clone())))?;
        let Some(answer) = answer else {
            bail!("the daemon ended meanwhile: see `systemctl status bridge-user`")
        };
        match answer.error {
            Some(error) => bail!(error),
            None => Ok(answer),
        }
    }

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
        let deadline = matches!(question, Ask::Status | Ask::Places).then(|| Instant::now() + ANSWER_TIME);
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Who accepts nobody, and who answers something else, are named by their socket and by the pid the kernel knows.
    #[test]
    fn nobody_is_waited_for_without_a_limit_and_nobody_is_believed() {
        let directory = tempfile::tempdir().unwrap();
        let peer = Peer { socket: directory.path().join("s"), is_daemon: false };
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
