//! How other processes find and ask the relays of a network namespace: a UNIX socket with an abstract name.
//!
//! Invariants: abstract names belong to a network namespace and vanish with their process, so a killed relay leaves
//! nothing; one request and one answer per connection, each a line of JSON; both sides accept only root and their own
//! user on the other side (SO_PEERCRED), because anybody in the namespace may bind or connect to an abstract name. For
//! the same reason nothing is waited for without a limit, and every process is asked at the same time.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    os::{
        fd::AsFd,
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt};
use serde::{Deserialize, Serialize};

use crate::{
    model::{codes, finding::Finding},
    net::namespace::Namespace,
    observe::report::AttachmentReport,
};

/// Every relay process listens on this plus its pid.
const PREFIX: &str = "bridge-user/relay/";
/// How long a relay process may take to answer a question. On a host with nothing to spare it is seconds.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// How long to wait where others wait to be accepted already. A relay accepts at once.
const REACH_TIME: Duration = Duration::from_secs(2);
/// Longest request, in bytes.
const MAX_REQUEST: u64 = 1024 * 1024;

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
pub struct Answers {
    /// Those that answered, and what they run.
    pub relays: Vec<(Peer, Vec<AttachmentReport>)>,
    /// Why others do not answer; each is a [`SilentRelay`].
    pub silent: Vec<anyhow::Error>,
}

/// A relay process that does not answer, or not in a way this version understands.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SilentRelay(Box<Finding>);

impl SilentRelay {
    /// What an error says, if it is one of these.
    pub fn finding(error: &anyhow::Error) -> Option<Finding> {
        error.downcast_ref::<Self>().map(|Self(finding)| Finding::clone(finding))
    }
}

/// A relay process of a network namespace.
pub struct Peer {
    namespace: Namespace,
    address: SocketAddr,
}

/// Binds this process's socket in the namespace.
///
/// # Errors
/// When the name is taken, which another process must have done on purpose.
pub fn listen(namespace: &Namespace) -> anyhow::Result<UnixListener> {
    let name = format!("{PREFIX}{}", std::process::id());
    let failed = || {
        format!(
            "failed to listen on the abstract UNIX socket @{name}: if another program took that name, attach again"
        )
    };
    let address = SocketAddr::from_abstract_name(&name).with_context(failed)?;
    namespace.run(|| UnixListener::bind_addr(&address))?.with_context(failed)
}

/// Reads the request of a connection; `None` if another user's process is on the other side.
///
/// # Errors
/// When it sends no request.
pub fn read_request(stream: &UnixStream) -> anyhow::Result<Option<Ask>> {
    if !trusted(stream)? {
        return Ok(None);
    }
    stream.set_read_timeout(Some(ANSWER_TIME))?;
    let mut line = String::new();
    io::Read::take(BufReader::new(stream), MAX_REQUEST).read_line(&mut line)?;
    serde_json::from_str(&line).context("the request is not understood").map(Some)
}

/// Answers a request.
///
/// # Errors
/// When the asker has gone.
pub fn write_answer(mut stream: &UnixStream, entries: Vec<AttachmentReport>) -> anyhow::Result<()> {
    stream.write_all(format!("{}\n", serde_json::to_string(&Answer { entries })?).as_bytes())?;
    Ok(())
}

/// Asks every relay process of the network namespace what it runs. Those that have gone, or are not to be
/// trusted, are left out.
///
/// # Errors
/// When /proc cannot be read.
pub fn ask_all(namespace: &Namespace) -> anyhow::Result<Answers> {
    let peers = peers(namespace)?;
    let answers: Vec<_> = thread::scope(|scope| {
        let asked: Vec<_> = peers.iter().map(|peer| scope.spawn(|| peer.ask(&Ask::Status))).collect();
        asked.into_iter().map(|thread| thread.join().unwrap_or(Ok(None))).collect()
    });
    let mut all = Answers { relays: Vec::new(), silent: Vec::new() };
    for (peer, answer) in peers.into_iter().zip(answers) {
        match answer {
            Ok(answer) => all.relays.extend(answer.map(|answer| (peer, answer.entries))),
            Err(error) => all.silent.push(error.into()),
        }
    }
    Ok(all)
}

fn peers(namespace: &Namespace) -> anyhow::Result<Vec<Peer>> {
    let table = namespace
        .run(|| fs::read_to_string("/proc/thread-self/net/unix"))?
        .context("failed to read /proc/thread-self/net/unix: is /proc mounted?")?;
    let peer = |name| {
        let address = SocketAddr::from_abstract_name(name).ok()?;
        Some(Peer { namespace: namespace.clone(), address })
    };
    Ok(listening_names(&table).filter_map(peer).collect())
}

/// The abstract names of relay processes in the text of /proc/net/unix. Connections to them show the same name, without
/// the flag of a listener (`__SO_ACCEPTCON`).
fn listening_names(table: &str) -> impl Iterator<Item = &str> {
    table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let name = fields.get(7)?.strip_prefix('@')?;
        (fields[3] == "00010000" && name.starts_with(PREFIX)).then_some(name)
    })
}

