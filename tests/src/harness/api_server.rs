//! What stand-ins for an engine have in common: HTTP over a UNIX socket, one request per connection.
//!
//! Invariant: the server ends with its guard, and a client that went away needs no answer.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::Result;
use serde_json::{Value, json};
use tempfile::TempDir;

/// How an answer of any length begins.
pub(super) const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";

/// The server.
pub(crate) struct ApiServer {
    directory: TempDir,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Listens; `respond` gets the path of each request.
    pub(crate) fn start(
        respond: impl Fn(&str, &UnixStream) -> std::io::Result<()> + Send + 'static,
    ) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let listener = UnixListener::bind(directory.path().join("docker.sock"))?;
        let ends = Arc::new(AtomicBool::new(false));
        let is_ended = Arc::clone(&ends);
        let thread = std::thread::spawn(move || serve(&listener, &is_ended, respond));
        Ok(Self { directory, ends, thread: Some(thread) })
    }

    /// Its address, as `DOCKER_HOST` has it.
    pub(crate) fn endpoint(&self) -> String {
        format!("unix://{}/docker.sock", self.directory.path().display())
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // Its last connection.
        drop(UnixStream::connect(self.directory.path().join("docker.sock")));
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("suite: the thread of an engine's stand-in panicked");
        }
    }
}

/// Until it is to end. A connection may ask for nothing: whoever looks which process listens makes one.
fn serve(
    listener: &UnixListener,
    ends: &AtomicBool,
    respond: impl Fn(&str, &UnixStream) -> std::io::Result<()>,
) {
    for stream in listener.incoming().flatten() {
        if ends.load(Ordering::Relaxed) {
            return;
        }
        let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
        let Some(request) = lines.next() else { continue };
        // The headers, which end with an empty line.
        drop(lines.take_while(|line| !line.is_empty()).last());
        drop(respond(request.split(' ').nth(1).unwrap_or_default(), &stream));
    }
}

/// A whole answer.
pub(crate) fn say(mut stream: &UnixStream, body: &str) -> std::io::Result<()> {
    write!(stream, "{HEAD}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// The answer to what every client asks first.
pub(super) fn version() -> Value {
    json!({"ApiVersion": "1.41", "MinAPIVersion": "1.12", "Version": "20.10"})
}
