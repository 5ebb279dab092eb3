//! An image with a program of this machine, the libraries it needs, and busybox's `sleep`.
//!
//! Invariant: nothing is downloaded.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::docker::{Engine, busybox};

/// Makes `image` with `program`, which is found on PATH.
pub(crate) fn with_program(engine: &Engine, image: &str, program: &str) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let root = directory.path();
    std::fs::create_dir(root.join("bin"))?;
    let path = on_path(program)?;
    std::fs::copy(&path, root.join("bin").join(program))?;
    std::fs::copy(busybox()?, root.join("bin/sleep"))?;
    for library in libraries(&path)? {
        let copy = root.join(library.strip_prefix("/")?);
        std::fs::create_dir_all(copy.parent().context("a library is in a directory")?)?;
        std::fs::copy(&library, copy)?;
    }
    engine.import(root, image)
}

fn on_path(program: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|dir| dir.join(program)).find(|candidate| candidate.is_file());
    found.with_context(|| format!("{program} is missing: install it"))
}

/// The shared libraries and the dynamic linker of a program.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("failed to run ldd: is it installed?")?;
    ensure!(output.status.success(), "ldd {} ended with {}", program.display(), output.status);
    Ok(paths_in(&String::from_utf8_lossy(&output.stdout)))
}

/// The paths in the lines `libm.so.6 => /lib/libm.so.6 (0x…)` and `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn paths_in(listing: &str) -> Vec<PathBuf> {
    let words = listing.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_every_form() {
        let listing =
            "\tlinux-vdso.so.1 (0x7f)\n\tlibm.so.6 => /lib/x/libm.so.6 (0x7e)\n\t/lib64/ld.so.2 (0x7d)\n";
        assert_eq!(paths_in(listing), ["/lib/x/libm.so.6", "/lib64/ld.so.2"].map(PathBuf::from));
    }
}
