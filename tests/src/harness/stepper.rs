//! Stops a process right before each lasting change: to kill it there, so that every crash point can be tried, or to
//! write down what it is about to do.
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
use super::sys::{Call, entered_call};
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

/// What becomes of a stopped process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Continue,
    Kill,
    /// The call is not made, and fails with ENOSYS.
    Refuse,
}

/// Runs `command` inside `netns` and kills it right before change number `nth`, counted from 1.
pub(crate) fn kill_before_change(netns: &Netns, command: &Command, nth: usize) -> Result<Ended> {
    let mut changes = 0;
    let ended = at_each_call(netns, command, |_, call| {
        changes += usize::from(is_lasting(call));
        Ok(if changes == nth { Next::Kill } else { Next::Continue })
    })?;
    Ok(match ended {
        None => Ended::Killed,
        Some(code) => Ended::Finished { code, changes },
    })
}

/// Runs `command` inside `netns` and asks `decide` at each system call of it and its children; returns the exit code,
/// unless it was killed.
pub(crate) fn at_each_call(
    netns: &Netns,
    command: &Command,
    decide: impl FnMut(Pid, Call) -> Result<Next> + Send,
) -> Result<Option<i32>> {
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
        let tracer = scope.spawn(move || trace(leader, decide));
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

fn trace(leader: Pid, mut decide: impl FnMut(Pid, Call) -> Result<Next>) -> Result<Option<i32>> {
    until("the shell has stopped", patience(10), || is_stopped(leader))?;
    let follow = Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACEVFORK;
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL | follow;
    ptrace::seize(leader, options).context("failed to trace it")?;
    kill(leader, Signal::SIGCONT)?;
    loop {
        // Only what this thread traces; the suite's other children are not its business.
        let any = waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD))?;
        let (stopped, signal) = match any {
            WaitStatus::Exited(pid, code) if pid == leader => return Ok(Some(code)),
            WaitStatus::Signaled(pid, signal, _) if pid == leader => bail!("it died of {signal}"),
            WaitStatus::PtraceSyscall(pid) => {
                let next = match entered_call(pid)? {
                    Some(call) => decide(pid, call)?,
                    None => Next::Continue,
                };
                match next {
                    Next::Continue => {}
                    Next::Refuse => refuse(pid)?,
                    Next::Kill => {
                        kill(leader, Signal::SIGKILL)?;
                        return Ok(None);
                    }
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

/// Makes the system call that a process is about to make one that does not exist.
#[cfg(target_arch = "x86_64")]
fn refuse(pid: Pid) -> Result<()> {
    let registers = ptrace::getregs(pid).context("failed to read its registers")?;
    let refused = libc::user_regs_struct { orig_rax: u64::MAX, ..registers };
    ptrace::setregs(pid, refused).context("failed to change its registers")
}

#[cfg(not(target_arch = "x86_64"))]
fn refuse(_pid: Pid) -> Result<()> {
    bail!("system calls can be refused on x86_64 only")
}

/// Whether a call can change something that outlives the process.
pub(crate) fn is_lasting(Call { number, arguments }: Call) -> bool {
    if number == libc::SYS_bpf {
        return LASTING_BPF_COMMANDS.contains(&arguments[0]);
    }
    #[cfg(target_arch = "x86_64")]
    if [libc::SYS_rename, libc::SYS_unlink, libc::SYS_rmdir, libc::SYS_mkdir].contains(&number) {
        return true;
    }
    [libc::SYS_renameat2, libc::SYS_renameat, libc::SYS_unlinkat, libc::SYS_mkdirat].contains(&number)
}
