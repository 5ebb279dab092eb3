//! Kills a process right before its n-th lasting change, so that every crash point can be tried.
//!
//! A change is a system call that can outlive the process: map updates and deletions, pins, links,
//! and file operations on bpffs. Invariants: the process is traced from before its first
//! instruction; one thread traces it, as ptrace(2) demands; a process that hangs is killed.

use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::netns::Netns;
use super::sys::entered_call;
use super::wait::{patience, until};

/// Commands of bpf(2) that last: update and delete elements (also batched), pin, attach a program,
/// freeze a map, create, update and detach a link.
const LASTING_BPF_COMMANDS: [u64; 11] = [2, 3, 6, 8, 9, 22, 26, 27, 28, 29, 34];

/// How a stepped run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was killed right before the chosen change.
    Killed,
    /// It ended by itself with this exit code after so many changes.
    Finished { code: i32, changes: usize },
}

/// Runs `command` inside `netns` and kills it right before change number `nth`, counted from 1.
pub(crate) fn kill_before_change(netns: &Netns, command: &Command, nth: usize) -> Result<Ended> {
    // The shell stops itself so that tracing can begin before the program does.
    let mut shell = Command::new("/bin/sh");
    shell
        .args(["-c", "kill -STOP $$; exec \"$@\"", "sh"])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = netns.spawn(&mut shell).context("failed to start a shell")?;
    let leader = Pid::from_raw(i32::try_from(child.id())?);
    let outcome = thread::scope(|scope| {
        let (done, waiting) = channel::<()>();
        scope.spawn(move || {
            if waiting.recv_timeout(patience(60)) == Err(RecvTimeoutError::Timeout) {
                reap(leader);
            }
        });
        let tracer = scope.spawn(move || trace(leader, nth));
        let outcome = tracer.join().map_err(|_| anyhow!("the tracing thread panicked"));
        drop(done);
        outcome
    });
    reap(leader);
    outcome?.with_context(|| format!("failed to step process {leader}"))
}

/// Makes sure the process is gone, whatever happened before.
fn reap(leader: Pid) {
    match kill(leader, Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => eprintln!("suite: failed to kill process {leader}: {error}"),
    }
    match waitpid(leader, Some(WaitPidFlag::__WALL)) {
        // ECHILD: the tracer has reaped it.
        Ok(_) | Err(Errno::ECHILD) => {}
        Err(error) => eprintln!("suite: failed to reap process {leader}: {error}"),
    }
}

fn is_stopped(pid: Pid) -> Result<Option<()>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the shell is gone")?;
    Ok(stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T')).then_some(()))
}

fn trace(leader: Pid, nth: usize) -> Result<Ended> {
    until("the shell has stopped", patience(10), || is_stopped(leader))?;
    let follow = Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACEVFORK;
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL | follow;
    ptrace::seize(leader, options).context("failed to trace it")?;
    kill(leader, Signal::SIGCONT)?;
    let mut changes = 0;
    loop {
        // Only what this thread traces; the suite's other children are not its business.
        let any = waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD))?;
        let (stopped, signal) = match any {
            WaitStatus::Exited(pid, code) if pid == leader => return Ok(Ended::Finished { code, changes }),
            WaitStatus::Signaled(pid, signal, _) if pid == leader => bail!("it died of {signal}"),
            WaitStatus::PtraceSyscall(pid) => {
                changes += usize::from(entered_call(pid)?.is_some_and(is_lasting));
                if changes == nth {
                    kill(leader, Signal::SIGKILL)?;
                    return Ok(Ended::Killed);
                }
                (pid, None)
            }
            WaitStatus::PtraceEvent(pid, _, _) => (pid, None),
            WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
            _ => continue,
        };
        match ptrace::syscall(stopped, signal) {
            // A thread that the process ended in the meantime.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).context("failed to resume it"),
        }
    }
}

/// Whether a call can change something that outlives the process.
fn is_lasting((number, first): (libc::c_long, u64)) -> bool {
    if number == libc::SYS_bpf {
        return LASTING_BPF_COMMANDS.contains(&first);
    }
    #[cfg(target_arch = "x86_64")]
    if [libc::SYS_rename, libc::SYS_unlink, libc::SYS_rmdir, libc::SYS_mkdir].contains(&number) {
        return true;
    }
    [libc::SYS_renameat2, libc::SYS_renameat, libc::SYS_unlinkat, libc::SYS_mkdirat].contains(&number)
}
