//! Processes of a network namespace, by the program they run.
//!
//! Invariant: read-only. A process that ends meanwhile is not there.

use std::{fs, os::unix::fs::MetadataExt as _};

use super::namespace::Namespace;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// What it was started with, the program first.
    pub arguments: Vec<String>,
    /// The unit of the system's manager that it belongs to.
    pub unit: Option<String>,
}

impl Process {
    /// Those that run one of `programs` in the namespace, without their children that do.
    pub fn all_in(namespace: &Namespace, programs: &[&str]) -> Vec<Self> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let found: Vec<(i32, Self)> = pids.filter_map(|pid| Self::read(pid, namespace, programs)).collect();
        let ids: Vec<i32> = found.iter().map(|(_, process)| process.pid).collect();
        found.into_iter().filter(|(parent, _)| !ids.contains(parent)).map(|(_, process)| process).collect()
    }

    /// The process and the id of its parent, if it runs one of `programs` there.
    fn read(pid: i32, namespace: &Namespace, programs: &[&str]) -> Option<(i32, Self)> {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let text = String::from_utf8_lossy(&line);
        let arguments: Vec<String> = text.trim_end_matches('\0').split('\0').map(str::to_owned).collect();
        let program = arguments.first()?.rsplit('/').next()?;
        if !programs.contains(&program) {
            return None;
        }
        let inode = fs::metadata(format!("/proc/{pid}/ns/net")).ok()?.ino();
        if inode != namespace.inode() {
            return None;
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        Some((parent, Self { pid, arguments, unit: unit_of(&cgroups) }))
    }
}

/// The unit in the path of a cgroup, as of `0::/system.slice/a.service`; none of a user's session.
fn unit_of(cgroups: &str) -> Option<String> {
    let path = cgroups.lines().filter_map(|line| line.rsplit_once(':')).map(|(_, path)| path);
    let mut paths = path.filter(|path| path.contains(".slice/") && !path.contains("user@"));
    let unit = |path: &str| path.split('/').find(|part| part.ends_with(".service")).map(str::to_owned);
    paths.find_map(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_in_the_cgroup() {
        for (cgroups, unit) in [
            ("0::/system.slice/a@b.service\n", Some("a@b.service")),
            (
                "1:cpu:/x\n0::/system.slice/system-forward.slice/forward@1.service\n",
                Some("forward@1.service"),
            ),
            ("0::/user.slice/user-1000.slice/session-3.scope\n", None),
            ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/a.service\n", None),
            ("0::/\n", None),
        ] {
            assert_eq!(unit_of(cgroups).as_deref(), unit, "{cgroups}");
        }
    }

    #[test]
    fn this_process_is_found_once() {
        let program = std::env::args().next().unwrap();
        let name = program.rsplit('/').next().unwrap();
        let found = Process::all_in(&Namespace::current().unwrap(), &[name]);
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(found.iter().filter(|process| process.pid == own).count(), 1);
    }
}
