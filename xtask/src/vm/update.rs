//! `cargo xtask vm --update`: moves kernels to the newest version of their series, from apt's package lists.
//!
//! apt works in directories of its own below `target/vm/apt`; the machine's configuration and lists are not touched.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    debian::{Mirror, Package},
    exec,
    ui::{Detail, Step},
    vm::manifest::Manifest,
    workspace::Workspace,
};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const UPDATE_LIMIT: Duration = Duration::from_secs(300);

/// Rewrites the entries of the named kernels in the manifest at `path`.
pub(super) fn run(ws: &Workspace, manifest: &mut Manifest, names: &[String], path: &Path) -> Result<()> {
    let suites: BTreeSet<String> =
        manifest.select(names, false)?.iter().map(|kernel| kernel.suite.clone()).collect();
    let step = Step::start("package lists", Detail::Every);
    let apt = Apt::create(ws, &suites)?;
    apt.update(&step)?;
    step.done(&suites.iter().map(String::as_str).collect::<Vec<_>>().join(", "));
    for kernel in manifest.kernels.iter_mut().filter(|kernel| names.contains(&kernel.name)) {
        let stanzas = apt.stanzas(&kernel.suite)?;
        let found = newest(&stanzas, &kernel.name).with_context(|| {
            format!("failed to find a {} cloud kernel with its modules in {}", kernel.name, kernel.suite)
        })?;
        println!("{:<8} {} -> {}", kernel.name, or_none(&kernel.version), found.0);
        (kernel.version, kernel.packages) = found;
    }
    manifest.write(path)
}

fn or_none(version: &str) -> &str {
    if version.is_empty() { "(none)" } else { version }
}

/// apt in directories of its own.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn create(ws: &Workspace, suites: &BTreeSet<String>) -> Result<Self> {
        let dir = ws.target("vm/apt");
        for part in ["etc", "state/lists/partial", "cache/archives/partial"] {
            let part = dir.join(part);
            fs::create_dir_all(&part).with_context(|| format!("failed to create {}", part.display()))?;
        }
        let mirror = Mirror::find()?;
        let signed =
            if Path::new(KEYRING).exists() { format!(" signed-by={KEYRING}") } else { String::new() };
        let sources: String = suites
            .iter()
            .map(|suite| format!("deb [arch=amd64{signed}] {} {suite} main\n", mirror.archive(suite)))
            .collect();
        let list = dir.join("etc/sources.list");
        fs::write(&list, sources).with_context(|| format!("failed to write {}", list.display()))?;
        Ok(Self { dir })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = exec::tool(program);
        let set = |name: &str, value: &Path| format!("{name}={}", value.display());
        for option in [
            set("Dir::Etc::sourcelist", &self.dir.join("etc/sources.list")),
            set("Dir::State", &self.dir.join("state")),
            set("Dir::Cache", &self.dir.join("cache")),
        ] {
            command.args(["-o", &option]);
        }
        command.args(["-o", "Dir::Etc::sourceparts=-", "-o", "Acquire::Languages=none"]);
        command.args(["-o", "APT::Sandbox::User=root"]);
        command
    }

    fn update(&self, step: &Step) -> Result<()> {
        let log = self.dir.join("update.log");
        let by_hand = "download the package lists (is the mirror right? BRIDGE_DEBIAN_MIRROR names another)";
        exec::run_logged(self.command("apt-get").arg("update"), by_hand, step, &log, UPDATE_LIMIT)
    }

    /// The package descriptions of a suite.
    fn stanzas(&self, suite: &str) -> Result<Vec<Stanza>> {
        let mut command = self.command("apt-get");
        command.args([
            "indextargets",
            "--format",
            "$(FILENAME)",
            "Created-By: Packages",
            &format!("Release: {suite}"),
        ]);
        let files = exec::capture(&mut command, "list apt's index files")?;
        let mut stanzas = Vec::new();
        for file in files.lines() {
            let mut command = exec::tool("/usr/lib/apt/apt-helper");
            let text = exec::capture(command.args(["cat-file", file]), "read a package list")?;
            stanzas.extend(text.split("\n\n").filter_map(Stanza::parse));
        }
        if stanzas.is_empty() {
            bail!("failed to find cloud kernels in {suite}: its package list has none");
        }
        Ok(stanzas)
    }
}

