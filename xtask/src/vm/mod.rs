//! `cargo xtask vm`: the privileged suite inside other kernels, under QEMU.

mod archive;
mod boot;
mod console;
mod cpio;
mod emulator;
mod full;
mod initramfs;
mod manifest;
mod modules;
mod record;
mod seen;
pub(crate) mod table;
mod update;

use std::{
    fs,
    num::NonZero,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build,
    setup::{self, Need},
    ui::{self, Detail},
    workspace::{Profile, Workspace},
};
use boot::{Accelerator, Report};
use console::Scope;
use full::{Candidate, FullRuns};
use initramfs::{Group, Payload};
use manifest::{Kernel, Manifest};
use seen::Seen;

const KERNELS: &str = "tests/kernels.toml";
const SEEN: &str = "tests/kernels-seen.toml";
const FULL: &str = "tests/kernels-full.toml";

/// Options of the command.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Kernels by the names --list shows [default: the default set]
    kernels: Vec<String>,
    /// Run every kernel in tests/kernels.toml
    #[arg(long, conflicts_with = "kernels")]
    all: bool,
    /// List the kernels and do nothing
    #[arg(long)]
    list: bool,
    /// Take the newest version of the named kernels' series: rewrites tests/kernels.toml, boots nothing
    #[arg(long, requires = "kernels")]
    update: bool,
    /// Keep what these kernels served in tests/kernels-seen.toml and docs/kernels.md, and do not compare
    #[arg(long, conflicts_with_all = ["list", "update", "suite"])]
    record: bool,
    /// Run every trial a guest can run, not only those a kernel can change, and keep what passed in
    /// tests/kernels-full.toml and docs/kernels.md. Kernels in which the same programs passed already are left out
    #[arg(long, conflicts_with_all = ["list", "update", "suite", "record"])]
    full: bool,
    /// With --full, run also where the same programs passed already
    #[arg(long, requires = "full")]
    again: bool,
    /// Run this program in place of the suite, with the same protocol
    #[arg(long, value_name = "PROGRAM")]
    suite: Option<PathBuf>,
    /// How many kernels run at a time [default: one per processor of this machine, at most 4]
    #[arg(long, value_name = "NUMBER")]
    jobs: Option<NonZero<usize>>,
    /// Let the processor execute the guests through /dev/kvm, where that works
    #[arg(long)]
    kvm: bool,
    /// Only tests whose name contains this
    #[arg(last = true)]
    filter: Option<String>,
}

/// The command.
pub(crate) fn run(ws: &Workspace, args: &Args) -> Result<()> {
    let path = ws.path(KERNELS);
    let mut manifest = Manifest::read(&path)?;
    if args.list {
        list(&manifest);
        return Ok(());
    }
    if args.update {
        return update::run(ws, &mut manifest, &args.kernels, &path);
    }
    let mut kernels = manifest.select(&args.kernels, args.all)?;
    setup::programs(ws, &[Need::Build, Need::Vm], Detail::OnlyWork)?;
    let recorded = Seen::read(&ws.path(SEEN))?;
    let payload = payload(ws, args)?;
    let recorder = if args.full && args.filter.is_none() { Recorder::start(ws, &manifest)? } else { None };
    if let Some(recorder) = recorder.as_ref().filter(|_| !args.again) {
        kernels.retain(|kernel| !recorder.passed_already(kernel));
        if kernels.is_empty() {
            ui::result(
                "every trial has passed in these kernels, with these very programs (--again runs them again)",
            );
            return Ok(());
        }
    }
    let run = Run {
        payload: &payload,
        accelerator: if args.kvm { Accelerator::Kvm } else { Accelerator::Emulation },
        scope: if args.suite.is_none() && args.filter.is_none() { Scope::Whole } else { Scope::Part },
        expected: (!args.record).then_some(&recorded),
        recorder: recorder.as_ref(),
    };
    let jobs = args.jobs.map_or_else(default_jobs, NonZero::get);
    ui::heading(&format!("{} kernels under QEMU, {jobs} at a time", kernels.len()));
    let matrix = Queue::new(&kernels, run).run(ws, jobs)?;
    if args.record {
        record(ws, &manifest, &kernels, &matrix, recorded)?;
    }
    matrix.verdict()
}

fn payload(ws: &Workspace, args: &Args) -> Result<Payload> {
    let group = if args.full { Group::Namespaces } else { Group::Kernels };
    match &args.suite {
        Some(program) => Ok(Payload { suite: program.clone(), group, filter: args.filter.clone() }),
        None => suite_payload(ws, group, args.filter.clone()),
    }
}

