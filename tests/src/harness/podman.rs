//! A rootful Podman of the suite's own, with its API service, in a namespace of its own.
//!
//! Invariants: storage, state, networks and the socket live in one temporary directory; bridges and firewall rules live
//! in the namespace; dropping it removes containers and whatever was pinned for the namespace, ends the service, and
//! unmounts what is left under the directory.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::cli::Cli;
use super::docker::{busybox, pack, unmount_below};
use super::netns::Netns;
use super::proc::{Guarded, run_in};
use super::release::Release;
use super::rig::remove_pins;
use super::transcript::note;
use super::wait::{patience, until};

const IMAGE: &str = "bridge-test";

/// A running service with its host namespace.
pub(crate) struct Podman {
    pub(crate) host: Netns,
    service: Guarded,
    release: Release,
    directory: TempDir,
}

impl Podman {
    /// Starts the service and makes the image.
    pub(crate) fn start(release: Release) -> Result<Self> {
        let host = Netns::new()?;
        let directory = tempfile::Builder::new().prefix("bridge-tests-podman-").tempdir()?;
        configure(directory.path())?;
        let log = std::fs::File::create(directory.path().join("log"))?;
        let mut command = release.podman()?;
        configured(&mut command, directory.path());
        command.args(["system", "service", "--time", "0", &endpoint(directory.path())]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let service =
            Guarded::new(host.spawn(&mut command).context("failed to start podman: is it installed?")?);
        let mut podman = Self { host, service, release, directory };
        let socket = podman.directory.path().join("podman.sock");
        until("podman listens", patience(30), || {
            if let Some(status) = podman.service.ended()? {
                bail!("podman ended with {status}");
            }
            Ok(std::os::unix::net::UnixStream::connect(&socket).is_ok().then_some(()))
        })?;
        podman.make_image()?;
        Ok(podman)
    }

    fn make_image(&self) -> Result<()> {
        let root = self.directory.path().join("rootfs");
        std::fs::create_dir_all(root.join("bin"))?;
        std::fs::copy(busybox()?, root.join("bin/sleep"))?;
        let archive = self.directory.path().join("image.tar");
        pack(&self.host, &root, &archive)?;
        self.run(&["import", &archive.to_string_lossy(), IMAGE]).map(drop)
    }

    /// The binary under test, beside this engine.
    pub(crate) fn cli(&self) -> Cli<'_> {
        Cli::new(&self.host).with_docker(&endpoint(self.directory.path()))
    }

    /// Runs `podman`; returns trimmed stdout.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.release.podman_beside(self.service.pid());
        configured(&mut command, self.directory.path());
        let output = run_in(&self.host, command.args(arguments))?;
        note(format!("$ podman {} -> {:?} {}", arguments.join(" "), output.code, output.stderr.trim()));
        output.success().with_context(|| format!("podman {}", arguments.join(" ")))?;
        Ok(output.stdout.trim().to_owned())
    }

    /// Starts a container that does nothing.
    pub(crate) fn container(&self, name: &str, options: &[&str]) -> Result<()> {
        let head = ["run", "--detach", "--name", name];
        self.run(&[&head, options, &[IMAGE, "/bin/sleep", "1000000"]].concat()).map(drop)
    }

    /// A container's network namespace.
    pub(crate) fn netns(&self, container: &str) -> Result<Netns> {
        let pid = self.run(&["inspect", "--format", "{{.State.Pid}}", container])?;
        Netns::of_process(pid.parse().with_context(|| format!("odd container pid {pid}"))?)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        remove_pins(&self.host);
        let removed = self.run(&["rm", "--force", "--time", "0", "--all"]);
        let ended = removed.and_then(|_| self.service.stop(Signal::SIGTERM));
        if let Err(error) = ended.and_then(|_| unmount_below(self.directory.path())) {
            eprintln!("suite: failed to stop podman: {error:#}");
        }
    }
}

/// What keeps this Podman apart from others of the machine, and fit for kernels and limits that a container may have.
fn configure(directory: &Path) -> Result<()> {
    let networks = directory.join("networks");
    let text = format!(
        "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
         [network]\nnetwork_backend = \"netavark\"\nnetwork_config_dir = \"{}\"\n\
         [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nlock_type = \"file\"\nruntime = \"runc\"\n",
        networks.display()
    );
    std::fs::create_dir(directory.join("tmp"))?;
    Ok(std::fs::write(directory.join("containers.conf"), text)?)
}

/// The options that every command has.
fn configured(command: &mut Command, directory: &Path) {
    for (option, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "libpod")] {
        command.arg(option).arg(directory.join(name));
    }
    command.arg("--network-config-dir").arg(directory.join("networks"));
    command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]);
    command.env("CONTAINERS_CONF", directory.join("containers.conf")).env("TMPDIR", directory.join("tmp"));
}

fn endpoint(directory: &Path) -> String {
    format!("unix://{}/podman.sock", directory.display())
}
