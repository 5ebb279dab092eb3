//! Which release of an engine a trial runs with: the installed one, or a newer one that was unpacked.
//!
//! Invariant: a newer one is what `BRIDGE_NEWER_DOCKER` and `BRIDGE_NEWER_PODMAN` name (`cargo xtask setup` makes it);
//! no trial passes with the installed one in its place.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A release of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    Installed,
    Newer,
}

impl Release {
    /// dockerd, which finds docker-proxy beside itself.
    pub(super) fn dockerd(self) -> Result<Command> {
        if self == Self::Installed {
            return Ok(Command::new("dockerd"));
        }
        let programs = root("BRIDGE_NEWER_DOCKER")?.join("usr/sbin");
        let path = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths([programs.clone()].into_iter().chain(env::split_paths(&path)))?;
        let mut command = Command::new(programs.join("dockerd"));
        command.env("PATH", path);
        Ok(command)
    }

    /// podman, to which options can be added. A newer one was built with a newer C library: it sees its own files over
    /// the machine's /usr, in a mount namespace of its own.
    pub(super) fn podman(self) -> Result<Command> {
        if self == Self::Installed {
            return Ok(Command::new("podman"));
        }
        let usr = root("BRIDGE_NEWER_PODMAN")?.join("usr");
        let script = "mount -t overlay -o lowerdir=\"$0\":/usr overlay /usr && exec podman \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(usr);
        command.env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1");
        Ok(command)
    }

    /// podman beside one that runs: it sees the same files and mounts.
    pub(super) fn podman_beside(self, pid: u32) -> Command {
        if self == Self::Installed {
            return Command::new("podman");
        }
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{pid}/ns/mnt")).arg("podman");
        command.env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1");
        command
    }
}

fn root(variable: &str) -> Result<PathBuf> {
    let named = env::var_os(variable).map(PathBuf::from).with_context(|| {
        format!("{variable} is not set: `cargo xtask setup` unpacks newer engines below target/engines")
    })?;
    ensure!(named.join("usr").is_dir(), "{variable} names {}, which has no usr", named.display());
    Ok(named)
}
