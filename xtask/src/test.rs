//! `cargo xtask test`: the suites, what became of each, and where the time went.
//!
//! Invariant: of everything together, only what the processors can really do at the same time overlaps: downloads with
//! builds, and guests, of which each keeps one processor busy, with the suites on this machine.

use std::{
    ffi::OsString,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, bail};

use crate::{
    build,
    counts::Counts,
    exec,
    setup::{self, Need},
    ui::{self, Detail},
    vm::{self, Guests, Matrix},
    workspace::{OBJECT_VARIABLE, Profile, Workspace},
};

/// The variable that tells the suite where the Go HTTP server is.
pub(crate) const GO_SERVER_VARIABLE: &str = "BRIDGE_GO_SERVER";

/// Options of the command.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which part to run
    #[arg(value_enum, default_value_t = Suite::All)]
    suite: Suite,
    /// Only tests whose name contains this
    #[arg(last = true)]
    filter: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Suite {
    /// Tests of pure logic and of the relay; one makes a network namespace, which takes root
    Unit,
    /// The tests that need namespaces only, on this machine: what also runs inside VM kernels
    Netns,
    /// The host suite's tests with real Redis and PostgreSQL servers
    Services,
    /// The host suite's tests with a real Docker engine
    Docker,
    /// Everything the host suite has
    Host,
    /// What a kernel can change, inside the VM kernels of the default set
    Vm,
    /// Unit, host and VM kernels
    All,
}

/// What became of one part.
struct Outcome {
    part: &'static str,
    counts: String,
    took: Duration,
    verdict: Result<()>,
}

impl Outcome {
    /// Runs a part; it returns its numbers and its verdict.
    fn of(part: &'static str, run: impl FnOnce() -> (String, Result<()>)) -> Self {
        let start = Instant::now();
        let (counts, verdict) = run();
        Self { part, counts, took: start.elapsed(), verdict }
    }

    fn row(&self) -> [String; 4] {
        let verdict = match &self.verdict {
            Ok(()) => "ok".to_owned(),
            Err(error) => format!("FAILED: {error:#}").lines().next().unwrap_or_default().to_owned(),
        };
        [self.part.to_owned(), self.counts.clone(), minutes(self.took), verdict]
    }
}

/// The command.
pub(crate) fn run(ws: &Workspace, args: &Args) -> Result<()> {
    let start = Instant::now();
    let filter = args.filter.as_deref();
    let outcomes = match args.suite {
        Suite::Unit => vec![unit(ws, filter)],
        Suite::Netns => vec![host(ws, "netns", "namespaces", filter)],
        Suite::Services => vec![host(ws, "services", "host", filter.or(Some("services::")))],
        Suite::Docker => vec![host(ws, "docker", "host", filter.or(Some("docker::")))],
        Suite::Host => vec![host(ws, "host", "host", filter)],
        Suite::Vm => vec![kernels(ws, filter)],
        Suite::All => all(ws, filter),
    };
    summary(&outcomes, start.elapsed())
}

fn summary(outcomes: &[Outcome], total: Duration) -> Result<()> {
    ui::heading("summary");
    let header = ["part", "tests", "minutes", "verdict"].map(str::to_owned);
    let last = ["all, in part at the same time".to_owned(), String::new(), minutes(total), String::new()];
    let rows = [header].into_iter().chain(outcomes.iter().map(Outcome::row)).chain([last]);
    ui::table(&rows.map(Vec::from).collect::<Vec<_>>());
    let failed: Vec<&str> = outcomes.iter().filter(|o| o.verdict.is_err()).map(|o| o.part).collect();
    if !failed.is_empty() {
        bail!("failed to pass the tests: {}", failed.join(", "));
    }
    Ok(())
}

fn minutes(took: Duration) -> String {
    format!("{:.1}", took.as_secs_f64() / 60.0)
}

/// Everything. A guest runs beside the suites of this machine; when those are done, two run side by side.
fn all(ws: &Workspace, filter: Option<&str>) -> Vec<Outcome> {
    ui::result(
        "about half an hour on two processors, and less where everything has been downloaded and built",
    );
    let mut guests = None;
    let setup = Outcome::of("setup and build", || {
        let verdict = prepare(ws, filter).map(|ready| guests = Some(ready));
        (String::new(), verdict)
    });
    let Some(guests) = guests else { return vec![setup] };
    let start = Instant::now();
    let queue = guests.queue();
    let [unit, host] = thread::scope(|scope| {
        scope.spawn(|| queue.work(ws));
        let outcomes = [unit(ws, filter), host(ws, "host", "host", filter)];
        queue.work(ws);
        outcomes
    });
    let (counts, verdict) = judge_kernels(queue.finish());
    vec![setup, unit, host, Outcome { part: "kernels", counts, took: start.elapsed(), verdict }]
}

