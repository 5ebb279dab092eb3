//! `tests/kernels-full.toml`: in which kernels every trial passed, when, and of which commit. Written by
//! `cargo xtask vm --full`, a kernel at a time, so that a run that was cut short goes on where it ended.
//!
//! Invariants: an entry is a run without a failure, of a commit without local changes; `build` names the very programs
//! that ran, so an entry of other programs, or of another version of the kernel, counts for nothing.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::{
    counts::Counts,
    debian::sha256,
    exec,
    vm::{
        manifest::{Kernel, Manifest},
        record,
    },
    workspace::Workspace,
};

const HEADER: &str = "\
# The last run of every trial in each kernel of kernels.toml. Written by `cargo xtask vm --full`; do not edit.
";

/// The whole file.
#[derive(Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FullRuns {
    #[serde(rename = "kernel", default)]
    kernels: Vec<FullRun>,
}

/// A kernel in which every trial passed.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FullRun {
    name: String,
    version: String,
    /// Of the run, in UTC.
    pub(super) date: String,
    /// What ran, as git names it.
    pub(super) commit: String,
    build: String,
    /// Trials that passed.
    pub(super) passed: u32,
    /// Trials that were skipped for what the kernel lacks.
    pub(super) skipped: u32,
}

/// What a full run is about to try.
pub(super) struct Candidate {
    commit: String,
    build: String,
    date: String,
}

impl Candidate {
    /// The programs that run, if they are those of a commit.
    pub(super) fn find(ws: &Workspace, programs: &[PathBuf]) -> Result<Option<Self>> {
        let git = |args: &[&str], what: &str| {
            exec::capture(exec::tool("git").current_dir(ws.root()).args(args), what)
        };
        // The runs recorded meanwhile change what is recorded, and nothing that runs.
        let changed = git(
            &["status", "--porcelain", "--", ".", ":!docs/kernels.md", ":!tests/kernels-full.toml"],
            "look for local changes",
        )?;
        if !changed.trim().is_empty() {
            return Ok(None);
        }
        let commit = git(&["rev-parse", "--short=12", "HEAD"], "name the commit")?.trim().to_owned();
        let date = exec::capture(exec::tool("date").args(["-u", "+%F"]), "tell the date")?.trim().to_owned();
        Ok(Some(Self { commit, build: fingerprint(programs)?, date }))
    }
}

impl FullRuns {
    /// Reads the file; without one, nothing was run.
    pub(super) fn read(path: &Path) -> Result<Self> {
        record::read(path)
    }

    /// Writes the file.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        record::write(path, HEADER, self)
    }

    /// The last run in this version of the kernel.
    pub(super) fn of(&self, kernel: &Kernel) -> Option<&FullRun> {
        self.kernels.iter().find(|run| run.name == kernel.name && run.version == kernel.version)
    }

    /// Whether exactly this passed there already.
    pub(super) fn has(&self, kernel: &Kernel, candidate: &Candidate) -> bool {
        self.of(kernel).is_some_and(|run| run.build == candidate.build)
    }

    /// Puts a run in the place of the last one; the order is that of the kernel list.
    pub(super) fn put(
        &mut self,
        manifest: &Manifest,
        kernel: &Kernel,
        candidate: &Candidate,
        counts: Counts,
    ) {
        self.kernels.retain(|run| run.name != kernel.name);
        self.kernels.push(FullRun {
            name: kernel.name.clone(),
            version: kernel.version.clone(),
            date: candidate.date.clone(),
            commit: candidate.commit.clone(),
            build: candidate.build.clone(),
            passed: counts.passed,
            skipped: counts.ignored,
        });
        let place = |name: &str| manifest.kernels.iter().position(|kernel| kernel.name == name);
        self.kernels.retain(|run| place(&run.name).is_some());
        self.kernels.sort_by_key(|run| place(&run.name));
    }
}

/// The beginnings of the programs' hashes, one after the other.
fn fingerprint(programs: &[PathBuf]) -> Result<String> {
    programs.iter().map(|program| Ok(sha256(program)?[..16].to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::{Candidate, FullRuns};
    use crate::{counts::Counts, vm::manifest::Manifest};

    fn candidate(build: &str) -> Candidate {
        Candidate { commit: "abc".to_owned(), build: build.to_owned(), date: "2026-11-27".to_owned() }
    }

    #[test]
    fn only_the_same_programs_in_the_same_kernel_need_not_run_again() -> anyhow::Result<()> {
        let entry = |name| {
            format!("[[kernel]]\nname = \"{name}\"\nversion = \"{name}.9-1\"\nsuite = \"s\"\ntimeout = 1\n")
        };
        let manifest: Manifest = toml::from_str(&(entry("5.10") + &entry("6.1")))?;
        let [old, new] = &manifest.kernels[..] else { anyhow::bail!("two kernels") };
        let mut runs = FullRuns::default();
        let counts = Counts { passed: 200, ignored: 9, ..Counts::default() };
        runs.put(&manifest, new, &candidate("one"), counts);
        runs.put(&manifest, old, &candidate("one"), counts);
        let file = tempfile::NamedTempFile::new()?;
        runs.write(file.path())?;
        let read = FullRuns::read(file.path())?;
        assert_eq!((&read, read.kernels[0].name.as_str()), (&runs, "5.10"));
        assert!(read.has(new, &candidate("one")) && !read.has(new, &candidate("two")));
        let mut newer = new.clone();
        newer.version.push('1');
        assert!(!read.has(&newer, &candidate("one")) && read.of(&newer).is_none());
        Ok(())
    }
}
