//! Packages of Debian's archive, of any suite: downloaded once, checked against their hashes, unpacked, never
//! installed.

mod mirror;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub(crate) use mirror::Mirror;

use crate::{
    exec::{self, which},
    ui::Step,
    workspace::Workspace,
};

const DOWNLOAD_LIMIT: Duration = Duration::from_secs(900);
const APT_HELPER: &str = "/usr/lib/apt/apt-helper";

/// One Debian package.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Package {
    /// Its place in the archive.
    pub(crate) path: PathBuf,
    /// The hash of the file.
    pub(crate) sha256: String,
}

impl Package {
    /// Packages by their place in the archive and SHA-256.
    pub(crate) fn list(packages: &[(&str, &str)]) -> Vec<Self> {
        let package = |&(path, sha256): &(&str, &str)| Self { path: path.into(), sha256: sha256.to_owned() };
        packages.iter().map(package).collect()
    }
}

/// Packages that are unpacked into one directory.
pub(crate) struct Bundle<'a> {
    /// What they are, for messages.
    pub(crate) name: &'a str,
    /// The suite they come from.
    pub(crate) suite: &'a str,
    /// The packages.
    pub(crate) packages: &'a [Package],
    /// The file that names them, for messages.
    pub(crate) listed_in: &'a str,
    /// What to do when the mirror has them no longer.
    pub(crate) newer: &'a str,
}

impl Bundle<'_> {
    /// Whether exactly these packages were unpacked into `root`.
    pub(crate) fn is_in(&self, root: &Path) -> bool {
        fs::read_to_string(stamp(root)).is_ok_and(|found| found == self.hashes())
    }

    /// Downloads the packages and unpacks them into `root`, which is emptied before.
    pub(crate) fn unpack(&self, ws: &Workspace, root: &Path, step: &Step) -> Result<()> {
        if root.exists() {
            fs::remove_dir_all(root).with_context(|| format!("failed to empty {}", root.display()))?;
        }
        fs::create_dir_all(root).with_context(|| format!("failed to create {}", root.display()))?;
        for package in self.packages {
            let file = self.download(ws, package, step)?;
            step.note("unpacking");
            let mut unpack = exec::tool("dpkg-deb");
            exec::capture(unpack.arg("-x").arg(&file).arg(root), "unpack a package")?;
        }
        let stamp = stamp(root);
        fs::write(&stamp, self.hashes()).with_context(|| format!("failed to write {}", stamp.display()))
    }

    fn hashes(&self) -> String {
        self.packages.iter().map(|package| format!("{}\n", package.sha256)).collect()
    }

    /// A package's file, from the cache or from the mirror.
    fn download(&self, ws: &Workspace, package: &Package, step: &Step) -> Result<PathBuf> {
        let name = package.path.file_name().context("failed to read the package's path: it names no file")?;
        let cached = ws.target("debs").join(name);
        if cached.exists() && sha256(&cached)? == package.sha256 {
            return Ok(cached);
        }
        let partial = cached.with_extension("partial");
        let url = format!("{}/{}", Mirror::find()?.archive(self.suite), package.path.display());
        let name = name.to_string_lossy();
        step.note(&format!("downloading {name}"));
        let mut command = downloader(&url, &partial, &package.sha256)?;
        let (what, log) = (format!("download {name}"), partial.with_extension("log"));
        exec::run_logged(&mut command, &what, step, &log, DOWNLOAD_LIMIT).with_context(|| {
            format!("failed to get {}: if the mirror has dropped {name}, {}", self.name, self.newer)
        })?;
        let found = sha256(&partial)?;
        if found != package.sha256 {
            bail!(
                "failed to trust {name}: its SHA-256 is {found}, {} says {}: the mirror's file was changed or damaged: \
                 try another mirror",
                self.listed_in,
                package.sha256
            );
        }
        fs::rename(&partial, &cached).with_context(|| format!("failed to keep {}", cached.display()))?;
        Ok(cached)
    }
}

/// Says which packages a directory holds; written last.
fn stamp(root: &Path) -> PathBuf {
    root.join(".packages")
}

/// apt's own downloader where there is one, since it knows the machine's proxies; curl elsewhere.
fn downloader(url: &str, file: &Path, sha256: &str) -> Result<Command> {
    if Path::new(APT_HELPER).exists() {
        let mut command = exec::tool(APT_HELPER);
        command.args(["-o", "APT::Sandbox::User=root", "download-file", url]).arg(file);
        command.arg(format!("SHA256:{sha256}"));
        return Ok(command);
    }
    let Some(curl) = which("curl") else {
        bail!("failed to download {url}: neither apt nor curl is there: install curl");
    };
    let mut command = exec::tool(curl);
    command.args(["--fail", "--location", "--silent", "--show-error", "--output"]).arg(file).arg(url);
    Ok(command)
}

/// The SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let failed = || format!("failed to read {}", path.display());
    let mut hasher = Sha256::new();
    io::copy(&mut File::open(path).with_context(failed)?, &mut hasher).with_context(failed)?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
