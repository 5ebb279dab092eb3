//! The command line: what can be typed, what a verb's outcome becomes, and how errors are printed.
//!
//! Invariants: one error is one line on standard error, whatever its causes contain; exit codes are 0 done, 1 failed, 2
//! wrong usage; help and version cannot fail.

mod complete;
pub(crate) mod log;
mod man;
pub(crate) mod output;
pub(crate) mod table;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser, Subcommand, error::ErrorKind};

pub use self::{complete::complete, output::Out};
use crate::{
    UsageError,
    scope::Scope,
    verbs::{attach, check, detach, events, import, run, status, systemd},
};

/// Containers reach services that listen only on the host's 127.0.0.1, in the kernel.
#[derive(Parser)]
#[command(name = "bridge-user", version, propagate_version = true)]
pub(crate) struct Cli {
    /// With --version: also say which compilers and which linker built it
    #[arg(long)]
    verbose: bool,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Make loopback services reachable at the bridge gateway
    Attach(Box<attach::Args>),
    /// Undo attach
    Detach(detach::Args),
    /// Show what is attached and whether it can serve
    Status(status::Args),
    /// Show what this kernel and host can do, by trying it
    Check(check::Args),
    /// Print the kernel's event channel
    Events(events::Args),
    /// Run the daemon: keep attached what the configuration asks for
    Run(run::Args),
    /// Show forwards made by hand (socat, systemd-socket-proxyd, DNAT), and what replaces them
    Import(import::Args),
    /// Install the daemon as a systemd unit, or remove it
    Systemd(systemd::Args),
    /// Print a shell completion script
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man {
        /// Write one page for the program and one for each verb into this directory
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// What `--version --verbose` adds.
const BUILT_WITH: &str = concat!(
    "built with ",
    env!("BRIDGE_BUILT_WITH"),
    "\neBPF programs built with ",
    env!("BRIDGE_EBPF_BUILT_WITH")
);

/// Runs a command line, the program's name first; `scope` finds out where, for verbs that work somewhere. Exit codes: 0
/// done, 1 failed, 2 wrong usage.
pub fn run(
    arguments: impl IntoIterator<Item = OsString>,
    scope: impl FnOnce() -> anyhow::Result<Scope>,
    out: &Out,
) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) if cli.verbose => return usage_or_help(&verbose_alone(), &arguments, out),
        Ok(cli) => cli,
        Err(error) => return usage_or_help(&error, &arguments, out),
    };
    match run_verb(&cli.verb, scope, out) {
        Ok(code) => code,
        Err(error) => {
            out.say_error(&format!("{error:#}"));
            ExitCode::from(if error.is::<UsageError>() { 2 } else { 1 })
        }
    }
}

fn verbose_alone() -> clap::Error {
    Cli::command().error(ErrorKind::ArgumentConflict, "--verbose goes with --version alone: leave it out")
}

fn usage_or_help(error: &clap::Error, arguments: &[OsString], out: &Out) -> ExitCode {
    if !error.use_stderr() {
        // Help and version cannot fail, not even into a closed pipe.
        let _ = error.print();
        if error.kind() == ErrorKind::DisplayVersion && arguments.iter().any(|one| one == "--verbose") {
            let _ = out.print_bytes(format!("{BUILT_WITH}\n").as_bytes());
        }
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    let text = format!("bridge-user: {}", text.strip_prefix("error: ").unwrap_or(&text));
    out.complain(&text.lines().collect::<Vec<_>>());
    ExitCode::from(2)
}

fn run_verb(
    verb: &Verb,
    scope: impl FnOnce() -> anyhow::Result<Scope>,
    out: &Out,
) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Attach(args) => return attach::run(args, &scope()?, out),
        Verb::Detach(args) => detach::run(args, &scope()?, out)?,
        Verb::Status(args) => return status::run(args, &scope()?, out),
        Verb::Check(args) => return check::run(args, &scope()?, out),
        Verb::Events(args) => events::run(args, &scope()?, out)?,
        Verb::Run(args) => return run::run(args, scope, out),
        Verb::Import(args) => import::run(args, &scope()?, out)?,
        Verb::Systemd(args) => systemd::run(args, scope, out)?,
        Verb::Completions { shell } => drop(out.print_bytes(&complete::script(*shell)?)?),
        Verb::Man { dir } => print_manual(dir.as_deref(), out)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn print_manual(directory: Option<&Path>, out: &Out) -> anyhow::Result<()> {
    let Some(directory) = directory else { return out.print_bytes(&man::page()?).map(drop) };
    let names: String = man::write_all(directory)?.iter().map(|name| format!("{name}\n")).collect();
    out.print(&names).map(drop)
}
