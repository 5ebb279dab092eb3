//! A stand-in for an engine that answers oddly: with any text, or without an end.
//!
//! Invariant: it ends with its guard; an answer without an end lasts as long as somebody reads it.

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;

use anyhow::Result;
use tempfile::TempDir;

use super::fake_docker::{say, serve, version};

/// What it answers to everything but the question for its version.
#[derive(Clone)]
pub(crate) enum Answer {
    Text(String),
    /// A list that begins and never ends.
    Endless,
}

/// The stand-in.
pub(crate) struct OddEngine {
    directory: TempDir,
    server: Option<JoinHandle<()>>,
}

impl OddEngine {
    /// Listens, and gives this answer.
    pub(crate) fn start(answer: Answer) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let listener = UnixListener::bind(directory.path().join("docker.sock"))?;
        let server = std::thread::spawn(move || {
            serve(&listener, |path, stream| match &answer {
                _ if path.ends_with("/version") => say(stream, &version().to_string()),
                Answer::Text(text) => say(stream, text),
                Answer::Endless => never_end(stream),
            });
        });
        Ok(Self { directory, server: Some(server) })
    }

    /// The engine's address, as `DOCKER_HOST` has it.
    pub(crate) fn endpoint(&self) -> String {
        format!("unix://{}/docker.sock", self.directory.path().display())
    }
}

impl Drop for OddEngine {
    fn drop(&mut self) {
        // A connection that asks for nothing ends the server.
        drop(UnixStream::connect(self.directory.path().join("docker.sock")));
        if self.server.take().is_some_and(|server| server.join().is_err()) {
            eprintln!("suite: the thread of an odd engine panicked");
        }
    }
}

fn never_end(mut stream: &UnixStream) -> std::io::Result<()> {
    let more = [b' '; 64 * 1024];
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n[")?;
    loop {
        stream.write_all(&more)?;
    }
}
