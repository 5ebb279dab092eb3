//! `cargo xtask demo`: shows what bridge-user does, on a machine made of network namespaces.

use anyhow::Result;

use crate::{
    bench, ui,
    workspace::{Profile, Workspace},
};

/// The command.
pub(crate) fn run(ws: &Workspace) -> Result<()> {
    let built = ws.program(Profile::Quick, "suite").exists();
    ui::result(match built {
        true => "the demo takes about 15 seconds",
        false => {
            "the demo takes 15 seconds; first come the eBPF toolchain and the build, about 5 minutes on two processors"
        }
    });
    let mut suite = bench::rig(ws, Profile::Quick, "run the demo")?;
    suite.arg("demo");
    bench::replace(suite, "run the demo")
}
