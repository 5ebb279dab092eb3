//! Kernels out of Debian packages: downloaded once, checked against their hashes, unpacked, never installed.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::{
    exec::{self, which},
    ui::{Detail, Step},
    vm::{
        manifest::{Kernel, Package},
        mirror::Mirror,
    },
    workspace::Workspace,
};

const DOWNLOAD_LIMIT: Duration = Duration::from_secs(900);
const APT_HELPER: &str = "/usr/lib/apt/apt-helper";

/// An unpacked kernel.
pub(super) struct Tree {
    /// The bootable image.
    pub(super) vmlinuz: PathBuf,
    /// `lib/modules/<release>`.
    pub(super) modules: PathBuf,
}

/// Downloads and unpacks a kernel, unless that has been done.
pub(super) fn fetch(ws: &Workspace, kernel: &Kernel) -> Result<Tree> {
    if kernel.packages.is_empty() {
        bail!(
            "failed to download kernel {0}: no packages are listed: run `cargo xtask vm --update {0}`",
            kernel.name
        );
    }
    let root = ws.target("vm/kernels").join(&kernel.name);
    let stamp = root.join(".packages");
    let wanted: String = kernel.packages.iter().map(|package| format!("{}\n", package.sha256)).collect();
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Tree::locate(&root);
    }
    let step = Step::start(format!("kernel {}", kernel.name), Detail::Every);
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("failed to empty {}", root.display()))?;
    }
    fs::create_dir_all(&root).with_context(|| format!("failed to create {}", root.display()))?;
    for package in &kernel.packages {
        let file = download(ws, kernel, package, &step)?;
        step.note("unpacking");
        let mut unpack = exec::tool("dpkg-deb");
        exec::capture(unpack.arg("-x").arg(&file).arg(&root), "unpack a kernel package")?;
    }
    let tree = Tree::locate(&root)?;
    fs::write(&stamp, wanted).with_context(|| format!("failed to write {}", stamp.display()))?;
    step.done(&format!("{} downloaded and unpacked", kernel.version));
    Ok(tree)
}

/// A package's file, from the cache or from the mirror.
fn download(ws: &Workspace, kernel: &Kernel, package: &Package, step: &Step) -> Result<PathBuf> {
    let name = package.path.file_name().context("failed to read the package's path: it names no file")?;
    let cached = ws.target("vm/debs").join(name);
    if cached.exists() && sha256(&cached)? == package.sha256 {
        return Ok(cached);
    }
    let partial = cached.with_extension("partial");
    let url = format!("{}/{}", Mirror::find()?.archive(&kernel.suite), package.path.display());
    let (by_hand, name) = (&kernel.name, name.to_string_lossy());
    step.note(&format!("downloading {name}"));
    let mut command = downloader(&url, &partial, &package.sha256)?;
    exec::run_logged(
        &mut command,
        &format!("download {name}"),
        step,
        &partial.with_extension("log"),
        DOWNLOAD_LIMIT,
    )
    .with_context(|| {
        format!(
            "failed to get kernel {by_hand}: if the mirror has dropped {}, take a newer one with \
                 `cargo xtask vm --update {by_hand}`",
            kernel.version
        )
    })?;
    let found = sha256(&partial)?;
    if found != package.sha256 {
        bail!(
            "failed to trust {name}: its SHA-256 is {found}, tests/kernels.toml says {}: the mirror's file was changed \
             or damaged",
            package.sha256
        );
    }
    fs::rename(&partial, &cached).with_context(|| format!("failed to keep {}", cached.display()))?;
    Ok(cached)
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

fn sha256(path: &Path) -> Result<String> {
    let failed = || format!("failed to read {}", path.display());
    let mut hasher = Sha256::new();
    io::copy(&mut File::open(path).with_context(failed)?, &mut hasher).with_context(failed)?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

impl Tree {
    fn locate(root: &Path) -> Result<Self> {
        let modules = ["lib/modules", "usr/lib/modules"]
            .iter()
            .find_map(|place| only_entry(&root.join(place)))
            .with_context(|| format!("failed to find modules below {}", root.display()))?;
        let boot = fs::read_dir(root.join("boot")).into_iter().flatten().flatten().map(|entry| entry.path());
        let vmlinuz = boot
            .chain([modules.join("vmlinuz")])
            .find(|path| {
                path.exists() && path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz"))
            })
            .with_context(|| format!("failed to find a kernel image below {}", root.display()))?;
        Ok(Self { vmlinuz, modules })
    }
}

fn only_entry(dir: &Path) -> Option<PathBuf> {
    Some(fs::read_dir(dir).ok()?.next()?.ok()?.path())
}
