//! `cargo xtask dist`: what is given to others, in `target/dist`: packages for Debian and Fedora, a tarball, the list
//! of what is inside, and the checksums.
//!
//! Invariants: one static binary is in all of them; the same commit gives the same bytes (`SOURCE_DATE_EPOCH`, by
//! default the commit's date); nothing of this machine is in them; what was made is unpacked and tried before it is
//! called done.

mod check;
mod contents;
mod deb;
mod rpm;
mod sbom;
mod tarball;

use std::{
    env,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build,
    debian::sha256,
    exec,
    setup::{self, Need},
    ui::{self, Detail},
    workspace::Workspace,
};

/// Static, so that one binary runs on every distribution.
const TARGET: &str = "x86_64-unknown-linux-musl";
/// As `release`, without symbols. Not `dist`, whose directory is the one that the packages are in.
const PROFILE: &str = "static";
const SUMS: &str = "SHA256SUMS";

/// What all of them say of themselves.
struct Release {
    /// The version of bridge-user.
    version: String,
    /// Seconds since 1970, of everything inside.
    epoch: u32,
    /// Whom to write to.
    maintainer: String,
}

/// The command.
pub(crate) fn run(ws: &Workspace) -> Result<()> {
    setup::programs(ws, &[Need::Dist], Detail::OnlyWork)?;
    let release = Release::find(ws)?;
    build::ebpf(ws)?;
    let binary = static_binary(ws, &release)?;
    let out = ws.target("dist");
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("failed to empty {}", out.display()))?;
    }
    fs::create_dir_all(&out).with_context(|| format!("failed to create {}", out.display()))?;
    let contents = contents::of(ws, &binary)?;
    let made = [
        deb::write(&release, &contents, &out)?,
        rpm::write(&release, &contents, &out)?,
        tarball::write(&release, &contents, &out)?,
        sbom::write(ws, &release, &out)?,
    ];
    check::packages(&release, &contents, &made)?;
    let sums = checksums(&made, &out)?;
    made.iter().chain([&sums]).for_each(|path| ui::result(&path.display().to_string()));
    Ok(())
}

impl Release {
    fn find(ws: &Workspace) -> Result<Self> {
        let maintainer = env::var("BRIDGE_MAINTAINER").unwrap_or_else(|_| MAINTAINER.to_owned());
        Ok(Self { version: version(ws)?, epoch: epoch(ws)?, maintainer })
    }

    /// The date of everything inside, as programs take it from the environment.
    fn date(&self) -> (&'static str, String) {
        (EPOCH, self.epoch.to_string())
    }
}

/// The variable of reproducible-builds.org.
const EPOCH: &str = "SOURCE_DATE_EPOCH";
/// Who packages it for others says who that is.
const MAINTAINER: &str = "The bridge-user developers <bridge-user@packages.example>";

fn version(ws: &Workspace) -> Result<String> {
    let path = ws.path("Cargo.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
    let manifest: toml::Table = text.parse().with_context(|| format!("failed to read {}", path.display()))?;
    let package = manifest.get("workspace").and_then(|workspace| workspace.get("package"));
    let version = package.and_then(|package| package.get("version")).and_then(toml::Value::as_str);
    version
        .map(str::to_owned)
        .context("failed to read the version: Cargo.toml has no workspace.package.version")
}

fn epoch(ws: &Workspace) -> Result<u32> {
    let text = match env::var(EPOCH) {
        Ok(text) => text,
        Err(_) => {
            let mut git = exec::tool("git");
            git.current_dir(ws.root()).args(["log", "-1", "--format=%ct"]);
            exec::capture(&mut git, "find the commit's date").with_context(|| {
                format!("set {EPOCH} to the seconds since 1970 that the packages shall have")
            })?
        }
    };
    text.trim().parse().with_context(|| format!("failed to read {EPOCH} {}: expected seconds", text.trim()))
}

/// Builds the binary; no path of this machine is left in it.
fn static_binary(ws: &Workspace, release: &Release) -> Result<PathBuf> {
    setup::static_target(ws, TARGET, Detail::OnlyWork)?;
    let mut cargo = ws.cargo("build");
    cargo.args(["--locked", "--package", "bridge-user", "--profile", PROFILE, "--target", TARGET]);
    let mut rustc = exec::tool("rustc");
    let sysroot =
        exec::capture(rustc.current_dir(ws.root()).args(["--print", "sysroot"]), "find the compiler")?;
    let flags = ws.without_paths(Path::new(sysroot.trim()));
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")).envs([release.date()]);
    exec::run(&mut cargo, "build the static binary")?;
    Ok(ws.target(TARGET).join(PROFILE).join("bridge-user"))
}

/// Writes what `sha256sum --check` takes.
fn checksums(made: &[PathBuf], out: &Path) -> Result<PathBuf> {
    let path = out.join(SUMS);
    let failed = || format!("failed to write {}", path.display());
    let mut file = File::create(&path).with_context(failed)?;
    for one in made {
        let Some(name) = one.file_name() else { bail!("failed to name {}: it is no file", one.display()) };
        writeln!(file, "{}  {}", sha256(one)?, name.to_string_lossy()).with_context(failed)?;
    }
    Ok(path)
}