/// Installs, downloads and builds everything; what waits for the network or the disk does so beside the compiler.
fn prepare(ws: &Workspace, filter: Option<&str>) -> Result<Guests> {
    setup::programs(ws, &[Need::Build], Detail::OnlyWork)?;
    thread::scope(|scope| {
        let fetched = scope.spawn(|| {
            setup::programs(ws, &[Need::HostSuite, Need::Vm], Detail::OnlyWork)?;
            setup::go(ws, Detail::OnlyWork)?;
            setup::engines(ws, Detail::OnlyWork)?;
            vm::fetch(ws)
        });
        let built = build::suite(ws, Profile::Release);
        fetched.join().map_err(|_| anyhow!("failed to install programs: that thread panicked"))?.and(built)
    })?;
    Guests::prepare(ws, filter)
}

fn unit(ws: &Workspace, filter: Option<&str>) -> Outcome {
    Outcome::of("unit", || {
        ui::heading("unit tests");
        let mut counts = Counts::default();
        let verdict = build::ebpf(ws).and_then(|_said| {
            let mut cargo = ws.cargo("test");
            cargo.args([
                "--profile",
                Profile::Quick.name(),
                "--workspace",
                "--exclude",
                "bridge-ebpf",
                "--exclude",
                "bridge-tests",
            ]);
            cargo.arg("--no-fail-fast").arg("--").args(filter);
            judge(&mut cargo, "pass the unit tests", &mut counts)
        });
        (counts.to_string(), verdict)
    })
}

/// Runs a group of the suite on this machine.
fn host(ws: &Workspace, part: &'static str, group: &str, filter: Option<&str>) -> Outcome {
    Outcome::of(part, || {
        ui::heading(&format!("{part} tests on this machine"));
        let mut counts = Counts::default();
        let verdict = prepare_host(ws).and_then(|mut suite| {
            suite.args(["--group", group, "--test-threads=1"]).args(filter);
            judge(&mut suite, "pass the host suite", &mut counts)?;
            if counts.ignored > 0 {
                bail!("failed to run every test: {} were skipped", counts.ignored);
            }
            Ok(())
        });
        (counts.to_string(), verdict)
    })
}

fn prepare_host(ws: &Workspace) -> Result<Command> {
    setup::programs(ws, &[Need::Build, Need::HostSuite], Detail::OnlyWork)?;
    setup::go(ws, Detail::OnlyWork)?;
    setup::engines(ws, Detail::OnlyWork)?;
    build::suite(ws, Profile::Release)?;
    let mut envs = vec![
        ("BRIDGE_USER", OsString::from(ws.program(Profile::Release, "bridge-user"))),
        (OBJECT_VARIABLE, OsString::from(ws.ebpf_object())),
        (GO_SERVER_VARIABLE, OsString::from(setup::go_server(ws))),
    ];
    envs.extend(setup::engine_variables(ws).map(|(name, root)| (name, root.into())));
    if let Some(postgres) = setup::postgres() {
        envs.push(("BRIDGE_POSTGRES", postgres.into()));
    }
    if let Some(busybox) = setup::busybox() {
        envs.push(("BRIDGE_BUSYBOX", busybox.into()));
    }
    exec::as_root(&ws.program(Profile::Release, "suite"), &envs, "run the host suite")
}

/// Runs a test program with its output shown and counted.
fn judge(command: &mut Command, what: &str, counts: &mut Counts) -> Result<()> {
    let status = exec::each_line(command.stdin(Stdio::null()).stdout(Stdio::piped()), what, |line| {
        ui::result(line);
        counts.line(line);
    })?;
    if !status.success() {
        bail!("failed to {what}: {counts}, ended with {status}");
    }
    if counts.results == 0 {
        bail!("failed to {what}: it printed no test result");
    }
    Ok(())
}

fn kernels(ws: &Workspace, filter: Option<&str>) -> Outcome {
    Outcome::of("kernels", || {
        let guests = vm::fetch(ws).and_then(|()| Guests::prepare(ws, filter));
        judge_kernels(guests.and_then(|guests| guests.queue().run(ws, vm::default_jobs())))
    })
}

fn judge_kernels(matrix: Result<Matrix>) -> (String, Result<()>) {
    match matrix {
        Ok(matrix) => (matrix.summary(), matrix.verdict()),
        Err(error) => ("none".to_owned(), Err(error)),
    }
}
