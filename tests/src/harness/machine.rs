//! A machine that systemd manages: the real one, as the first process of namespaces of its own, on this machine's
//! files with a layer above that takes every change.
//!
//! Invariants: its units are a few empty targets and what a trial installs, so nothing of this machine's is started
//! there; /proc/sys is read-only, devices are its own, and its network is the trial's. Everything ends with the handle,
//! its cgroups too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::cli::binary;
use super::netns::Netns;
use super::proc::{Guarded, Output, finish};
use super::transcript::note;
use super::wait::{patience, until};

/// Where the machine has the binary under test.
pub(crate) const BINARY: &str = "/usr/local/bin/bridge-user";

/// Makes the machine's files in `$1` and becomes its systemd; `$2` is the binary, `$3` the name of its cgroup.
const BOOT: &str = r#"
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/up" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/up,workdir=$1/work" "$1/root"
root=$1/root
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs sysfs "$root/sys"
mount --bind /sys/fs/bpf "$root/sys/fs/bpf"
mount -t cgroup2 none "$root/sys/fs/cgroup"
mkdir "$root/sys/fs/cgroup/$3"
echo $$ > "$root/sys/fs/cgroup/$3/cgroup.procs"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue" "$root/run/lock"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
touch "$root/dev/console"
for units in /etc/systemd/system /usr/lib/systemd/system /usr/lib/systemd/system-generators; do
    mkdir -p "$root$units"
    mount -t tmpfs tmpfs "$root$units"
done
cd "$root/usr/lib/systemd/system"
for target in basic sysinit multi-user network shutdown; do
    printf '[Unit]\nDefaultDependencies=no\n' > "$target.target"
done
mkdir -p "$root/etc/systemd/system/service.d"
printf '[Service]\nStandardOutput=append:/run/%%n.log\nStandardError=inherit\n' \
    > "$root/etc/systemd/system/service.d/log.conf"
install -m 755 "$2" "$root/usr/local/bin/bridge-user"
export container=trial
exec chroot "$root" /lib/systemd/systemd --system --unit=multi-user.target --log-target=null --show-status=no
"#;

/// The machine.
pub(crate) struct Machine {
    /// Ends the machine's first process with itself.
    outer: Option<Guarded>,
    /// That process, as this machine numbers it.
    init: u32,
    cgroup: String,
    _files: tempfile::TempDir,
}

impl Machine {
    /// Boots it, with the network of `netns`.
    pub(crate) fn boot(netns: &Netns) -> Result<Self> {
        let files = tempfile::tempdir()?;
        let cgroup = format!("bridge-trial-{}-{}", std::process::id(), netns.inode());
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--pid",
            "--uts",
            "--ipc",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            BOOT,
            "boot",
        ]);
        command.arg(files.path()).arg(binary()?).arg(&cgroup);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let outer = Guarded::new(netns.spawn(&mut command).context("failed to run unshare")?);
        let mut machine = Self { init: 0, outer: Some(outer), cgroup, _files: files };
        machine.init = until("a machine has its first process", patience(20), || machine.first_process())?;
        until("systemd has booted", patience(30), || {
            let state = machine.run(&["systemctl", "is-system-running"])?;
            Ok(["running", "degraded"].contains(&state.stdout.trim()).then_some(()))
        })?;
        Ok(machine)
    }

    fn first_process(&mut self) -> Result<Option<u32>> {
        let outer = self.outer.as_mut().context("the machine has ended")?;
        if let Some(status) = outer.ended()? {
            bail!("the machine ended with {status}");
        }
        let pid = outer.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let Some(init) = children.split_whitespace().next() else { return Ok(None) };
        let name = fs::read_to_string(format!("/proc/{init}/comm")).unwrap_or_default();
        Ok(init.parse().ok().filter(|_| name.trim() == "systemd"))
    }

    /// Runs a program there, whatever its exit code.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string()]);
        command.args(["--mount", "--pid", "--net", "--uts", "--ipc", "--root", "--wd", "--"]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = finish(command.spawn().context("failed to run nsenter")?, patience(60))?;
        note(format!("$ {} -> {:?}\n{}{}", arguments.join(" "), output.code, output.stdout, output.stderr));
        Ok(output)
    }

    /// Runs a program there that has to succeed; returns what it printed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run(arguments)?;
        output.success().with_context(|| arguments.join(" "))?;
        Ok(output.stdout)
    }

    /// Where this machine sees a file of that one.
    fn outside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// What a file there contains, if there is one.
    pub(crate) fn read(&self, path: &str) -> Result<Option<String>> {
        match fs::read_to_string(self.outside(path)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            text => Ok(Some(text.with_context(|| format!("failed to read {path} of the machine"))?)),
        }
    }

    /// Writes a file there, its directory included.
    pub(crate) fn write(&self, path: &str, text: &str) -> Result<()> {
        let at = self.outside(path);
        let directory = at.parent().context("a file has a directory")?;
        fs::create_dir_all(directory)?;
        fs::write(&at, text).with_context(|| format!("failed to write {path} of the machine"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.outer.take());
        let cgroup = self.cgroup.clone();
        let gone = until("the machine's cgroups are gone", patience(20), || {
            Ok(cgroup_root().is_none_or(|root| remove_tree(&root.join(&cgroup))).then_some(()))
        });
        if let Err(error) = gone {
            eprintln!("suite: {error:#}");
        }
    }
}

/// Where this machine has cgroup v2.
fn cgroup_root() -> Option<PathBuf> {
    let places = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    places.into_iter().find(|place| place.join("cgroup.controllers").exists())
}

/// Removes a cgroup and those below it. False: a process is still in one.
fn remove_tree(cgroup: &Path) -> bool {
    let Ok(entries) = fs::read_dir(cgroup) else { return true };
    let below = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    for entry in below {
        remove_tree(&entry.path());
    }
    fs::remove_dir(cgroup).is_ok()
}