/// The default set beside the kernel that runs here, for `test`: what its guests need is read or built once, before the
/// first of them starts.
pub(crate) struct Guests {
    manifest: Manifest,
    release: String,
    recorded: Seen,
    payload: Payload,
    scope: Scope,
}

impl Guests {
    /// Gets everything ready.
    pub(crate) fn prepare(ws: &Workspace, filter: Option<&str>) -> Result<Self> {
        setup::programs(ws, &[Need::Build, Need::Vm], Detail::OnlyWork)?;
        Ok(Self {
            manifest: Manifest::read(&ws.path(KERNELS))?,
            release: release()?,
            recorded: Seen::read(&ws.path(SEEN))?,
            payload: suite_payload(ws, Group::Kernels, filter.map(str::to_owned))?,
            scope: if filter.is_none() { Scope::Whole } else { Scope::Part },
        })
    }

    /// The kernels, waiting.
    pub(crate) fn queue(&self) -> Queue<'_> {
        let run = Run {
            payload: &self.payload,
            accelerator: Accelerator::Emulation,
            scope: self.scope,
            expected: Some(&self.recorded),
            recorder: None,
        };
        Queue::new(&self.manifest.beside(&self.release), run)
    }
}

/// Downloads and unpacks the kernels that run beside the host suite.
pub(crate) fn fetch(ws: &Workspace) -> Result<()> {
    let manifest = Manifest::read(&ws.path(KERNELS))?;
    manifest.beside(&release()?).into_iter().try_for_each(|kernel| archive::fetch(ws, kernel).map(drop))
}

/// The release of the kernel that runs here.
fn release() -> Result<String> {
    const RELEASE: &str = "/proc/sys/kernel/osrelease";
    fs::read_to_string(RELEASE).with_context(|| format!("failed to read {RELEASE}"))
}

/// Keeps which kernels passed everything, one by one as they do.
struct Recorder<'a> {
    ws: &'a Workspace,
    manifest: &'a Manifest,
    candidate: Candidate,
    runs: Mutex<FullRuns>,
}

impl<'a> Recorder<'a> {
    /// `None`, with a word why, where the programs are not those of a commit.
    fn start(ws: &'a Workspace, manifest: &'a Manifest) -> Result<Option<Self>> {
        let program = |name| ws.program(Profile::Release, name);
        let programs = [program("suite"), program("bridge-user"), setup::go_server(ws)];
        let Some(candidate) = Candidate::find(ws, &programs)? else {
            ui::result("results are not recorded: there are changes that are not committed");
            return Ok(None);
        };
        let runs = Mutex::new(FullRuns::read(&ws.path(FULL))?);
        Ok(Some(Self { ws, manifest, candidate, runs }))
    }

    fn passed_already(&self, kernel: &Kernel) -> bool {
        lock(&self.runs).has(kernel, &self.candidate)
    }

    fn keep(&self, kernel: &Kernel, report: &Report) -> Result<()> {
        let mut runs = lock(&self.runs);
        runs.put(self.manifest, kernel, &self.candidate, report.counts);
        runs.write(&self.ws.path(FULL))?;
        table::write(self.ws)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps what the kernels served that had no problems.
fn record(
    ws: &Workspace,
    manifest: &Manifest,
    kernels: &[&Kernel],
    matrix: &Matrix,
    mut seen: Seen,
) -> Result<()> {
    for (kernel, report) in kernels.iter().zip(&matrix.0).filter(|(_, report)| report.is_ok()) {
        seen.put(kernel, &report.served)?;
    }
    seen.align(manifest);
    seen.write(&ws.path(SEEN))?;
    table::write(ws)
}

/// What every kernel of a run has in common.
struct Run<'a> {
    payload: &'a Payload,
    accelerator: Accelerator,
    scope: Scope,
    /// What the kernels are to serve, where that is not what the run is to find out.
    expected: Option<&'a Seen>,
    recorder: Option<&'a Recorder<'a>>,
}

fn suite_payload(ws: &Workspace, group: Group, filter: Option<String>) -> Result<Payload> {
    setup::go(ws, Detail::OnlyWork)?;
    build::suite(ws, Profile::Release)?;
    Ok(Payload { suite: ws.program(Profile::Release, "suite"), group, filter })
}

/// The reports of several kernels.
pub(crate) struct Matrix(Vec<Report>);

impl Matrix {
    /// One cell for the summary of `test`.
    pub(crate) fn summary(&self) -> String {
        let passed: u32 = self.0.iter().map(|report| report.counts.passed).sum();
        let failed: u32 = self.0.iter().map(|report| report.counts.failed).sum();
        format!("{passed} passed, {failed} failed on {} kernels", self.0.len())
    }

