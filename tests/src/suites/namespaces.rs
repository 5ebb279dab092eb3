//! `namespaces::*`: one process serves several network namespaces from several threads.
//!
//! Invariants: the library runs in this process. Both namespaces have the same names, addresses and ports, so what
//! was done in the wrong one would bring a container to the other's service, or to none. The threads stand in no
//! namespace in particular, in their own, and in the other's. Each has a bpffs of its own, which nobody else sees: it
//! is mounted in a mount namespace that ends with its thread.

use std::ffi::OsString;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use bridge_user::{
    Namespace, Roots, Scope,
    cli::{self, Out},
};
use tempfile::TempDir;

use super::Test;
use crate::harness::cli::{Attachment, attachments};
use crate::harness::client::{answers, refused};
use crate::harness::mounts::leave_mounts;
use crate::harness::rig::Moved;
use crate::harness::service::Service;
use crate::harness::sys::mptcp_listener;
use crate::harness::topology::{A1, GATEWAY_A, Topology, at, local};
use crate::harness::transcript::note;

pub(super) const TESTS: &[Test] =
    &[Test::on_host("namespaces::two_threads_serve_two_of_them_at_once", two_at_once)];

/// Each place to stand in comes up twice.
const ROUNDS: usize = 6;
/// Attached in both namespaces: a service that listens before, which the attach registers.
const EARLY: u16 = 7000;
/// Attached in both: one that begins to listen when it is attached already, which the kernel notices.
const LATE: u16 = 7001;
/// Attached in one of them only: an MPTCP listener, which takes the tc program.
const ONLY: [u16; 2] = [7002, 7003];

fn two_at_once() -> Result<()> {
    let (one, other) = (Topology::new()?, Topology::new()?);
    let together = Barrier::new(2);
    thread::scope(|scope| {
        let threads = [
            scope.spawn(|| serve(&one, &other, ONLY, &together)),
            scope.spawn(|| serve(&other, &one, [ONLY[1], ONLY[0]], &together)),
        ];
        threads.map(|thread| thread.join().map_err(|_| anyhow!("a serving thread panicked"))?)
    })
    .into_iter()
    .collect()
}

/// Serves a namespace in step with the other thread, which is not left waiting when something fails here.
fn serve(net: &Topology, other: &Topology, [only, elsewhere]: [u16; 2], together: &Barrier) -> Result<()> {
    let side = Side::new(net, other, only, elsewhere);
    let mut outcome = side.as_ref().map(drop).map_err(|error| anyhow!("{error:#}"));
    for round in 0..ROUNDS {
        for (what, step) in STEPS {
            together.wait();
            if let (Ok(side), true) = (&side, outcome.is_ok()) {
                let done = catch_unwind(AssertUnwindSafe(|| step(side, Stand::of(round))));
                let done = done.unwrap_or_else(|_| Err(anyhow!("it panicked")));
                outcome = done.with_context(|| format!("round {round}, {:?}: {what}", Stand::of(round)));
            }
        }
    }
    outcome
}

type Step = fn(&Side<'_>, Stand) -> Result<()>;

/// What a round consists of; both threads are in the same step.
const STEPS: [(&str, Step); 3] = [
    ("attach", |side, stand| side.attach(stand)),
    ("reach", |side, stand| side.reach(stand)),
    ("detach", |side, stand| side.detach(stand)),
];

/// Where a thread is that calls the library.
#[derive(Clone, Copy, Debug)]
enum Stand {
    Neither,
    Other,
    Own,
}

impl Stand {
    fn of(round: usize) -> Self {
        [Self::Neither, Self::Other, Self::Own][round % 3]
    }
}

/// One of the two namespaces, with its services, as one thread serves it.
struct Side<'a> {
    net: &'a Topology,
    other: &'a Topology,
    only: u16,
    elsewhere: u16,
    early: Service,
    mptcp: Service,
    scope: Scope,
    bpffs: TempDir,
}

impl<'a> Side<'a> {
    fn new(net: &'a Topology, other: &'a Topology, only: u16, elsewhere: u16) -> Result<Self> {
        leave_mounts()?;
        let bpffs = tempfile::tempdir()?;
        let roots = Roots::new(bpffs.path(), cgroup_root()?);
        let scope = Scope { namespace: net.host.run(Namespace::current)?, roots };
        net.host.sysctl("net/mptcp/enabled", "1")?;
        let early = Service::start(&net.host, local(EARLY))?;
        let mptcp = Service::serve(net.host.run(|| mptcp_listener(local(only)))?)?;
        Ok(Self { net, other, only, elsewhere, early, mptcp, scope, bpffs })
    }

