//! Network namespaces that live exactly as long as their handle.
//!
//! Invariant: a namespace has no name anywhere; the open file is the only reference besides the
//! processes and sockets inside, so even a killed suite leaves none behind. Only short-lived
//! threads enter a namespace, never the main thread.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns, unshare};

use super::proc;

/// Where the binary under test keeps its pins, one directory per namespace inode.
pub(crate) const PIN_ROOT: &str = "/sys/fs/bpf/bridge-user";

/// A network namespace.
pub(crate) struct Netns {
    file: File,
    inode: u64,
}

impl Netns {
    /// Creates an empty namespace with loopback up.
    pub(crate) fn new() -> Result<Self> {
        let file = thread::scope(|scope| {
            let made = scope.spawn(|| -> Result<File> {
                unshare(CloneFlags::CLONE_NEWNET).context("failed to create a network namespace")?;
                Ok(File::open("/proc/thread-self/ns/net")?)
            });
            made.join().map_err(|_| anyhow!("the namespace thread panicked"))?
        })?;
        let netns = Self::of_file(file)?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// The namespace a running process is in.
    pub(crate) fn of_process(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/ns/net");
        Self::of_file(File::open(&path).with_context(|| format!("failed to open {path}"))?)
    }

    fn of_file(file: File) -> Result<Self> {
        let inode = file.metadata()?.ino();
        Ok(Self { file, inode })
    }

    /// The inode that identifies the namespace while it lives.
    pub(crate) fn inode(&self) -> u64 {
        self.inode
    }

    /// Fails if anything is pinned for this namespace, published or in the making.
    pub(crate) fn nothing_pinned(&self) -> Result<()> {
        let traces = pin_traces(self.inode)?;
        ensure!(traces.is_empty(), "pins exist: {traces:?}");
        Ok(())
    }

    /// Where published pins of this namespace are.
    pub(crate) fn pins(&self) -> PathBuf {
        PathBuf::from(format!("{PIN_ROOT}/{}", self.inode))
    }

    /// A path other processes can open while the handle lives.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Runs `body` on a thread inside the namespace; sockets it returns stay in the namespace.
    pub(crate) fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).expect("an open namespace can be entered");
                body()
            });
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a process inside the namespace (children inherit the namespace of the forking thread).
    pub(crate) fn spawn(&self, command: &mut Command) -> std::io::Result<Child> {
        self.run(|| command.spawn())
    }

    /// Runs a batch of `ip` commands inside the namespace.
    pub(crate) fn ip(&self, batch: &str) -> Result<()> {
        let output = proc::pipe_through(self, Command::new("ip").args(["-batch", "-"]), batch)?;
        output.success().with_context(|| format!("failed to configure a namespace with: {batch}"))
    }

    /// Loads an nftables script inside the namespace.
    pub(crate) fn nft(&self, script: &str) -> Result<()> {
        let output = proc::pipe_through(self, Command::new("nft").args(["-f", "-"]), script)?;
        output.success().context("failed to load nftables rules")
    }

    /// Writes a per-namespace sysctl, e.g. `net/ipv4/ip_forward`.
    pub(crate) fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.run(|| std::fs::write(format!("/proc/sys/{name}"), value))
            .with_context(|| format!("failed to set sysctl {name} to {value}"))
    }

    /// Whether bridged packets pass netfilter before the tc program of the bridge sees them, which puts fragments
    /// together. Returns whether this kernel has that.
    pub(crate) fn bridge_netfilter(&self, on: bool) -> Result<bool> {
        const SWITCH: &str = "net/bridge/bridge-nf-call-iptables";
        let there = self.run(|| std::path::Path::new("/proc/sys").join(SWITCH).exists());
        if there {
            self.sysctl(SWITCH, if on { "1" } else { "0" })?;
        }
        Ok(there)
    }

    /// TCP segments that had to be sent again inside the namespace, SYNs among them.
    pub(crate) fn repeated_segments(&self) -> Result<u64> {
        self.counter("snmp", "Tcp:", "RetransSegs")
    }

    /// TCP resets sent from inside the namespace.
    pub(crate) fn tcp_resets(&self) -> Result<u64> {
        self.counter("snmp", "Tcp:", "OutRsts")
    }

    /// One of the namespace's extended TCP counters.
    pub(crate) fn tcp_counter(&self, counter: &str) -> Result<u64> {
        self.counter("netstat", "TcpExt:", counter)
    }

    /// One of the namespace's MPTCP counters.
    pub(crate) fn mptcp_counter(&self, counter: &str) -> Result<u64> {
        self.counter("netstat", "MPTcpExt:", counter)
    }

    /// A counter in one of the files below `/proc/net` where a row of names precedes the row of their values.
    fn counter(&self, file: &str, rows: &str, counter: &str) -> Result<u64> {
        let table = self.run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")))?;
        let mut rows = table.lines().filter(|line| line.starts_with(rows)).map(str::split_whitespace);
        let (names, values) = rows.next().zip(rows.next()).with_context(|| format!("odd {file} file"))?;
        let found = names.zip(values).find(|(name, _)| *name == counter);
        let (_, value) = found.with_context(|| format!("the kernel does not count {counter}"))?;
        value.parse().with_context(|| format!("odd {file} file"))
    }

    /// Local addresses (`ADDR:PORT`) of the TCP sockets that listen inside the namespace.
    pub(crate) fn listening(&self) -> Result<Vec<std::net::SocketAddr>> {
        let tables = self.run(|| {
            ["tcp", "tcp6"].map(|name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")))
        });
        let mut found = Vec::new();
        for table in tables {
            found.extend(
                table.context("failed to read the socket table")?.lines().filter_map(proc::listening_row),
            );
        }
        Ok(found)
    }
}

/// Everything pinned for the namespace with this inode: the published directory, and those that
/// are being made or removed (`<inode>-…`).
pub(crate) fn pin_traces(inode: u64) -> Result<Vec<PathBuf>> {
    let is_its = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.split('-').next() == Some(&inode.to_string())
    };
    Ok(pin_directories()?.into_iter().filter(is_its).collect())
}

/// Everything pinned for any namespace.
pub(crate) fn pin_directories() -> Result<BTreeSet<PathBuf>> {
    let entries = match std::fs::read_dir(PIN_ROOT) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries.with_context(|| format!("failed to list {PIN_ROOT}"))?,
    };
    entries.map(|entry| Ok(entry?.path())).collect()
}
