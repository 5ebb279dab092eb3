//! A process with any name, that holds listeners it does not serve: what an engine, or an attacker, may have running.
//!
//! Invariant: it is busybox under the other name, so that the name is what the kernel says, and ends with its guard.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::docker::busybox;
use super::netns::Netns;
use super::proc::Guarded;
use super::wait::{patience, until};

/// The process.
pub(crate) struct Impostor {
    _process: Guarded,
    _directory: TempDir,
}

impl Impostor {
    /// Runs busybox as `name` until the kernel calls it that, with these arguments, of which the first says what it
    /// does. Its standard input is the listener `held`, its output `another`, if there is one.
    pub(crate) fn start(
        host: &Netns,
        name: &str,
        arguments: &[&str],
        held: TcpListener,
        another: Option<TcpListener>,
    ) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let program = directory.path().join(name);
        std::fs::copy(busybox()?, &program)?;
        let (own, rest) = arguments.split_first().context("no argument")?;
        let stream = |listener| Stdio::from(OwnedFd::from(listener));
        let mut command = Command::new(&program);
        command.arg0(own).args(rest).stdin(stream(held)).stdout(another.map_or_else(Stdio::inherit, stream));
        let process = Guarded::new(host.spawn(&mut command).context("failed to run busybox")?);
        let comm = format!("/proc/{}/comm", process.pid());
        until("the process has its name", patience(5), || {
            Ok((std::fs::read_to_string(&comm)?.strip_suffix('\n') == Some(name)).then_some(()))
        })?;
        Ok(Self { _process: process, _directory: directory })
    }
}
