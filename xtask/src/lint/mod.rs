//! `cargo xtask lint`: everything that can be judged without running the tests.

mod documents;
mod house;

use anyhow::{Result, bail};

use crate::{build, exec, ui, vm, workspace::Workspace};

/// The command.
pub(crate) fn run(ws: &Workspace) -> Result<()> {
    ui::heading("formatting");
    exec::run(ws.cargo("fmt").args(["--all", "--check"]), "check the formatting (cure: cargo fmt --all)")?;
    ui::heading("documents and house rules");
    documents::check(ws)?;
    ui::heading("the kernel table");
    vm::table::check(ws)?;
    ui::heading("the eBPF objects, without warnings");
    ebpf_warnings(&build::ebpf(ws)?)?;
    ui::heading("clippy");
    let mut clippy = ws.cargo("clippy");
    clippy.args(["--workspace", "--exclude", "bridge-ebpf", "--all-targets", "--", "-D", "warnings"]);
    exec::run(&mut clippy, "pass clippy")?;
    ui::heading("documentation");
    let mut doc = ws.cargo("doc");
    doc.args(["--no-deps", "--package", "bridge-common", "--package", "bridge-user", "--lib"]);
    exec::run(doc.env("RUSTDOCFLAGS", "-D warnings"), "build the documentation")?;
    dependencies(ws)
}

/// The eBPF programs only build for their own target, where clippy does not run; the compiler's own lints are on, and
/// cargo repeats the warnings of earlier builds.
fn ebpf_warnings(said: &str) -> Result<()> {
    let warnings = said.lines().filter(|line| line.starts_with("warning")).count();
    if warnings > 0 {
        bail!("failed to pass the eBPF build without warnings: {warnings} lines of warnings above");
    }
    Ok(())
}

fn dependencies(ws: &Workspace) -> Result<()> {
    ui::heading("dependencies");
    if exec::which("cargo-deny").is_none() {
        eprintln!("  --  not checked: cargo-deny is not installed (cargo install cargo-deny)");
        return Ok(());
    }
    let mut deny = ws.cargo("deny");
    exec::run(deny.args(["check", "bans", "licenses", "sources"]), "check the dependencies")
}