/// The fields of a kernel package that matter here.
#[derive(Clone, Debug)]
struct Stanza {
    name: String,
    version: String,
    file: Package,
    size: u64,
}

impl Stanza {
    /// Reads the description of a signed cloud kernel, its binary or its modules; anything else is `None`.
    fn parse(text: &str) -> Option<Self> {
        let name = text.trim_start().strip_prefix("Package: ")?.lines().next()?;
        let kind =
            ["linux-image-", "linux-binary-", "linux-modules-"].iter().any(|kind| name.starts_with(kind));
        if !kind || !name.ends_with("-cloud-amd64") {
            return None;
        }
        let field = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
        let file = Package { path: field("Filename: ")?.into(), sha256: field("SHA256: ")?.to_owned() };
        let version = field("Version: ")?.to_owned();
        Some(Self { name: name.to_owned(), version, file, size: field("Size: ")?.parse().ok()? })
    }
}

/// The newest version of a series that comes with everything needed to boot it.
fn newest(stanzas: &[Stanza], series: &str) -> Option<(String, Vec<Package>)> {
    let mut found: Vec<(Vec<u64>, String, Vec<Package>)> = stanzas
        .iter()
        .filter(|stanza| belongs(&stanza.version, series))
        .filter_map(|stanza| {
            Some((numbers(&stanza.version), stanza.version.clone(), packages(stanza, stanzas)?))
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found.pop().map(|(_, version, packages)| (version, packages))
}

fn belongs(version: &str, series: &str) -> bool {
    version.strip_prefix(series).is_some_and(|rest| rest.starts_with(['.', '-', '~', '+']))
}

/// One package that holds all, or the binary and its modules. The image packages of the newer split are empty.
fn packages(stanza: &Stanza, stanzas: &[Stanza]) -> Option<Vec<Package>> {
    const EMPTY: u64 = 1 << 20;
    if stanza.name.starts_with("linux-image-") && stanza.size > EMPTY {
        return Some(vec![stanza.file.clone()]);
    }
    let release = stanza.name.strip_prefix("linux-binary-")?;
    let wanted = format!("linux-modules-{release}");
    let modules = stanzas.iter().find(|other| other.name == wanted && other.version == stanza.version)?;
    Some(vec![stanza.file.clone(), modules.file.clone()])
}

/// The numbers in a version, enough to order the versions of one series.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::{Stanza, belongs, newest};

    fn stanza(name: &str, version: &str, size: u64) -> Stanza {
        let text = format!(
            "Package: {name}\nVersion: {version}\nFilename: pool/{name}_{version}.deb\nSize: {size}\nSHA256: aa"
        );
        Stanza::parse(&text).unwrap_or_else(|| panic!("{name} was not recognised"))
    }

    #[test]
    fn takes_the_newest_that_is_complete() {
        let stanzas = [
            stanza("linux-image-6.1.0-9-cloud-amd64", "6.1.27-1", 30 << 20),
            stanza("linux-image-6.1.0-10-cloud-amd64", "6.1.112-1", 30 << 20),
            stanza("linux-image-6.12.5-cloud-amd64", "6.12.5-1", 30 << 20),
            stanza("linux-binary-7.2.5-cloud-amd64", "7.2.5-1", 12 << 20),
            stanza("linux-modules-7.2.5-cloud-amd64", "7.2.5-1", 30 << 20),
            stanza("linux-binary-7.2.6-cloud-amd64", "7.2.6-1", 12 << 20),
            stanza("linux-image-7.2.6-cloud-amd64", "7.2.6-1", 1024),
        ];
        let version = |series| newest(&stanzas, series).map(|(version, packages)| (version, packages.len()));
        assert_eq!(version("6.1"), Some(("6.1.112-1".to_owned(), 1)));
        assert_eq!(version("7.2"), Some(("7.2.5-1".to_owned(), 2)));
        assert_eq!(version("5.10"), None);
    }

    #[test]
    fn keeps_to_signed_cloud_kernels_of_the_series() {
        assert!(Stanza::parse("Package: linux-image-6.1.0-9-cloud-amd64-dbg\nVersion: 1").is_none());
        assert!(belongs("7.3~rc7-1~exp1", "7.3") && belongs("6.12.43-1", "6.12.43"));
        assert!(!belongs("6.12.43-1", "6.1"));
    }
}