    /// Whether every kernel is fine.
    pub(crate) fn verdict(&self) -> Result<()> {
        let failed: Vec<&str> =
            self.0.iter().filter(|report| !report.is_ok()).map(|report| report.name.as_str()).collect();
        if !failed.is_empty() {
            bail!("failed to pass the suite on kernel {} (logs: target/vm/logs/)", failed.join(", "));
        }
        Ok(())
    }

    fn print(&self) {
        let header = ["kernel", "version", "boot", "passed", "failed", "skipped", "time", "verdict"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        rows.extend(self.0.iter().map(Report::row));
        ui::table(&rows);
    }
}

/// An emulated guest whose tests run one by one keeps one processor busy.
pub(crate) fn default_jobs() -> usize {
    const MOST: usize = 4;
    thread::available_parallelism().map_or(1, NonZero::get).min(MOST)
}

/// Kernels that wait for their turn, and the reports of those that had it. Any number of threads may work on it.
pub(crate) struct Queue<'a> {
    run: Run<'a>,
    waiting: Mutex<Vec<(usize, &'a Kernel)>>,
    reports: Mutex<Vec<(usize, Report)>>,
    kernels: usize,
}

impl<'a> Queue<'a> {
    fn new(kernels: &[&'a Kernel], run: Run<'a>) -> Self {
        let mut waiting: Vec<_> = kernels.iter().copied().enumerate().collect();
        // Taken from the end: those with the most trials come first, so that none of them runs alone in the end.
        waiting.sort_by_key(|(place, kernel)| std::cmp::Reverse((kernel.lacks().len(), *place)));
        Self { run, waiting: Mutex::new(waiting), reports: Mutex::default(), kernels: kernels.len() }
    }

    /// Runs kernels, one after the other, until none is left.
    pub(crate) fn work(&self, ws: &Workspace) {
        loop {
            let next = lock(&self.waiting).pop();
            let Some((place, kernel)) = next else { return };
            let report = run_kernel(ws, kernel, &self.run);
            lock(&self.reports).push((place, report));
        }
    }

    /// Runs all of them, `jobs` at a time.
    pub(crate) fn run(self, ws: &Workspace, jobs: usize) -> Result<Matrix> {
        thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| self.work(ws));
            }
        });
        self.finish()
    }

    /// The reports, in the order of the kernels, once every worker is done.
    pub(crate) fn finish(self) -> Result<Matrix> {
        let mut reports = self.reports.into_inner().unwrap_or_else(PoisonError::into_inner);
        if reports.len() != self.kernels {
            bail!(
                "failed to run {} of {} kernels: a worker stopped",
                self.kernels - reports.len(),
                self.kernels
            );
        }
        reports.sort_by_key(|(place, _)| *place);
        let matrix = Matrix(reports.into_iter().map(|(_, report)| report).collect());
        ui::heading("kernels");
        matrix.print();
        Ok(matrix)
    }
}

/// Runs one kernel; whatever goes wrong is its report.
fn run_kernel(ws: &Workspace, kernel: &Kernel, run: &Run<'_>) -> Report {
    let mut report = archive::fetch(ws, kernel)
        .and_then(|tree| {
            let image = initramfs::write(ws, kernel, &tree, run.payload)?;
            boot::run(ws, kernel, &tree, &image, run.accelerator)
        })
        .unwrap_or_else(|error| Report::not_run(kernel, &error));
    if let Some(expected) = run.expected {
        report.compare(kernel, expected, run.scope);
    }
    if let Some(recorder) = run.recorder.filter(|_| report.is_ok()) {
        report.note(recorder.keep(kernel, &report));
    }
    ui::result(&report.to_string());
    report
}

fn list(manifest: &Manifest) {
    let header = ["kernel", "version", "suite", "default", "expected"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(manifest.kernels.iter().map(|kernel| {
        let default = if kernel.default { "yes" } else { "" };
        vec![
            kernel.name.clone(),
            kernel.version.clone(),
            kernel.suite.clone(),
            default.to_owned(),
            kernel.expectation(),
        ]
    }));
    ui::table(&rows);
}
