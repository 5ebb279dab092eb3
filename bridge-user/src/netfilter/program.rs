//! Running a program that shows firewall rules.
//!
//! Invariants: programs are looked for in fixed directories and get a fixed environment, whatever the caller's is
//! (cron's PATH has no sbin); what they print is bounded in bytes and in time, for the rules may be a container's.

use std::{
    io::{self, Read as _},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::net::namespace::Namespace;

/// Where distributions put such programs; the last is NixOS's.
const DIRECTORIES: [&str; 5] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/run/current-system/sw/bin"];
/// The environment's PATH, for what such a program runs itself.
const SEARCH_PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";
/// A ruleset of a hundred thousand set elements has a tenth of this.
const MOST_BYTES: usize = 32 << 20;
/// How long such a program may take. On a host with nothing to spare it is seconds.
const MOST_TIME: Duration = Duration::from_secs(10);

/// What the first of the programs `names` that is installed prints when it runs in the network namespace.
///
/// # Errors
/// Says what was not read, and why.
pub(super) fn output(namespace: &Namespace, names: &[&str], arguments: &[&str]) -> Result<Vec<u8>, String> {
    let mut command = prepared(names)?;
    command.args(arguments);
    run(namespace, &mut command)
        .map_err(|error| format!("{} {}: {error}", command.get_program().display(), arguments.join(" ")))
}

/// The first of the programs `names` that is installed, with the fixed environment.
///
/// # Errors
/// Says where it was looked for.
pub(super) fn prepared(names: &[&str]) -> Result<Command, String> {
    let Some(program) = names.iter().find_map(|name| find(name)) else {
        return Err(format!("there is no {} in {}", names.join(" or "), DIRECTORIES.join(", ")));
    };
    let mut command = Command::new(program);
    command.env_clear().env("PATH", SEARCH_PATH).env("LC_ALL", "C");
    Ok(command)
}

fn find(name: &str) -> Option<PathBuf> {
    DIRECTORIES.iter().map(|directory| Path::new(directory).join(name)).find(|path| path.is_file())
}

fn run(namespace: &Namespace, command: &mut Command) -> Result<Vec<u8>, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let spawned = namespace.run(|| command.spawn()).map_err(|error| error.to_string())?;
    let mut child = Guarded(spawned.map_err(|error| error.to_string())?);
    let deadline = Instant::now() + MOST_TIME;
    let printed = child.read(deadline)?;
    let status = child.wait(deadline)?;
    if status.success() { Ok(printed) } else { Err(format!("it ended with {status}")) }
}

/// A child that does not outlive the wait for it.
struct Guarded(Child);

impl Guarded {
    fn read(&mut self, deadline: Instant) -> Result<Vec<u8>, String> {
        let mut stdout = self.0.stdout.take().ok_or("it has no standard output")?;
        let (mut printed, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            let mut waited = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
            match poll(&mut waited, timeout) {
                Ok(0) => return Err(too_slow()),
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(error.to_string()),
            }
            match stdout.read(&mut buffer) {
                Ok(0) => return Ok(printed),
                Ok(length) => printed.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
            if printed.len() > MOST_BYTES {
                return Err(format!("it printed more than {} MiB", MOST_BYTES >> 20));
            }
        }
    }

    fn wait(&mut self, deadline: Instant) -> Result<std::process::ExitStatus, String> {
        loop {
            if let Some(status) = self.0.try_wait().map_err(|error| error.to_string())? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(too_slow());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn too_slow() -> String {
    format!("it took longer than {} s", MOST_TIME.as_secs())
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // After the end of the process both do nothing.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(names: &[&str], arguments: &[&str]) -> Result<Vec<u8>, String> {
        output(&Namespace::current().expect("/proc"), names, arguments)
    }

    #[test]
    fn programs_get_a_fixed_environment() {
        let printed = String::from_utf8(said(&["no-such-program", "env"], &[]).unwrap()).unwrap();
        let mut lines: Vec<_> = printed.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["LC_ALL=C", &format!("PATH={SEARCH_PATH}")]);
    }

    #[test]
    fn what_is_not_there_or_fails_or_never_ends_is_an_error() {
        assert!(said(&["no-such-program"], &[]).unwrap_err().contains("no no-such-program in /usr/sbin"));
        assert!(said(&["false"], &[]).unwrap_err().contains("exit status: 1"));
        assert!(said(&["yes"], &[]).unwrap_err().contains("more than 32 MiB"));
    }
}
