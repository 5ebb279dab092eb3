//! A stand-in for a Docker engine that knows containers on network `app`, bridge `br-a`, which are namespaces of the
//! suite: for kernels in VMs, where there is no Docker.
//!
//! Invariants: it answers the requests that bridge-user makes and nothing else; a run of a container is a process in
//! its namespace, which ends with the next run.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::api_server::{ApiServer, say, version};
use super::netns::Netns;
use super::proc::Guarded;

/// What each container was last inspected as, by name.
type Known = BTreeMap<&'static str, Value>;

/// The stand-in.
pub(crate) struct FakeDocker {
    server: ApiServer,
    answers: Arc<Mutex<Known>>,
    processes: BTreeMap<&'static str, Guarded>,
}

impl FakeDocker {
    /// Listens; no container runs yet.
    pub(crate) fn start() -> Result<Self> {
        let answers = Arc::new(Mutex::new(Known::new()));
        let known = Arc::clone(&answers);
        let server = ApiServer::start(move |path, stream| {
            let known = known.lock().unwrap_or_else(PoisonError::into_inner);
            say(stream, &answer(path, &known).to_string())
        })?;
        Ok(Self { server, answers, processes: BTreeMap::new() })
    }

    /// The engine's address, as `DOCKER_HOST` has it.
    pub(crate) fn endpoint(&self) -> String {
        self.server.endpoint()
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