    /// Runs a command line of the library for this side's namespace; returns what it printed.
    fn bridge_user(&self, stand: Stand, arguments: &[&str]) -> Result<String> {
        let (stdout, stderr) = (Sink::default(), Sink::default());
        let out = Out::new(stdout.clone(), stderr.clone());
        let command = ["bridge-user"].iter().chain(arguments).map(OsString::from);
        let run = || cli::run(command, || Ok(self.scope.clone()), &out);
        let code = match stand {
            Stand::Neither => run(),
            Stand::Other => self.other.host.run(run),
            Stand::Own => self.net.host.run(run),
        };
        let (printed, said) = (stdout.text(), stderr.text());
        note(format!("$ bridge-user {} ({stand:?}) -> {code:?}\n{printed}{said}", arguments.join(" ")));
        ensure!(code == ExitCode::SUCCESS, "bridge-user {}: {said}", arguments.join(" "));
        Ok(printed)
    }

    fn status(&self, stand: Stand) -> Result<Vec<Attachment>> {
        attachments(&self.bridge_user(stand, &["status", "--output", "json"])?)
    }

    fn attach(&self, stand: Stand) -> Result<()> {
        for port in [EARLY, LATE, self.only] {
            self.bridge_user(stand, &["attach", &port.to_string(), "--bridge", "br-a"])?;
        }
        let names: Vec<_> = self.status(stand)?.into_iter().map(|attachment| attachment.name).collect();
        let expected = [EARLY, LATE, self.only].map(|port| format!("br-a-tcp-{port}"));
        ensure!(names == expected, "{names:?} are attached, expected {expected:?}");
        Ok(())
    }

    /// Containers of this namespace reach its services, each once, and nothing of the other's.
    fn reach(&self, stand: Stand) -> Result<()> {
        self.expect_served(stand, EARLY, "steer", &self.early)?;
        self.expect_served(stand, self.only, "steer-tc", &self.mptcp)?;
        let late = Service::start(&self.net.host, local(LATE))?;
        self.expect_served(stand, LATE, "steer", &late)?;
        refused(&self.net.a1, at(GATEWAY_A, self.elsewhere)).context("what only the other namespace attached")
    }

    /// One connection to `port` is served by `service` and by nobody else, on that datapath.
    fn expect_served(&self, stand: Stand, port: u16, datapath: &str, service: &Service) -> Result<()> {
        let seen = service.peers().len();
        let strays = self.net.strays()?;
        let before = self.find(stand, port)?;
        let client = answers(&self.net.a1, at(GATEWAY_A, port)).with_context(|| format!("port {port}"))?;
        let after = self.find(stand, port)?;
        ensure!(after.datapath == datapath && after.state == "ready", "not ready with {datapath}: {after:?}");
        let moved = after.counters.since(before.counters).context("counters went backwards")?;
        moved.compare(Moved::accepted(1), || Ok(self.net.strays()? - strays))?;
        let peers = service.peers();
        ensure!(peers.len() == seen + 1, "the service on {port} saw {} more clients", peers.len() - seen);
        ensure!(peers[seen].remote == client && client.ip() == A1, "the service saw {:?}", peers[seen]);
        Ok(())
    }

    fn find(&self, stand: Stand, port: u16) -> Result<Attachment> {
        let name = format!("br-a-tcp-{port}");
        let found = self.status(stand)?.into_iter().find(|attachment| attachment.name == name);
        found.with_context(|| format!("status shows no attachment {name}"))
    }

    /// Both ways to detach, after which nothing is left in this namespace, whatever the other thread does meanwhile.
    fn detach(&self, stand: Stand) -> Result<()> {
        let printed = self.bridge_user(stand, &["detach", &self.only.to_string()])?;
        ensure!(printed == format!("detached br-a-tcp-{}\n", self.only), "it printed {printed}");
        refused(&self.net.a1, at(GATEWAY_A, self.only))?;
        answers(&self.net.a1, at(GATEWAY_A, EARLY))?;
        self.bridge_user(stand, &["detach", "--all"])?;
        refused(&self.net.a1, at(GATEWAY_A, EARLY))?;
        let pins = self.bpffs.path().join("bridge-user");
        ensure!(!pins.exists(), "{} is left", pins.display());
        Ok(())
    }
}

/// Where cgroup v2 is mounted.
fn cgroup_root() -> Result<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = fields.find(|fields| fields.get(2) == Some(&"cgroup2"));
    Ok(found.context("cgroup v2 is not mounted")?[1].to_owned())
}

/// Keeps what is written.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