/// Stops these attachments of a relay process, and waits until they are drained.
///
/// # Errors
/// When it does not say that it did, and goes on.
pub fn stop(namespace: &Namespace, process: u32, names: &[String]) -> anyhow::Result<()> {
    let address = SocketAddr::from_abstract_name(format!("{PREFIX}{process}"))?;
    Peer { namespace: namespace.clone(), address }.stop(names)
}

impl Peer {
    /// The process's id, which its name ends with.
    ///
    /// # Errors
    /// When it ends with something else: no relay process made that name.
    pub fn process(&self) -> anyhow::Result<u32> {
        let name = self.name();
        let number = name.rsplit('/').next().and_then(|number| number.parse().ok());
        number.with_context(|| format!("failed to read the process id of {name}: end who has that name"))
    }

    /// Asks, and waits for the answer; `None` if the process ended meanwhile or is not to be trusted.
    ///
    /// # Errors
    /// When it does not answer in time, or not in a way this version understands.
    fn ask(&self, question: &Ask) -> Result<Option<Answer>, SilentRelay> {
        self.exchange(question).map_err(|error| self.silent(&error))
    }

    fn exchange(&self, question: &Ask) -> anyhow::Result<Option<Answer>> {
        let Some(mut stream) = self.connect()? else { return Ok(None) };
        // Draining takes as long as the relay was told to wait.
        let patience = (*question == Ask::Status).then_some(ANSWER_TIME);
        stream.set_read_timeout(patience)?;
        let mut line = String::new();
        let exchanged = stream
            .write_all(format!("{}\n", serde_json::to_string(question)?).as_bytes())
            .and_then(|()| BufReader::new(&stream).read_line(&mut line));
        match exchanged {
            Ok(0) => Ok(None),
            Err(error) if is_gone(&error) => Ok(None),
            result => {
                result?;
                let answer = serde_json::from_str(&line);
                answer.context("its answer is not understood, is it another version?").map(Some)
            }
        }
    }

    fn stop(&self, names: &[String]) -> anyhow::Result<()> {
        if self.ask(&Ask::Stop(names.to_vec()))?.is_some() {
            return Ok(());
        }
        // A process that ended meanwhile relays nothing any more; its sockets close one after the other.
        let deadline = Instant::now() + REACH_TIME;
        while peers(&self.namespace)?.iter().any(|peer| peer.name() == self.name()) {
            ensure!(
                Instant::now() < deadline,
                "relay process {} gave no answer: try again, or end it (kill -KILL, the number is its pid)",
                self.name()
            );
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn connect(&self) -> anyhow::Result<Option<UnixStream>> {
        match self.reach() {
            Ok(stream) => Ok(trusted(&stream)?.then_some(stream)),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn silent(&self, error: &anyhow::Error) -> SilentRelay {
        let name = self.name();
        let cause = format!("failed to ask relay process {name} (the number is its pid): {error:#}");
        let cure = "let it go on if it was stopped (kill -CONT), or end it (kill -KILL), then try again";
        SilentRelay(Box::new(codes::RELAY_SILENT.finding(name, cause, cure)))
    }

    fn reach(&self) -> io::Result<UnixStream> {
        // Names are looked up in the namespace of the socket.
        let socket = self
            .namespace
            .run(|| socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None))??;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(REACH_TIME))?;
        let name = self.address.as_abstract_name().unwrap_or_default();
        connect(&socket, &SocketAddrUnix::new_abstract_name(name)?)?;
        Ok(socket.into())
    }

    fn name(&self) -> String {
        format!("@{}", String::from_utf8_lossy(self.address.as_abstract_name().unwrap_or_default()))
    }
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionRefused | ConnectionReset | BrokenPipe)
}

fn trusted(stream: impl AsFd) -> anyhow::Result<bool> {
    let peer = getsockopt(&stream, PeerCredentials).context("failed to read SO_PEERCRED")?;
    Ok(peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_listening_relays_only() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                     0000: 00000002 00000000 00010000 0001 01 17 @bridge-user/relay/7\n\
                     0000: 00000003 00000000 00000000 0001 03 18 @bridge-user/relay/7\n\
                     0000: 00000002 00000000 00010000 0001 01 19 /run/bridge-user/relay/8\n\
                     0000: 00000002 00000000 00010000 0001 01 20 @other\n\
                     0000: 00000002 00000000 00010000 0001 01 21\n";
        assert_eq!(listening_names(table).collect::<Vec<_>>(), ["bridge-user/relay/7"]);
    }

    /// Anybody can bind a name like a relay's, and let connections to it wait for ever.
    #[test]
    fn nobody_is_waited_for_without_a_limit() {
        let name = format!("{PREFIX}nobody-accepts-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        // No room but for one: what waits there already is not accepted either.
        rustix::net::listen(&listener, 0).unwrap();
        let _first = UnixStream::connect_addr(&address).unwrap();
        let error = Peer { namespace: Namespace::current().unwrap(), address }.ask(&Ask::Status).unwrap_err();
        assert!(format!("{error:#}").contains(&name), "{error:#}");
    }

    #[test]
    fn requests_and_answers_cross_the_socket() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&ours).write_all(b"{\"stop\":[\"a\"]}\n").unwrap();
        assert_eq!(read_request(&theirs).unwrap(), Some(Ask::Stop(vec!["a".into()])));
        (&ours).write_all(b"nonsense\n").unwrap();
        assert!(read_request(&theirs).is_err());
    }
}
