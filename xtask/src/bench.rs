//! `cargo xtask bench`: measures datapaths next to a direct connection and to their peers, alternating in one run.

use std::{ffi::OsString, os::unix::process::CommandExt as _, path::PathBuf, process::Command};

use anyhow::{Error, Result};

use crate::{
    build, exec,
    setup::{self, Need},
    ui::Detail,
    workspace::{Profile, Workspace},
};

/// Options of the command.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure
    #[arg(value_enum)]
    what: What,
    /// Rounds per measure; more are added while a verdict is open, up to three times as many
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Seconds per measure, target and round
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    seconds: f64,
    /// Also write the result, with every single rate, to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Steered connections and the binary's start-up
    Steer,
    /// Relayed connections, next to HAProxy, nginx, docker-proxy and socat
    Relay,
    /// Attaches of 1 to 4,096 services, and one more beside 4,095
    Attach,
    /// Relayed connections, while another source has a thousand stalled ones in the same process
    Fair,
    /// How soon the daemon follows an engine and bridges, and what it costs with 1,000 attachments
    Reconcile,
}

impl What {
    fn name(self) -> &'static str {
        match self {
            Self::Steer => "steer",
            Self::Relay => "relay",
            Self::Attach => "attach",
            Self::Fair => "fair",
            Self::Reconcile => "reconcile",
        }
    }

    /// What the suite runs for it, besides what is built.
    fn needs(self) -> &'static [Need] {
        match self {
            Self::Steer | Self::Attach | Self::Fair => &[],
            Self::Relay => &[Need::Peers],
            Self::Reconcile => &[Need::HostSuite],
        }
    }
}

/// The command.
pub(crate) fn run(ws: &Workspace, args: &Args) -> Result<()> {
    setup::programs(ws, args.what.needs(), Detail::OnlyWork)?;
    let mut suite = rig(ws, Profile::Release, "run the benchmark")?;
    suite.args(["bench", args.what.name(), "--rounds", &args.rounds.to_string()]);
    suite.args(["--seconds", &args.seconds.to_string()]);
    if let Some(file) = &args.json {
        suite.arg("--json").arg(file);
    }
    replace(suite, "run the benchmark")
}

/// The suite's binary, built and ready to run as root; `what` completes "failed to …".
pub(crate) fn rig(ws: &Workspace, profile: Profile, what: &str) -> Result<Command> {
    setup::programs(ws, &[Need::Build, Need::Namespaces], Detail::OnlyWork)?;
    build::suite(ws, profile)?;
    let binary = OsString::from(ws.program(profile, "bridge-user"));
    exec::as_root(&ws.program(profile, "suite"), &[("BRIDGE_USER", binary)], what)
}

/// Runs `command` in the place of this process, so that Ctrl-C reaches it alone and the shell waits until it has
/// cleaned up; returns only when it cannot be started.
pub(crate) fn replace(mut command: Command, what: &str) -> Result<()> {
    let error = command.exec();
    Err(Error::new(error).context(format!("failed to {what}: cannot run {}", exec::show(&command))))
}
