//! `cargo xtask setup`: finds what is there, installs only what is missing.

mod busybox;
mod engines;
mod go;
mod linker;
mod packages;
mod static_target;
mod toolchain;

use std::{fmt, path::PathBuf};

use anyhow::Result;

pub(crate) use busybox::busybox;
pub(crate) use engines::variables as engine_variables;
pub(crate) use go::server as go_server;
pub(crate) use packages::{Need, postgres};
pub(crate) use static_target::ensure as static_target;
pub(crate) use toolchain::Toolchain;

use crate::{
    ui::{self, Detail, Step},
    workspace::Workspace,
};

/// What the eBPF build needs.
pub(crate) struct Ebpf {
    /// The compiler and its cargo.
    pub(crate) toolchain: Toolchain,
    /// The bpf-linker of the same LLVM release.
    pub(crate) linker: PathBuf,
}

impl fmt::Display for Ebpf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, bpf-linker {}", self.toolchain, linker::VERSION)
    }
}

/// The command: everything, one line per step.
pub(crate) fn run(ws: &Workspace) -> Result<()> {
    ui::heading("setup");
    programs(ws, &[Need::Build, Need::HostSuite, Need::Vm], Detail::Every)?;
    ebpf(ws, Detail::Every)?;
    go(ws, Detail::Every)?;
    engines(ws, Detail::Every)
}

/// Makes sure that the engines are there that the suite is run with besides the installed ones.
pub(crate) fn engines(ws: &Workspace, detail: Detail) -> Result<()> {
    engines::ensure(ws, detail)
}

/// Makes sure that the tests' Go HTTP server is built.
pub(crate) fn go(ws: &Workspace, detail: Detail) -> Result<()> {
    go::ensure(ws, detail)
}

/// Makes sure that the programs needed for the given purposes are there.
pub(crate) fn programs(ws: &Workspace, needs: &[Need], detail: Detail) -> Result<()> {
    packages::ensure(ws, needs, detail)
}

/// Makes sure that the eBPF toolchain and bpf-linker are there.
pub(crate) fn ebpf(ws: &Workspace, detail: Detail) -> Result<Ebpf> {
    let step = Step::start("eBPF toolchain", detail);
    let toolchain = toolchain::ensure(ws, &step)?;
    step.done(&toolchain.to_string());
    let step = Step::start("bpf-linker", detail);
    let linker = linker::ensure(ws, &toolchain, &step)?;
    step.done(&format!("{} for LLVM {}", linker::VERSION, toolchain.llvm_major));
    Ok(Ebpf { toolchain, linker })
}
