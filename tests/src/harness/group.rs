//! A program together with every process it starts, in a process group of its own.
//!
//! Invariants: the whole group ends with its guard, and the program itself is reaped; it is asked first, so that it can
//! reap its children, and then killed. The processor time of a group counts each process once, whether it runs or has
//! been reaped by its parent; the clock ticks in which the kernel reports it lose less than one tick between two
//! readings, on average nothing.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, SysconfVar, sysconf};

use super::netns::Netns;
use super::proc::Guarded;
use super::sys;

/// How long a program may take to end its children.
const GRACE: Duration = Duration::from_secs(1);

/// A running program and its children.
pub(crate) struct Group {
    leader: Guarded,
}

impl Group {
    /// Starts `command` inside `netns`. It can be signalled whatever the caller has blocked.
    pub(crate) fn spawn(netns: &Netns, command: &mut Command) -> Result<Self> {
        command.process_group(0);
        sys::unblock_signals_in(command);
        let child = netns.spawn(command)?;
        Ok(Self { leader: Guarded::new(child) })
    }

    /// Whether the program has ended on its own.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.leader.ended()
    }

    /// The program's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.leader.pid()
    }
}

/// The processor time that a process, its descendants and those they have reaped have used, in user mode and in system
/// calls. What the kernel does for them elsewhere (softirqs, its own threads) is not in it.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let mut ticks = 0;
    let mut pending = vec![pid];
    while let Some(pid) = pending.pop() {
        // One that has just ended counts with its parent from now on.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        ticks += ticks_of(&stat).with_context(|| format!("cannot read times from: {stat}"))?;
        pending.extend(children(pid));
    }
    Ok(Duration::from_secs_f64(ticks as f64 / ticks_per_second()?))
}

impl Drop for Group {
    fn drop(&mut self) {
        let leader = Pid::from_raw(i32::try_from(self.leader.pid()).expect("process ids fit in i32"));
        self.leader.ask_to_end(GRACE);
        // Unless the leader ended on its own it is not reaped before this, so its number is still that of its group.
        match killpg(leader, Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => eprintln!("suite: failed to kill the processes of {leader}: {error}"),
        }
    }
}

/// Clock ticks in /proc, per second.
pub(crate) fn ticks_per_second() -> Result<f64> {
    Ok(sysconf(SysconfVar::CLK_TCK)?.context("the system does not say how long a clock tick is")? as f64)
}

/// utime + stime + cutime + cstime.
fn ticks_of(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut times = fields.split(' ').skip(11).map(|field| field.parse::<u64>().ok());
    (0..4).map(|_| times.next().flatten()).sum()
}

/// Children of any thread of a process; none if it is gone.
fn children(pid: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 11 22 33 44 20 0 1 0 100 1 1";
        assert_eq!(ticks_of(stat), Some(110));
        assert_eq!(ticks_of("7 (a) S 1"), None);
    }
}
