//! `cargo xtask demo`: shows what bridge-user does, on a machine made of network namespaces.

use anyhow::Result;

use crate::{bench, workspace::Workspace};

/// The command.
pub(crate) fn run(ws: &Workspace) -> Result<()> {
    let mut suite = bench::rig(ws, "run the demo")?;
    suite.arg("demo");
    bench::replace(suite, "run the demo")
}
