//! The standard library for static binaries.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{
    exec::{self, which},
    ui::{Detail, Step},
    workspace::Workspace,
};

const LIMIT: Duration = Duration::from_secs(300);

/// Makes sure that the compiler of the workspace can build for `target`.
pub(crate) fn ensure(ws: &Workspace, target: &str, detail: Detail) -> Result<()> {
    let step = Step::start(format!("standard library for {target}"), detail);
    let mut rustc = exec::tool("rustc");
    rustc.current_dir(ws.root()).args(["--print", "target-libdir", "--target", target]);
    let libraries = exec::capture(&mut rustc, "find the standard library")?;
    if std::path::Path::new(libraries.trim()).exists() {
        step.done("found");
        return Ok(());
    }
    let rustup = which("rustup").with_context(|| {
        format!("failed to install rust-std for {target}: there is no rustup: install it")
    })?;
    let mut command = exec::tool(rustup);
    command.current_dir(ws.root()).args(["target", "add", target]);
    exec::run_logged(&mut command, "install it", &step, &ws.target("setup/rustup-target.log"), LIMIT)?;
    step.done("installed");
    Ok(())
}
