//! A Docker engine of the suite's own, in a namespace of its own.
//!
//! Invariants: the engine's data, sockets and state live in one temporary directory; its bridges
//! and firewall rules live in the namespace; dropping it removes containers, stops the engine and
//! its containerd, unmounts what is left under the directory, and removes what was pinned since, for
//! containers too.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::cli::Cli;
use super::netns::{Netns, pin_directories};
use super::proc::{Guarded, Output, pipe_through, run_in};
use super::release::Release;
use super::rig::remove_pinned;
use super::transcript::note;
use super::wait::{patience, until};

/// The locally made image: static busybox and nothing else.
const IMAGE: &str = "bridge-test";
const APPLETS: [&str; 4] = ["sh", "nc", "sleep", "httpd"];

/// What `httpd -h /` serves in a container.
pub(crate) const PAGE: &str = "served by httpd\n";

/// A running engine with its host namespace.
pub(crate) struct Engine {
    pub(crate) host: Netns,
    server: Guarded,
    release: Release,
    options: &'static [&'static str],
    directory: TempDir,
    pins_before: BTreeSet<PathBuf>,
}

impl Engine {
    /// Starts the engine and makes the image.
    pub(crate) fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// The same, with more options for dockerd.
    pub(crate) fn start_with(options: &'static [&'static str]) -> Result<Self> {
        Self::start_release(Release::Installed, options)
    }

    /// The same, of this release.
    pub(crate) fn start_release(release: Release, options: &'static [&'static str]) -> Result<Self> {
        let host = Netns::new()?;
        let directory = tempfile::Builder::new().prefix("bridge-tests-docker-").tempdir()?;
        let pins_before = pin_directories()?;
        let server = start_server(&host, directory.path(), release, options)?;
        let mut engine = Self { host, server, release, options, directory, pins_before };
        engine.wait_ready()?;
        engine.make_image()?;
        Ok(engine)
    }

    /// Stops the engine, and its containers with it.
    pub(crate) fn stop_server(&mut self) -> Result<()> {
        self.server.stop(Signal::SIGTERM).map(drop)
    }

    /// Starts the engine again.
    pub(crate) fn start_server_again(&mut self) -> Result<()> {
        self.server = start_server(&self.host, self.directory.path(), self.release, self.options)?;
        self.wait_ready()
    }

    fn wait_ready(&mut self) -> Result<()> {
        let ready = until("dockerd answers", patience(30), || self.probe());
        ready.with_context(|| format!("dockerd log: {}", self.log()))
    }

    fn probe(&mut self) -> Result<Option<()>> {
        if let Some(status) = self.server.ended()? {
            bail!("dockerd ended with {status}");
        }
        Ok(self.docker(&["version"]).is_ok().then_some(()))
    }

    fn make_image(&self) -> Result<()> {
        let root = self.directory.path().join("rootfs");
        std::fs::create_dir_all(root.join("bin"))?;
        std::fs::copy(busybox()?, root.join("bin/busybox"))?;
        for applet in APPLETS {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
        }
        std::fs::write(root.join("index.html"), PAGE)?;
        self.import(&root, IMAGE)
    }

    /// Makes an image of a directory.
    pub(crate) fn import(&self, root: &Path, image: &str) -> Result<()> {
        let archive = self.directory.path().join(format!("{image}.tar"));
        pack(&self.host, root, &archive)?;
        self.docker(&["import", &archive.to_string_lossy(), image])?;
        Ok(())
    }

    /// Notes the engine's log beside a failure.
    pub(crate) fn noted<T>(&self, outcome: Result<T>) -> Result<T> {
        outcome.inspect_err(|_| note(format!("--- dockerd log ---\n{}", self.log())))
    }

    /// The first number of the engine's version.
    pub(crate) fn version(&self) -> Result<u32> {
        let text = self.docker(&["version", "--format", "{{.Server.Version}}"])?;
        let first = text.split('.').next().and_then(|number| number.parse().ok());
        first.with_context(|| format!("odd version {text}"))
    }

    /// The engine's address, as `DOCKER_HOST` has it.
    pub(crate) fn endpoint(&self) -> String {
        endpoint(self.directory.path())
    }

    /// The binary under test, beside this engine.
    pub(crate) fn cli(&self) -> Cli<'_> {
        Cli::new(&self.host).with_docker(&self.endpoint())
    }

    /// Runs the `docker` client; returns trimmed stdout.
    pub(crate) fn docker(&self, arguments: &[&str]) -> Result<String> {
        let output = self.docker_output(arguments)?;
        output.success().with_context(|| format!("docker {}", arguments.join(" ")))?;
        Ok(output.stdout.trim().to_owned())
    }

    /// Runs the `docker` client, whatever its exit code.
    pub(crate) fn docker_output(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new("docker");
        command
            .args(arguments)
            .env("DOCKER_HOST", self.endpoint())
            .env("DOCKER_CONFIG", self.directory.path());
        let output = run_in(&self.host, &mut command)?;
        note(format!("$ docker {} -> {:?} {}", arguments.join(" "), output.code, output.stderr.trim()));
        Ok(output)
    }

    /// Starts the `docker` client with its output kept, for runs that go on.
    pub(crate) fn docker_spawn(&self, arguments: &[&str]) -> Result<Guarded> {
        let mut command = Command::new("docker");
        command
            .args(arguments)
            .env("DOCKER_HOST", self.endpoint())
            .env("DOCKER_CONFIG", self.directory.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(Guarded::new(self.host.spawn(&mut command).context("failed to start docker")?))
    }

    /// Starts a container that does nothing.
    pub(crate) fn container(&self, name: &str, options: &[&str]) -> Result<()> {
        self.run(name, options, &["/bin/sleep", "1000000"])
    }

    /// Starts a container that runs `command`.
    pub(crate) fn run(&self, name: &str, options: &[&str], command: &[&str]) -> Result<()> {
        let head = ["run", "--detach", "--name", name];
        self.docker(&[&head, options, &[IMAGE], command].concat())?;
        Ok(())
    }

    /// The ids of all containers.
    pub(crate) fn containers(&self) -> Result<Vec<String>> {
        Ok(self.docker(&["ps", "--all", "--quiet"])?.split_whitespace().map(str::to_owned).collect())
    }

    /// Removes containers.
    pub(crate) fn remove(&self, containers: &[String]) -> Result<()> {
        let names = containers.iter().map(String::as_str);
        match containers {
            [] => Ok(()),
            _ => self.docker(&["rm", "--force"].into_iter().chain(names).collect::<Vec<_>>()).map(drop),
        }
    }

    /// Fails if anything was pinned since the engine was started, for whatever namespace, and still is.
    pub(crate) fn nothing_pinned(&self) -> Result<()> {
        let now = pin_directories()?;
        let new: Vec<_> = now.difference(&self.pins_before).collect();
        ensure!(new.is_empty(), "pins exist: {new:?}");
        Ok(())
    }

    /// What a container wrote to stderr.
    pub(crate) fn complaints(&self, container: &str) -> Result<String> {
        let mut command = Command::new("docker");
        command.args(["logs", container]).env("DOCKER_HOST", self.endpoint());
        let output = run_in(&self.host, command.env("DOCKER_CONFIG", self.directory.path()))?;
        output.success()?;
        Ok(output.stderr)
    }

    /// A container's network namespace.
    pub(crate) fn netns(&self, container: &str) -> Result<Netns> {
        let pid = self.docker(&["inspect", "--format", "{{.State.Pid}}", container])?;
        Netns::of_process(pid.parse().with_context(|| format!("odd container pid {pid}"))?)
    }

    /// A container's address on a network.
    pub(crate) fn address(&self, container: &str, network: &str) -> Result<Ipv4Addr> {
        self.endpoint_field(container, network, "IPAddress")
    }

    /// A container's IPv6 address on a network.
    pub(crate) fn address6(&self, container: &str, network: &str) -> Result<Ipv6Addr> {
        self.endpoint_field(container, network, "GlobalIPv6Address")
    }

    fn endpoint_field<T: FromStr>(&self, container: &str, network: &str, field: &str) -> Result<T> {
        let format = format!("{{{{(index .NetworkSettings.Networks \"{network}\").{field}}}}}");
        let text = self.docker(&["inspect", "--format", &format, container])?;
        let address = text.parse().ok();
        address.with_context(|| format!("container {container} has no {field} on {network}: {text:?}"))
    }

    /// The bridge interface of a network.
    pub(crate) fn bridge(&self, network: &str) -> Result<String> {
        let format = "{{.Id}} {{index .Options \"com.docker.network.bridge.name\"}}";
        let text = self.docker(&["network", "inspect", "--format", format, network])?;
        match text.split_once(' ') {
            Some((_, name)) if !name.is_empty() && name != "<no value>" => Ok(name.to_owned()),
            _ => Ok(format!("br-{}", text.get(..12).with_context(|| format!("odd network id {text:?}"))?)),
        }
    }

    /// The gateway of a network: the address on its bridge. (The engine's own description of the
    /// default network may leave it out.)
    pub(crate) fn gateway(&self, network: &str) -> Result<Ipv4Addr> {
        self.bridge_address(network, "-4", "inet")
    }

    /// The IPv6 gateway of a network, found in the same way.
    pub(crate) fn gateway6(&self, network: &str) -> Result<Ipv6Addr> {
        self.bridge_address(network, "-6", "inet6")
    }

    fn bridge_address<T: FromStr>(&self, network: &str, family: &str, word: &str) -> Result<T> {
        let bridge = self.bridge(network)?;
        let mut ip = Command::new("ip");
        ip.args([family, "-oneline", "addr", "show", "dev", &bridge, "scope", "global"]);
        let output = run_in(&self.host, &mut ip)?;
        output.success()?;
        let address = output.stdout.split_whitespace().skip_while(|found| *found != word).nth(1);
        let address = address.and_then(|text| text.split('/').next()?.parse().ok());
        address.with_context(|| format!("{bridge} has no global {word} address: {}", output.stdout))
    }

    /// Runs busybox `nc` inside a container and returns what the other end said.
    pub(crate) fn nc(&self, container: &str, to: SocketAddr, input: &str) -> Result<String> {
        self.nc_host(container, &to.ip().to_string(), to.port(), input)
    }

    /// The same, to an address or a name that the container knows.
    pub(crate) fn nc_host(&self, container: &str, host: &str, port: u16, input: &str) -> Result<String> {
        let to = port.to_string();
        let mut command = Command::new("docker");
        command.args(["exec", "--interactive", container, "/bin/nc", "-w", "10", host, &to]);
        command.env("DOCKER_HOST", self.endpoint()).env("DOCKER_CONFIG", self.directory.path());
        let output = pipe_through(&self.host, &mut command, input)?;
        note(format!("nc in {container} to {host} {port} -> {output:?}"));
        output.success().with_context(|| format!("nc to {host} {port} inside {container}"))?;
        Ok(output.stdout)
    }

    /// What the engine logged so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn tear_down(&mut self) -> Result<()> {
        if self.server.ended()?.is_none() {
            self.remove(&self.containers()?)?;
            self.server.stop(Signal::SIGTERM)?;
        }
        unmount_below(self.directory.path())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let pinned = pin_directories().and_then(|now| remove_pinned(now.difference(&self.pins_before)));
        if let Err(error) = pinned {
            eprintln!("suite: {error:#}");
        }
        if let Err(error) = self.tear_down() {
            eprintln!("suite: failed to stop dockerd: {error:#}; its log: {}", self.log());
        }
    }
}

