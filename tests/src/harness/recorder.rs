//! Writes down what a run of the binary really changes: the system calls that last, in words that a plan can be
//! compared with.
//!
//! Invariants: it begins when the lock on the pins is taken, because probes, which come before it, change nothing but
//! what is gone with them; from then on no call is left out but those of loading (a program's constants, which are a
//! map of their own, and what the loader tries of the kernel) and of the lock.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;

use super::netns::Netns;
use super::stepper::{Next, at_each_call, is_lasting};
use super::sys::{BpfKind, Call, bpf_name};

/// `BPF_CGROUP_SOCK_OPS` and so on, `enum bpf_attach_type`.
pub(crate) type AttachType = u32;

/// `BPF_PERF_EVENT`: the loader tries whether the kernel has such links.
const PERF_EVENT: AttachType = 41;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Made {
    Directory(PathBuf),
    Pin(PathBuf),
    Link(AttachType),
    /// Another program behind a link.
    Replaced,
    Detached,
    Removed(PathBuf),
    Written(String),
    Deleted(String),
    Frozen(String),
    /// A program that was started.
    Started(String),
    /// A call that no plan has words for.
    Other(String),
}

/// Runs `command` in the namespace, and returns what it changed from when it had the lock; nothing if it took none.
pub(crate) fn record(netns: &Netns, command: &Command) -> Result<Vec<Made>> {
    let mut made = Vec::new();
    let code = at_each_change(netns, command, |change| {
        made.push(change);
        Next::Continue
    })?;
    ensure!(code == Some(0), "the recorded run ended with {code:?} after {made:?}");
    // One program may be looked for in several directories.
    made.dedup_by(|next, last| matches!(next, Made::Started(_)) && next == last);
    Ok(made)
}

/// Runs `command` and lets change number `nth`, counted from 1, fail. Returns that change, if there were so many, and
/// the exit code.
pub(crate) fn refuse_change(
    netns: &Netns,
    command: &Command,
    nth: usize,
) -> Result<(Option<Made>, Option<i32>)> {
    let mut changes = 0;
    let mut refused = None;
    let code = at_each_change(netns, command, |change| {
        changes += 1;
        if changes != nth {
            return Next::Continue;
        }
        refused = Some(change);
        Next::Refuse
    })?;
    Ok((refused, code))
}

fn at_each_change(
    netns: &Netns,
    command: &Command,
    mut decide: impl FnMut(Made) -> Next + Send,
) -> Result<Option<i32>> {
    let root = netns.pins().parent().context("the pins have no parent directory")?.to_owned();
    let mut has_lock = false;
    let code = at_each_call(netns, command, |pid, call| {
        has_lock = has_lock || is_lock(pid, call, &root);
        if !has_lock {
            return Ok(Next::Continue);
        }
        let made = what(pid, call)?.filter(|made| !is_of_the_lock(made, &root));
        Ok(made.map_or(Next::Continue, &mut decide))
    })?;
    Ok(code)
}

fn is_lock(pid: Pid, call: Call, root: &Path) -> bool {
    let [descriptor, ..] = call.arguments;
    let file = || fs::read_link(format!("/proc/{pid}/fd/{descriptor}"));
    call.number == libc::SYS_flock && file().is_ok_and(|path| path == root)
}

/// The last one out tries to remove the directory that is locked.
fn is_of_the_lock(made: &Made, root: &Path) -> bool {
    matches!(made, Made::Removed(path) | Made::Directory(path) if path == root)
}

fn what(pid: Pid, call: Call) -> Result<Option<Made>> {
    let Call { number, arguments: [first, second, ..] } = call;
    if number == libc::SYS_execve {
        let path = text(pid, first)?;
        if is_reading(pid, &path, second)? {
            return Ok(None);
        }
        return Ok(Some(Made::Started(path.rsplit('/').next().unwrap_or_default().to_owned())));
    }
    if !is_lasting(call) {
        return Ok(None);
    }
    if number == libc::SYS_bpf {
        return of_bpf(pid, first, second);
    }
    #[cfg(target_arch = "x86_64")]
    match number {
        libc::SYS_mkdir => return Ok(Some(Made::Directory(text(pid, first)?.into()))),
        libc::SYS_unlink | libc::SYS_rmdir => return Ok(Some(Made::Removed(text(pid, first)?.into()))),
        _ => {}
    }
    Ok(Some(match number {
        libc::SYS_mkdirat => Made::Directory(text(pid, second)?.into()),
        libc::SYS_unlinkat => Made::Removed(text(pid, second)?.into()),
        other => Made::Other(format!("system call {other}")),
    }))
}

/// Whether a program is started that shows firewall rules and changes none; `arguments`: where its vector is.
fn is_reading(pid: Pid, path: &str, arguments: u64) -> Result<bool> {
    let mut address = [0u8; 8];
    let at = arguments + address.len() as u64;
    memory(pid)?.read_exact_at(&mut address, at).context("failed to read the arguments of a program")?;
    let first = u64::from_ne_bytes(address);
    Ok(path.ends_with("-save") || (first != 0 && text(pid, first)? == "--json"))
}

/// A command of bpf(2), whose words are `union bpf_attr`.
fn of_bpf(pid: Pid, command: u64, attributes: u64) -> Result<Option<Made>> {
    let mut words = [0u8; 16];
    memory(pid)?.read_exact_at(&mut words, attributes).context("failed to read the words of bpf(2)")?;
    let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|byte| words[4 * at + byte]));
    let map = || map_name(pid, word(0));
    let made = match command {
        2 => Made::Written(map()?),
        3 => Made::Deleted(map()?),
        22 => Made::Frozen(map()?),
        6 => {
            let path: [u8; 8] = std::array::from_fn(|byte| words[byte]);
            Made::Pin(text(pid, u64::from_ne_bytes(path))?.into())
        }
        28 => Made::Link(word(2)),
        29 => Made::Replaced,
        34 => Made::Detached,
        other => Made::Other(format!("bpf command {other}")),
    };
    let is_loading = match &made {
        Made::Written(map) | Made::Frozen(map) => map.starts_with(CONSTANTS),
        Made::Link(kind) => *kind == PERF_EVENT,
        _ => false,
    };
    Ok((!is_loading).then_some(made))
}

/// What the names of the maps of a program's constants begin with.
const CONSTANTS: &str = ".rodata";

fn map_name(pid: Pid, descriptor: u32) -> Result<String> {
    let path = format!("/proc/{pid}/fdinfo/{descriptor}");
    let info = fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))?;
    let id = info.lines().find_map(|line| line.strip_prefix("map_id:")?.trim().parse().ok());
    let id = id.with_context(|| format!("descriptor {descriptor} is no map: {info}"))?;
    bpf_name(BpfKind::Map, id).with_context(|| format!("map {id} is gone"))
}

/// A NUL-terminated string of the process.
fn text(pid: Pid, at: u64) -> Result<String> {
    let memory = memory(pid)?;
    let mut bytes = Vec::new();
    loop {
        let mut byte = [0];
        memory.read_exact_at(&mut byte, at + bytes.len() as u64).context("failed to read a path")?;
        match byte {
            [0] => return String::from_utf8(bytes).context("a path is no text"),
            [byte] => bytes.push(byte),
        }
    }
}

fn memory(pid: Pid) -> Result<File> {
    File::open(format!("/proc/{pid}/mem")).with_context(|| format!("failed to read the memory of {pid}"))
}
