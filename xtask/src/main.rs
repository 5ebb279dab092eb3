//! The workspace's front door: `cargo xtask <command>`.
//!
//! Every command that needs something another one produces calls it itself, so each works on a fresh clone.

mod bench;
mod build;
mod counts;
mod debian;
mod demo;
mod dist;
mod exec;
mod lint;
mod setup;
mod test;
mod ui;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "The tasks of the bridge-user workspace")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install the eBPF toolchain, bpf-linker and the programs the tests use
    Setup,
    /// Build target/release/bridge-user with the eBPF object embedded
    Build(build::Args),
    /// Check formatting, lints, documentation and dependencies
    Lint,
    /// Run the test suites on this machine and inside VM kernels
    Test(test::Args),
    /// Run the privileged suite inside other kernels, under QEMU
    Vm(vm::Args),
    /// Write the tables of docs/kernels.md: which datapath serves which listener on which kernel
    KernelTable,
    /// Show what bridge-user does, step by step, on a machine made of network namespaces
    Demo,
    /// Measure datapaths next to a direct connection and to their peers
    Bench(bench::Args),
    /// Make packages, tarball, bill of materials and checksums in target/dist
    Dist,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let ws = Workspace::locate()?;
    match cli.command {
        Command::Setup => setup::run(&ws),
        Command::Build(args) => build::run(&ws, &args),
        Command::Lint => lint::run(&ws),
        Command::Test(args) => test::run(&ws, &args),
        Command::Vm(args) => vm::run(&ws, &args),
        Command::KernelTable => vm::table::write(&ws),
        Command::Demo => demo::run(&ws),
        Command::Bench(args) => bench::run(&ws, &args),
        Command::Dist => dist::run(&ws),
    }
}