fn start_server(host: &Netns, directory: &Path, release: Release, options: &[&str]) -> Result<Guarded> {
    let path = |name: &str| directory.join(name);
    let log = std::fs::File::options().create(true).append(true).open(path("log"))?;
    let mut command = release.dockerd()?;
    command.arg("--data-root").arg(path("data")).arg("--exec-root").arg(path("exec"));
    command.arg("--pidfile").arg(path("pid")).arg("--host").arg(endpoint(directory));
    command.args(options).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Ok(Guarded::new(host.spawn(&mut command).context("failed to start dockerd: is it installed?")?))
}

fn endpoint(directory: &Path) -> String {
    format!("unix://{}/docker.sock", directory.display())
}

/// Packs a directory as what an engine imports.
pub(crate) fn pack(netns: &Netns, root: &Path, archive: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(root).arg("-cf").arg(archive).arg(".");
    run_in(netns, &mut tar)?.success()
}

/// The static busybox: `BRIDGE_BUSYBOX`, which `cargo xtask test` sets, else the one where Debian puts it.
pub(super) fn busybox() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("BRIDGE_BUSYBOX") {
        return Ok(named.into());
    }
    let candidates = ["/usr/bin/busybox", "/bin/busybox"].map(PathBuf::from);
    let found = candidates.into_iter().find(|path| path.exists());
    found.context("busybox is missing: install busybox-static")
}

/// Detaches every mount below `directory`, innermost first.
pub(super) fn unmount_below(directory: &Path) -> Result<()> {
    let table = std::fs::read_to_string("/proc/self/mounts")?;
    let below = table.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
    for target in below.filter(|path| path.starts_with(directory)).collect::<Vec<_>>().into_iter().rev() {
        umount2(target, MntFlags::MNT_DETACH)
            .with_context(|| format!("failed to unmount {}", target.display()))?;
    }
    Ok(())
}
