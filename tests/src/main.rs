//! The privileged end-to-end suite: `suite [--group host|namespaces|kernels] [libtest options]`.
//!
//! Invariants: trials run one at a time as root; nothing in the machine's own network namespace is
//! changed; a trial that leaves a process or a pin behind fails; no trial skips itself, so a
//! missing tool or kernel feature is a failure and never a silent pass (what a kernel in a VM lacks
//! is declared by its runner, see `harness/kernel.rs`).
//!
//! `host`, the default, is everything; `namespaces` leaves out what cannot run inside a VM, and
//! `kernels` also what a kernel is not expected to change (see [`suites::Scope`]). `BRIDGE_USER`
//! names the binary under test. `suite bench` and `suite demo` run those instead.

mod bench;
mod demo;
mod harness;
mod suites;

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use harness::leftovers::Before;
use harness::{facts, kernel, transcript};
use suites::{Scope, Test};

/// Descriptors for the suite, and for each program it starts: tens of thousands of connections have two ends.
const OPEN_FILES: u64 = 65_536;
/// Held by a running suite.
const LOCK: &str = "/run/bridge-tests.lock";

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("bench") => std::process::exit(bench::main(&arguments[2..])),
        Some("demo") => std::process::exit(demo::main(&arguments[2..])),
        _ => {}
    }
    let (group, rest) = match split_group(arguments) {
        Ok(split) => split,
        Err(error) => {
            eprintln!("suite: {error:#}");
            std::process::exit(2);
        }
    };
    let mut arguments = Arguments::from_iter(rest);
    arguments.test_threads.get_or_insert(1);
    // Held until the process ends.
    let _alone = match (!arguments.list).then(prepare).transpose() {
        Ok(lock) => lock,
        Err(error) => {
            eprintln!("suite: {error:#}");
            std::process::exit(1);
        }
    };
    let trials = suites::all()
        .into_iter()
        .filter(|test| group.has(test.scope))
        .map(|test| {
            let ignored = test.is_impossible_here();
            Trial::test(test.name, move || run(&test)).with_ignored_flag(ignored)
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    facts::print();
    conclusion.exit();
}

/// Which trials were asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Group {
    Host,
    Namespaces,
    Kernels,
}

impl Group {
    fn named(name: &str) -> Result<Self> {
        match name {
            "host" => Ok(Self::Host),
            "namespaces" => Ok(Self::Namespaces),
            "kernels" => Ok(Self::Kernels),
            other => bail!("unknown group {other}: use host, namespaces or kernels"),
        }
    }

    fn has(self, scope: Scope) -> bool {
        match self {
            Self::Host => scope != Scope::Guests,
            Self::Namespaces => scope != Scope::Host,
            Self::Kernels => matches!(scope, Scope::Kernels | Scope::Guests),
        }
    }
}

/// Takes `--group VALUE` or `--group=VALUE` out of the command line.
fn split_group(arguments: Vec<String>) -> Result<(Group, Vec<String>)> {
    let mut group = Group::Host;
    let mut rest = Vec::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.strip_prefix("--group") {
            Some("") => {
                let value = arguments.next().context("--group needs a value: host, namespaces or kernels")?;
                group = Group::named(&value)?;
            }
            Some(value) if value.starts_with('=') => group = Group::named(&value[1..])?,
            _ => rest.push(argument),
        }
    }
    Ok((group, rest))
}

/// Checks what every trial relies on, once, and waits until no other suite runs on this machine:
/// each compares the kernel's BPF objects before and after.
fn prepare() -> Result<Flock<File>> {
    ensure!(nix::unistd::geteuid().is_root(), "the suite creates namespaces and must run as root: use sudo");
    kernel::require_as_declared()?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // Root without CAP_SYS_RESOURCE, as in many containers, has to do with the hard limit.
    setrlimit(Resource::RLIMIT_NOFILE, hard.max(OPEN_FILES), hard.max(OPEN_FILES))
        .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
        .context("failed to raise the open-file limit")?;
    let file = File::create(LOCK).with_context(|| format!("failed to create {LOCK}"))?;
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).or_else(|(file, _)| {
        eprintln!("suite: waiting for another suite on this machine to end");
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)
    });
    lock.with_context(|| format!("failed to lock {LOCK}"))
}

/// Runs one trial, then checks that it left nothing; a failure carries the commands that led to it.
fn run(test: &Test) -> Result<(), Failed> {
    transcript::clear();
    let _took = facts::Took::start(test.name);
    let before = Before::new().map_err(|error| Failed::from(format!("{error:#}")))?;
    let outcome = match catch_unwind(AssertUnwindSafe(test.run)) {
        Ok(outcome) => outcome.map_err(|error| format!("{error:#}")),
        Err(panic) => Err(format!("panicked: {}", panic_text(panic.as_ref()))),
    };
    let clean = before.check().map_err(|error| format!("left something behind: {error:#}"));
    let problems: Vec<String> = [outcome, clean].into_iter().filter_map(Result::err).collect();
    if problems.is_empty() {
        return Ok(());
    }
    Err(Failed::from(format!(
        "{}\n--- commands of this trial ---\n{}",
        problems.join("\n"),
        transcript::tail()
    )))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
