//! Other people's relays, each on one gateway port in front of one loopback port, set up to be at their best.
//!
//! Invariants: every relay runs in a process group of its own that ends with its guard, workers and forked children
//! included; a relay is handed out once it listens where it was told to.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::group::Group;
use super::netns::Netns;
use super::wait::{patience, until};

/// A program that relays TCP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerKind {
    /// In TCP mode, with splice(2) both ways.
    Haproxy,
    /// nginx's stream module.
    Nginx,
    /// What Docker publishes ports with.
    DockerProxy,
    /// A process per connection, with a buffer it is fast with.
    Socat,
}

impl PeerKind {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Haproxy, Self::Nginx, Self::DockerProxy, Self::Socat];

    /// The name people know it by.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::DockerProxy => "docker-proxy",
            Self::Socat => "socat",
        }
    }

    /// How it is started; files go into `directory`.
    fn command(self, from: SocketAddr, to: SocketAddr, directory: &Path) -> Result<Command> {
        match self {
            Self::Haproxy => haproxy(from, to, directory),
            Self::Nginx => nginx(from, to, directory),
            Self::DockerProxy => docker_proxy(from, to),
            Self::Socat => Ok(socat(from, to)),
        }
    }
}

/// A running relay.
pub(crate) struct Peer {
    processes: Group,
    _directory: TempDir,
}

impl Peer {
    /// Starts it inside `netns` and waits until it listens.
    pub(crate) fn start(kind: PeerKind, netns: &Netns, from: SocketAddr, to: SocketAddr) -> Result<Self> {
        let name = kind.name();
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("log");
        let log = std::fs::File::create(&path)?;
        let mut command = kind.command(from, to, directory.path())?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut processes = Group::spawn(netns, &mut command)
            .with_context(|| format!("failed to start {name}: is it installed?"))?;
        let listens = until(&format!("{name} listens on {from}"), patience(10), || {
            if let Some(status) = processes.ended()? {
                bail!("{name} ended with {status}");
            }
            Ok(netns.listening()?.contains(&from).then_some(()))
        });
        listens.with_context(|| {
            format!("its output: {}", std::fs::read_to_string(&path).unwrap_or_default().trim_end())
        })?;
        Ok(Self { processes, _directory: directory })
    }

    /// The process it began with.
    pub(crate) fn pid(&self) -> u32 {
        self.processes.pid()
    }
}

/// Threads: its default, one per CPU. Splicing is asked for, not left to its guess.
fn haproxy(from: SocketAddr, to: SocketAddr, directory: &Path) -> Result<Command> {
    let config = format!(
        "global\n maxconn 4096\n\
         defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n \
         option splice-request\n option splice-response\n option tcp-smart-accept\n option tcp-smart-connect\n\
         listen relay\n bind {from}\n server service {to}\n"
    );
    let file = write(directory, "haproxy.cfg", &config)?;
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(file);
    Ok(command)
}

/// Workers: one per CPU, with a listener each.
fn nginx(from: SocketAddr, to: SocketAddr, directory: &Path) -> Result<Command> {
    let at = directory.display();
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    let module = if module.exists() { format!("load_module {};\n", module.display()) } else { String::new() };
    let config = format!(
        "{module}daemon off;\nuser root;\nworker_processes auto;\npid {at}/pid;\nerror_log {at}/error.log;\n\
         events {{ worker_connections 4096; multi_accept on; }}\n\
         stream {{\n server {{\n listen {from} reuseport backlog=4096;\n proxy_pass {to};\n \
         proxy_buffer_size 256k;\n proxy_half_close on;\n tcp_nodelay on;\n }}\n}}\n"
    );
    let file = write(directory, "nginx.conf", &config)?;
    let mut command = Command::new("nginx");
    command.arg("-p").arg(directory).arg("-e").arg(directory.join("error.log")).arg("-c").arg(file);
    Ok(command)
}

/// It says on descriptor 3 how its start went, and insists that there is one.
fn docker_proxy(from: SocketAddr, to: SocketAddr) -> Result<Command> {
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" \"$@\" 3>&1"]).arg(docker_proxy_path()?);
    command.args(["-proto", "tcp", "-host-ip", &from.ip().to_string()]);
    command.args(["-host-port", &from.port().to_string(), "-container-ip", &to.ip().to_string()]);
    command.args(["-container-port", &to.port().to_string()]);
    Ok(command)
}

/// Debian has it on PATH, Docker's own packages do not.
fn docker_proxy_path() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = ["/usr/libexec/docker", "/usr/sbin", "/usr/bin"].map(PathBuf::from);
    let found = std::env::split_paths(&path)
        .chain(directories)
        .map(|directory| directory.join("docker-proxy"))
        .find(|file| file.is_file());
    found.context("failed to find docker-proxy: install docker.io")
}

fn socat(from: SocketAddr, to: SocketAddr) -> Command {
    let mut command = Command::new("socat");
    command.args(["-b", "262144"]);
    command.arg(format!("TCP-LISTEN:{},bind={},fork,reuseaddr,nodelay,backlog=4096", from.port(), from.ip()));
    command.arg(format!("TCP:{to},nodelay"));
    command
}

fn write(directory: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let file = directory.join(name);
    std::fs::write(&file, text).with_context(|| format!("failed to write {}", file.display()))?;
    Ok(file)
}
