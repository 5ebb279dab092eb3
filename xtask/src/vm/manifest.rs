//! `tests/kernels.toml`: which kernels, from which Debian packages, and what to expect of each.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, bail};
use bridge_common::kernels::Version;
use serde::{Deserialize, Serialize};

use crate::debian::Package;

/// The whole file.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// The kernels, oldest first.
    #[serde(rename = "kernel")]
    pub(super) kernels: Vec<Kernel>,
}

/// One kernel.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kernel {
    /// What people call it, and the version prefix that an update stays within.
    pub(super) name: String,
    /// The Debian version of its packages.
    #[serde(default)]
    pub(super) version: String,
    /// The Debian suite the packages come from.
    pub(super) suite: String,
    /// Whether it belongs to the default set.
    #[serde(default)]
    pub(super) default: bool,
    /// Seconds from power-on to the outcome.
    pub(super) timeout: u64,
    /// What it was built without of what trials need.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    lacks: Vec<String>,
    /// What `bridge-user check` must report: capability, and whether the kernel has it.
    #[serde(default)]
    pub(super) expect: BTreeMap<String, bool>,
    /// The packages that hold the kernel and its modules.
    #[serde(default, rename = "package")]
    pub(super) packages: Vec<Package>,
}

impl Kernel {
    /// The expectations, as the suite reads them from `BRIDGE_EXPECT`: `steer=1,ingress_ifindex=0`.
    pub(super) fn expectation(&self) -> String {
        let pairs = self.expect.iter().map(|(name, value)| format!("{name}={}", u8::from(*value)));
        pairs.collect::<Vec<_>>().join(",")
    }

    /// What trials need and do not find there, as the suite reads it from `BRIDGE_LACKS`: `mptcp,sockmap`. The suite
    /// holds it against the kernel.
    pub(super) fn lacks(&self) -> Vec<&str> {
        let sockmap = Version::parse(&self.version).is_some_and(|version| version.sockmap().is_err());
        let by_version = sockmap.then_some("sockmap");
        self.lacks.iter().map(String::as_str).chain(by_version).collect()
    }
}

impl Manifest {
    /// Reads the file.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("failed to parse {}", path.display()))
    }

    /// Writes the file, with the comment at its beginning kept.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let old = fs::read_to_string(path).unwrap_or_default();
        let comment: String =
            old.lines().take_while(|line| line.starts_with('#')).flat_map(|line| [line, "\n"]).collect();
        let body = toml::to_string(self).context("failed to write the kernel list as TOML")?;
        fs::write(path, format!("{comment}\n{body}"))
            .with_context(|| format!("failed to write {}", path.display()))
    }

    /// The kernels of the given names; all of them; or the default set.
    pub(super) fn select(&self, names: &[String], all: bool) -> Result<Vec<&Kernel>> {
        if names.is_empty() {
            return Ok(if all { self.kernels.iter().collect() } else { self.default_set() });
        }
        names.iter().map(|name| self.find(name)).collect()
    }

    /// The kernels of every run.
    pub(super) fn default_set(&self) -> Vec<&Kernel> {
        self.kernels.iter().filter(|kernel| kernel.default).collect()
    }

    /// The default set without the series of the kernel that runs here, by its release: on that one the host suite runs
    /// every trial.
    pub(super) fn beside(&self, release: &str) -> Vec<&Kernel> {
        let is_here = |kernel: &&Kernel| {
            let rest = release.strip_prefix(&*kernel.name);
            rest.is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
        };
        self.default_set().into_iter().filter(|kernel| !is_here(kernel)).collect()
    }

    fn find(&self, name: &str) -> Result<&Kernel> {
        let Some(kernel) = self.kernels.iter().find(|kernel| kernel.name == name) else {
            let known: Vec<&str> = self.kernels.iter().map(|kernel| kernel.name.as_str()).collect();
            bail!("failed to find kernel {name}: tests/kernels.toml has {}", known.join(", "));
        };
        Ok(kernel)
    }
}

#[cfg(test)]
mod tests {
    use super::Manifest;

    const TEXT: &str = r#"
        [[kernel]]
        name = "5.10"
        version = "5.10.262-1"
        suite = "bullseye"
        timeout = 60
        lacks = ["mptcp"]
        expect = { steer = true, ingress_ifindex = false }

        [[kernel]]
        name = "6.1"
        version = "6.1.192-2"
        suite = "bookworm"
        default = true
        timeout = 60
    "#;

    #[test]
    fn selects() -> anyhow::Result<()> {
        let manifest: Manifest = toml::from_str(TEXT)?;
        assert_eq!(manifest.kernels[0].expectation(), "ingress_ifindex=0,steer=1");
        assert_eq!(manifest.kernels[0].lacks(), ["mptcp", "sockmap"]);
        assert!(manifest.kernels[1].lacks().is_empty());
        assert_eq!(manifest.select(&[], false)?.len(), 1);
        assert_eq!(manifest.select(&[], true)?.len(), 2);
        for (release, left) in [("6.1.0-56-amd64", 0), ("6.12.1", 1), ("5.10.0", 1), ("6.18.5", 1)] {
            assert_eq!(manifest.beside(release).len(), left, "{release}");
        }
        assert_eq!(manifest.select(&["5.10".to_owned()], false)?[0].name, "5.10");
        let error = manifest.select(&["4.4".to_owned()], false).map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), "failed to find kernel 4.4: tests/kernels.toml has 5.10, 6.1");
        Ok(())
    }
}
