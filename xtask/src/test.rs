//! `cargo xtask test`: the suites, one after the other, and what became of each.

use std::{
    ffi::OsString,
    process::{Command, Stdio},
};

use anyhow::{Result, bail};

use crate::{
    build,
    counts::Counts,
    exec,
    setup::{self, Need},
    ui::{self, Detail},
    vm,
    workspace::{OBJECT_VARIABLE, Workspace},
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
    /// Tests of pure logic, no privileges
    Unit,
    /// The tests that need namespaces only, on this machine: what also runs inside VM kernels
    Netns,
    /// The host suite's tests with real Redis and PostgreSQL servers
    Services,
    /// The host suite's tests with a real Docker engine
    Docker,
    /// Everything the host suite has
    Host,
    /// The suite inside VM kernels, the default set
    Vm,
    /// Unit, host and VM kernels
    All,
}

/// What became of one part.
struct Outcome {
    part: &'static str,
    counts: String,
    verdict: Result<()>,
}

/// The command.
pub(crate) fn run(ws: &Workspace, args: &Args) -> Result<()> {
    let filter = args.filter.as_deref();
    let outcomes = match args.suite {
        Suite::Unit => vec![unit(ws, filter)],
        Suite::Netns => vec![host(ws, "netns", "vm", filter)],
        Suite::Services => vec![host(ws, "services", "host", filter.or(Some("services::")))],
        Suite::Docker => vec![host(ws, "docker", "host", filter.or(Some("docker::")))],
        Suite::Host => vec![host(ws, "host", "host", filter)],
        Suite::Vm => vec![kernels(ws, filter)],
        Suite::All => vec![unit(ws, filter), host(ws, "host", "host", filter), kernels(ws, filter)],
    };
    summary(&outcomes)
}

fn summary(outcomes: &[Outcome]) -> Result<()> {
    ui::heading("summary");
    let mut rows = vec![["part", "tests", "verdict"].map(str::to_owned).to_vec()];
    rows.extend(outcomes.iter().map(|outcome| {
        let verdict = match &outcome.verdict {
            Ok(()) => "ok".to_owned(),
            Err(error) => format!("FAILED: {error:#}").lines().next().unwrap_or_default().to_owned(),
        };
        vec![outcome.part.to_owned(), outcome.counts.clone(), verdict]
    }));
    ui::table(&rows);
    let failed: Vec<&str> = outcomes.iter().filter(|o| o.verdict.is_err()).map(|o| o.part).collect();
    if !failed.is_empty() {
        bail!("failed to pass the tests: {}", failed.join(", "));
    }
    Ok(())
}

fn unit(ws: &Workspace, filter: Option<&str>) -> Outcome {
    ui::heading("unit tests");
    let mut counts = Counts::default();
    let verdict = build::ebpf(ws).and_then(|_said| {
        let mut cargo = ws.cargo("test");
        cargo.args(["--workspace", "--exclude", "bridge-ebpf", "--exclude", "bridge-tests"]);
        cargo.arg("--no-fail-fast").arg("--").args(filter);
        judge(&mut cargo, "pass the unit tests", &mut counts)
    });
    Outcome { part: "unit", counts: counts.to_string(), verdict }
}

/// Runs a group of the suite on this machine.
fn host(ws: &Workspace, part: &'static str, group: &str, filter: Option<&str>) -> Outcome {
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
    Outcome { part, counts: counts.to_string(), verdict }
}

fn prepare_host(ws: &Workspace) -> Result<Command> {
    setup::programs(ws, &[Need::Build, Need::HostSuite], Detail::OnlyWork)?;
    setup::go(ws, Detail::OnlyWork)?;
    build_suite(ws)?;
    let mut envs = vec![
        ("BRIDGE_USER", OsString::from(ws.release("bridge-user"))),
        (OBJECT_VARIABLE, OsString::from(ws.ebpf_object())),
        (GO_SERVER_VARIABLE, OsString::from(setup::go_server(ws))),
    ];
    if let Some(postgres) = setup::postgres() {
        envs.push(("BRIDGE_POSTGRES", postgres.into()));
    }
    if let Some(busybox) = setup::busybox() {
        envs.push(("BRIDGE_BUSYBOX", busybox.into()));
    }
    exec::as_root(&ws.release("suite"), &envs, "run the host suite")
}

/// Builds `bridge-user` and the suite that tests it.
pub(crate) fn build_suite(ws: &Workspace) -> Result<()> {
    build::run(ws, &build::Args::default())?;
    let mut cargo = ws.cargo("build");
    exec::run(cargo.args(["--release", "--package", "bridge-tests", "--bin", "suite"]), "build the suite")
}

/// Runs a test program with its output shown and counted.
fn judge(command: &mut Command, what: &str, counts: &mut Counts) -> Result<()> {
    let status = exec::each_line(command.stdin(Stdio::null()).stdout(Stdio::piped()), what, |line| {
        println!("{line}");
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
    match vm::default_set(ws, filter) {
        Ok(report) => Outcome { part: "vm", counts: report.summary(), verdict: report.verdict() },
        Err(error) => Outcome { part: "vm", counts: "none".to_owned(), verdict: Err(error) },
    }
}
