//! systemctl(1): the system's manager, told and asked through its own program.
//!
//! Invariants: the program comes from the system's directories and gets a fixed environment, whatever the caller's is;
//! it is never asked to page, to colour or to ask for a password.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

/// Where distributions have it; the last is NixOS's.
const PROGRAMS: [&str; 3] = ["/usr/bin/systemctl", "/bin/systemctl", "/run/current-system/sw/bin/systemctl"];
/// sd_booted(3): it is there where systemd is the system's manager.
const BOOTED: &str = "/run/systemd/system";
/// Properties that [`Systemctl::state`] asks for.
const PROPERTIES: &str = "--property=LoadState,ActiveState,UnitFileState,FragmentPath,MainPID";

/// The system's manager.
#[derive(Clone, Debug)]
pub struct Systemctl {
    program: PathBuf,
}

/// What the manager says of a unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitState {
    /// It runs, or is about to.
    pub active: bool,
    /// It starts at boot.
    pub enabled: bool,
    /// It cannot be started, by an administrator's decision.
    pub masked: bool,
    /// The file it comes from, if any.
    pub file: Option<PathBuf>,
    /// Its main process.
    pub process: Option<u32>,
}

impl Systemctl {
    /// The manager of this system.
    ///
    /// # Errors
    /// When systemd does not manage it.
    pub fn of_this_system() -> anyhow::Result<Self> {
        if !Path::new(BOOTED).is_dir() {
            bail!(
                "failed to find systemd: {BOOTED} is missing, so this system was not started by it: start \
                 `bridge-user run` with what does start services here"
            );
        }
        let program = PROGRAMS.iter().map(PathBuf::from).find(|program| program.is_file());
        let program = program
            .with_context(|| format!("failed to find systemctl: expected it at {}", PROGRAMS.join(" or ")))?;
        Ok(Self { program })
    }

    /// Tells the manager.
    ///
    /// # Errors
    /// When it refuses, or what was to be done fails; with what it says.
    pub fn tell(&self, arguments: &[&str]) -> anyhow::Result<()> {
        self.run(arguments).map(drop)
    }

    /// What the manager knows of a unit, which need not exist.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn state(&self, unit: &str) -> anyhow::Result<UnitState> {
        self.run(&["show", PROPERTIES, "--", unit]).map(|printed| parse(&printed))
    }

    fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(&self.program);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
        command.args(["--no-pager", "--no-ask-password"]).args(arguments).stdin(Stdio::null());
        let what = format!("systemctl {}", arguments.join(" "));
        let output = command.output().with_context(|| format!("failed to run `{what}`"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("failed to run `{what}`: it ended with {}: {}", output.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn parse(printed: &str) -> UnitState {
    let values: BTreeMap<&str, &str> = printed.lines().filter_map(|line| line.split_once('=')).collect();
    let value = |name: &str| values.get(name).copied().unwrap_or_default();
    UnitState {
        active: ["active", "activating", "reloading"].contains(&value("ActiveState")),
        enabled: ["enabled", "enabled-runtime", "linked"].contains(&value("UnitFileState")),
        masked: value("LoadState") == "masked",
        file: Some(value("FragmentPath")).filter(|path| !path.is_empty()).map(PathBuf::from),
        process: value("MainPID").parse().ok().filter(|pid| *pid != 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_systemctl_shows() {
        let printed = "MainPID=812\nLoadState=loaded\nActiveState=active\nFragmentPath=/lib/systemd/system/a.service\n\
                       UnitFileState=enabled\n";
        let state = parse(printed);
        assert!(state.active && state.enabled && !state.masked);
        assert_eq!(state.process, Some(812));
        assert_eq!(state.file, Some(PathBuf::from("/lib/systemd/system/a.service")));
        let missing = "MainPID=0\nLoadState=not-found\nActiveState=inactive\nFragmentPath=\nUnitFileState=\n";
        assert_eq!(parse(missing), UnitState::default());
        assert!(parse("LoadState=masked\nActiveState=inactive\n").masked);
    }
}
