//! Whether what was made is what was meant: unpacked, compared, and run.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    Release,
    contents::{BINARY, Entry},
};
use crate::exec;

/// Unpacks the .deb and the tarball and has their binary say its version; lintian, where it is installed, has nothing
/// to say; the rpm is read back.
pub(super) fn packages(release: &Release, contents: &[Entry], made: &[PathBuf; 4]) -> Result<()> {
    let [deb, rpm, tarball, _] = made;
    let dir = tempfile::tempdir().context("failed to create a temporary directory")?;
    let (from_deb, from_tarball) = (dir.path().join("deb"), dir.path().join("tarball"));
    exec::capture(exec::tool("dpkg-deb").arg("-x").arg(deb).arg(&from_deb), "unpack the .deb")?;
    unpacked(release, contents, &from_deb)?;
    fs::create_dir(&from_tarball).context("failed to create a directory")?;
    let mut tar = exec::tool("tar");
    tar.args(["--extract", "--strip-components=1", "--directory"])
        .arg(&from_tarball)
        .arg("--file")
        .arg(tarball);
    exec::capture(&mut tar, "unpack the tarball")?;
    unpacked(release, contents, &from_tarball)?;
    rpm_lists(contents, rpm)?;
    lint(deb)
}

fn unpacked(release: &Release, contents: &[Entry], root: &Path) -> Result<()> {
    for entry in contents {
        let found =
            fs::read(root.join(&entry.path)).with_context(|| format!("failed to find {}", entry.path))?;
        ensure!(found == entry.bytes, "failed to check {}: it was changed on the way", entry.path);
    }
    let said = exec::capture(exec::tool(root.join(BINARY)).arg("--version"), "run the packaged binary")?;
    let expected = format!("bridge-user {}", release.version);
    ensure!(
        said.trim() == expected,
        "failed to check the binary: it says {}, expected {expected}",
        said.trim()
    );
    Ok(())
}

fn rpm_lists(contents: &[Entry], path: &Path) -> Result<()> {
    let failed = || format!("failed to read {} back", path.display());
    let package = rpm::Package::open(path).with_context(failed)?;
    package.verify_digests().with_context(failed)?;
    let files = package.metadata.get_file_paths().with_context(failed)?;
    ensure!(
        files.len() == contents.len(),
        "failed to check {}: it has {} files, expected {}",
        path.display(),
        files.len(),
        contents.len()
    );
    Ok(())
}

fn lint(deb: &Path) -> Result<()> {
    let Some(lintian) = exec::which("lintian") else {
        eprintln!("  --  not checked: lintian is not installed (apt-get install lintian)");
        return Ok(());
    };
    let mut command = exec::tool(lintian);
    command.args(["--fail-on=error,warning", "--tag-display-limit=0", "--allow-root"]).arg(deb);
    let said = exec::capture(&mut command, "pass lintian");
    match said {
        Ok(said) if said.trim().is_empty() => Ok(()),
        Ok(said) => {
            eprint!("{said}");
            Ok(())
        }
        Err(error) => bail!("{error:#}: run `lintian --info {}`", deb.display()),
    }
}
