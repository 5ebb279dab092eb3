//! `cargo xtask vm`: the privileged suite inside other kernels, under QEMU.

mod archive;
mod boot;
mod console;
mod cpio;
mod emulator;
mod initramfs;
mod manifest;
mod modules;
mod seen;
pub(crate) mod table;
mod update;

use std::{num::NonZero, path::PathBuf, sync::Mutex, thread};

use anyhow::{Result, bail};

use crate::{
    setup::{self, Need},
    test,
    ui::{self, Detail},
    workspace::Workspace,
};
use boot::{Accelerator, Report};
use console::Scope;
use initramfs::Payload;
use manifest::{Kernel, Manifest};
use seen::Seen;

const KERNELS: &str = "tests/kernels.toml";
const SEEN: &str = "tests/kernels-seen.toml";

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
    let kernels = manifest.select(&args.kernels, args.all)?;
    let recorded = Seen::read(&ws.path(SEEN))?;
    let filter = args.filter.clone();
    let whole = args.suite.is_none() && filter.is_none();
    let payload = match &args.suite {
        Some(program) => Payload { suite: program.clone(), filter },
        None => suite_payload(ws, filter)?,
    };
    let run = Run {
        payload: &payload,
        accelerator: if args.kvm { Accelerator::Kvm } else { Accelerator::Emulation },
        scope: if whole { Scope::Whole } else { Scope::Part },
        expected: (!args.record).then_some(&recorded),
    };
    let matrix = run_kernels(ws, &kernels, &run, args.jobs.map_or_else(default_jobs, NonZero::get))?;
    if args.record {
        record(ws, &manifest, &kernels, &matrix, recorded)?;
    }
    matrix.verdict()
}

/// Runs the default set, for `test`.
pub(crate) fn default_set(ws: &Workspace, filter: Option<&str>) -> Result<Matrix> {
    let manifest = Manifest::read(&ws.path(KERNELS))?;
    let recorded = Seen::read(&ws.path(SEEN))?;
    let payload = suite_payload(ws, filter.map(str::to_owned))?;
    let run = Run {
        payload: &payload,
        accelerator: Accelerator::Emulation,
        scope: if filter.is_none() { Scope::Whole } else { Scope::Part },
        expected: Some(&recorded),
    };
    run_kernels(ws, &manifest.select(&[], false)?, &run, default_jobs())
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
}

fn suite_payload(ws: &Workspace, filter: Option<String>) -> Result<Payload> {
    setup::go(ws, Detail::OnlyWork)?;
    test::build_suite(ws)?;
    Ok(Payload { suite: ws.release("suite"), filter })
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
fn default_jobs() -> usize {
    const MOST: usize = 4;
    thread::available_parallelism().map_or(1, NonZero::get).min(MOST)
}

/// Runs the kernels, `jobs` at a time; the reports are in the order of `kernels`.
fn run_kernels(ws: &Workspace, kernels: &[&Kernel], run: &Run<'_>, jobs: usize) -> Result<Matrix> {
    setup::programs(ws, &[Need::Build, Need::Vm], Detail::OnlyWork)?;
    ui::heading(&format!("{} kernels under QEMU, {jobs} at a time", kernels.len()));
    // Those with the most tests first, so that none of them runs alone in the end.
    let mut order: Vec<_> = kernels.iter().enumerate().collect();
    order.sort_by_key(|(_, kernel)| kernel.skips);
    let queue = Mutex::new(order.into_iter());
    let worker = || {
        let next = || queue.lock().ok().and_then(|mut queue| queue.next());
        std::iter::from_fn(next)
            .map(|(place, kernel)| (place, run_kernel(ws, kernel, run)))
            .collect::<Vec<_>>()
    };
    let mut reports: Vec<(usize, Report)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
    });
    if reports.len() != kernels.len() {
        bail!(
            "failed to run {} of {} kernels: a worker stopped",
            kernels.len() - reports.len(),
            kernels.len()
        );
    }
    reports.sort_by_key(|(place, _)| *place);
    let matrix = Matrix(reports.into_iter().map(|(_, report)| report).collect());
    ui::heading("kernels");
    matrix.print();
    Ok(matrix)
}

/// Runs one kernel; whatever goes wrong is its report.
fn run_kernel(ws: &Workspace, kernel: &Kernel, run: &Run<'_>) -> Report {
    let mut report = archive::fetch(ws, kernel)
        .and_then(|tree| {
            let image = initramfs::write(ws, kernel, &tree, run.payload)?;
            boot::run(ws, kernel, &tree, &image, run.accelerator, run.scope)
        })
        .unwrap_or_else(|error| Report::not_run(kernel, &error));
    if let Some(expected) = run.expected {
        report.compare(kernel, expected, run.scope);
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
