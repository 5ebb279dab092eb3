//! A stand-in for a Docker engine that knows containers on network `app`, bridge `br-a`, which are namespaces of the
//! suite: for kernels in VMs, where there is no Docker.
//!
//! Invariants: it answers the requests that bridge-user makes and nothing else; a run of a container is a process in
//! its namespace, which ends with the next run.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::netns::Netns;
use super::proc::Guarded;

/// What each container was last inspected as, by name.
type Known = BTreeMap<&'static str, Value>;

/// The stand-in.
pub(crate) struct FakeDocker {
    directory: TempDir,
    answers: Arc<Mutex<Known>>,
    processes: BTreeMap<&'static str, Guarded>,
    server: Option<JoinHandle<()>>,
}

impl FakeDocker {
    /// Listens; no container runs yet.
    pub(crate) fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let listener = UnixListener::bind(directory.path().join("docker.sock"))?;
        let answers = Arc::new(Mutex::new(Known::new()));
        let known = Arc::clone(&answers);
        let server = std::thread::spawn(move || {
            serve(&listener, |path, stream| {
                let known = known.lock().unwrap_or_else(PoisonError::into_inner);
                say(stream, &answer(path, &known).to_string())
            });
        });
        Ok(Self { directory, answers, processes: BTreeMap::new(), server: Some(server) })
    }

    /// The engine's address, as `DOCKER_HOST` has it.
    pub(crate) fn endpoint(&self) -> String {
        format!("unix://{}/docker.sock", self.directory.path().display())
    }

    /// Begins a run of container `web` in a namespace, and ends the run before it.
    pub(crate) fn run_container(&mut self, netns: &Netns, address: Ipv4Addr) -> Result<()> {
        self.run("web", netns, address)
    }

    /// Begins a run of a container in a namespace, and ends the run before it.
    pub(crate) fn run(&mut self, name: &'static str, netns: &Netns, address: Ipv4Addr) -> Result<()> {
        let child = netns.spawn(Command::new("sleep").arg("1000000")).context("failed to run sleep")?;
        let process = Guarded::new(child);
        let networks = json!({"app": {"NetworkID": "aa11", "IPAddress": address.to_string()}});
        let pid = process.pid();
        let inspected = json!({
            "Id": id(name),
            "State": {"Status": "running", "Running": true, "Pid": pid, "StartedAt": format!("run {pid}")},
            "HostConfig": {"NetworkMode": "app"},
            "NetworkSettings": {"Networks": networks},
        });
        self.processes.insert(name, process);
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).insert(name, inspected);
        Ok(())
    }
}

impl Drop for FakeDocker {
    fn drop(&mut self) {
        // A connection that asks for nothing ends the server.
        drop(UnixStream::connect(self.directory.path().join("docker.sock")));
        if self.server.take().is_some_and(|server| server.join().is_err()) {
            eprintln!("suite: the thread of the Docker stand-in panicked");
        }
    }
}

/// One request per connection, until one asks for nothing; `respond` gets the path. A client that went away needs no
/// answer.
pub(super) fn serve(listener: &UnixListener, respond: impl Fn(&str, &UnixStream) -> std::io::Result<()>) {
    for stream in listener.incoming().flatten() {
        let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
        let Some(request) = lines.next() else { return };
        // The headers, which end with an empty line.
        drop(lines.take_while(|line| !line.is_empty()).last());
        drop(respond(request.split(' ').nth(1).unwrap_or_default(), &stream));
    }
}

/// What comes before the length and the body.
const HEAD: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: ";

/// A whole answer.
pub(super) fn say(mut stream: &UnixStream, body: &str) -> std::io::Result<()> {
    write!(stream, "{HEAD}{}\r\n\r\n{body}", body.len())
}

/// The answer to what every client asks first.
pub(super) fn version() -> Value {
    json!({"ApiVersion": "1.41", "MinAPIVersion": "1.12", "Version": "20.10"})
}

/// 64 hexadecimal digits that only this name has.
fn id(name: &str) -> String {
    let digits: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("{digits:0<64}")
}

fn answer(path: &str, known: &Known) -> Value {
    if path.ends_with("/version") {
        return version();
    }
    if path.contains("/networks") {
        let options = json!({"com.docker.network.bridge.name": "br-a"});
        return json!([{"Id": "aa11", "Name": "app", "Driver": "bridge", "Options": options}]);
    }
    if let Some((_, inspected)) = known.iter().find(|(name, _)| path.contains(&id(name))) {
        return inspected.clone();
    }
    let summary = |(name, inspected): (&&str, &Value)| {
        let (names, settings) = (json!([format!("/{name}")]), &inspected["NetworkSettings"]);
        json!({"Id": id(name), "Names": names, "State": "running", "NetworkSettings": settings})
    };
    Value::Array(known.iter().map(summary).collect())
}
