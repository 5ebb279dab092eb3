//! The same files without a package manager: `/` of a system, below one directory.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{
    Release,
    contents::{Entry, compressed},
};
use crate::exec;

/// Writes the tarball and returns its path.
pub(super) fn write(release: &Release, contents: &[Entry], out: &Path) -> Result<PathBuf> {
    let name = format!("bridge-user-{}-x86_64-linux-musl", release.version);
    let tree = tempfile::tempdir().context("failed to create a temporary directory")?;
    for entry in contents {
        let at = tree.path().join(&name).join(&entry.path);
        let failed = || format!("failed to write {}", at.display());
        fs::create_dir_all(at.parent().with_context(failed)?).with_context(failed)?;
        fs::write(&at, &entry.bytes).with_context(failed)?;
        fs::set_permissions(&at, fs::Permissions::from_mode(entry.mode.into())).with_context(failed)?;
    }
    let plain = tree.path().join("plain.tar");
    let mut tar = exec::tool("tar");
    tar.args(["--create", "--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--format=gnu"]);
    tar.arg("--mode=u=rwX,go=rX").arg(format!("--mtime=@{}", release.epoch));
    tar.arg("--directory").arg(tree.path()).arg("--file").arg(&plain).arg(&name);
    exec::capture(&mut tar, "build the tarball")?;
    let path = out.join(format!("{name}.tar.gz"));
    let bytes = fs::read(&plain).with_context(|| format!("failed to read {}", plain.display()))?;
    fs::write(&path, compressed(&bytes)?).with_context(|| format!("failed to write {}", path.display()))?;
    Ok(path)
}
