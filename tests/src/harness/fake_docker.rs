//! A stand-in for a Docker engine that knows one container, `web` on network `app`, which is a namespace of the
//! suite: for kernels in VMs, where there is no Docker.
//!
//! Invariants: it answers the four requests that bridge-user makes and nothing else; a run of the container is a
//! process in its namespace, which ends with the next run.

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

const ID: &str = "c0ffee0123456789c0ffee0123456789c0ffee0123456789c0ffee0123456789";

/// The stand-in.
pub(crate) struct FakeDocker {
    directory: TempDir,
    answers: Arc<Mutex<Option<Value>>>,
    process: Option<Guarded>,
    server: Option<JoinHandle<()>>,
}

impl FakeDocker {
    /// Listens; the container does not run yet.
    pub(crate) fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let listener = UnixListener::bind(directory.path().join("docker.sock"))?;
        let answers = Arc::new(Mutex::new(None));
        let known = Arc::clone(&answers);
        let server = std::thread::spawn(move || serve(&listener, &known));
        Ok(Self { directory, answers, process: None, server: Some(server) })
    }

    /// The engine's address, as `DOCKER_HOST` has it.
    pub(crate) fn endpoint(&self) -> String {
        format!("unix://{}/docker.sock", self.directory.path().display())
    }

    /// Begins a run of the container in a namespace, and ends the run before it.
    pub(crate) fn run_container(&mut self, netns: &Netns, address: Ipv4Addr) -> Result<()> {
        let child = netns.spawn(Command::new("sleep").arg("1000000")).context("failed to run sleep")?;
        let process = self.process.insert(Guarded::new(child));
        let networks = json!({"app": {"NetworkID": "aa11", "IPAddress": address.to_string()}});
        let pid = process.pid();
        let inspected = json!({
            "Id": ID,
            "State": {"Status": "running", "Running": true, "Pid": pid, "StartedAt": format!("run {pid}")},
            "HostConfig": {"NetworkMode": "app"},
            "NetworkSettings": {"Networks": networks},
        });
        *self.answers.lock().unwrap_or_else(PoisonError::into_inner) = Some(inspected);
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

/// One request per connection, until one asks for nothing.
fn serve(listener: &UnixListener, known: &Mutex<Option<Value>>) {
    for stream in listener.incoming().flatten() {
        let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
        let Some(request) = lines.next() else { return };
        // The headers, which end with an empty line.
        drop(lines.take_while(|line| !line.is_empty()).last());
        let path = request.split(' ').nth(1).unwrap_or_default();
        let body = answer(path, known.lock().unwrap_or_else(PoisonError::into_inner).as_ref()).to_string();
        let head =
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: ";
        // A client that went away needs no answer.
        drop(write!(&stream, "{head}{}\r\n\r\n{body}", body.len()));
    }
}

fn answer(path: &str, inspected: Option<&Value>) -> Value {
    if path.ends_with("/version") {
        return json!({"ApiVersion": "1.41", "MinAPIVersion": "1.12", "Version": "20.10"});
    }
    let Some(inspected) = inspected else { return json!([]) };
    if path.contains(ID) {
        return inspected.clone();
    }
    json!([{"Id": ID, "Names": ["/web"], "State": "running", "NetworkSettings": inspected["NetworkSettings"]}])
}
