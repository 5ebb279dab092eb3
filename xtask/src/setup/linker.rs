//! bpf-linker, linked with the LLVM release of the compiler whose bitcode it reads.
//!
//! It lives in `target/tools`, so that a user's own bpf-linker is never replaced. One on PATH is used when it fits.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    exec::{self, which},
    setup::{packages, toolchain::Toolchain},
    ui::Step,
    workspace::Workspace,
};

/// The release this workspace is built with.
pub(super) const VERSION: &str = "0.13.0";
const BUILD_LIMIT: Duration = Duration::from_secs(1200);

/// Finds a fitting bpf-linker, or builds it.
pub(super) fn ensure(ws: &Workspace, toolchain: &Toolchain, step: &Step) -> Result<PathBuf> {
    let own = ws.target("tools/bin/bpf-linker");
    let found = [Some(own.clone()), which("bpf-linker")]
        .into_iter()
        .flatten()
        .find(|candidate| fits(candidate, toolchain.llvm_major));
    if let Some(linker) = found {
        return Ok(linker);
    }
    step.say(&format!("building bpf-linker {VERSION} for LLVM {}", toolchain.llvm_major));
    build(ws, toolchain, step)?;
    if !fits(&own, toolchain.llvm_major) {
        bail!(
            "failed to use {}: it was built but does not run with LLVM {}",
            own.display(),
            toolchain.llvm_major
        );
    }
    Ok(own)
}

/// Whether this is the wanted release, linked with the wanted LLVM, and able to run.
fn fits(linker: &Path, llvm_major: u32) -> bool {
    let version = exec::capture(exec::tool(linker).arg("--version"), "ask bpf-linker for its version");
    let libraries = exec::capture(exec::tool("ldd").arg(linker), "list bpf-linker's libraries");
    let (Ok(version), Ok(libraries)) = (version, libraries) else { return false };
    version.trim() == format!("bpf-linker {VERSION}") && llvm_release(&libraries) == Some(llvm_major)
}

/// The LLVM release in ldd's output: the first number of `libLLVM.so.22.1` or `libLLVM-22.so.1`.
fn llvm_release(libraries: &str) -> Option<u32> {
    let (_, name) = libraries.split_once("libLLVM")?;
    let digits: String =
        name.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

fn build(ws: &Workspace, toolchain: &Toolchain, step: &Step) -> Result<()> {
    let prefix = llvm_prefix(ws, toolchain, step)?;
    let mut command = toolchain.cargo();
    command
        .args(["install", &format!("bpf-linker@{VERSION}"), "--locked", "--force", "--no-default-features"])
        .args(["--features", &format!("llvm-{}", toolchain.llvm_major)])
        .arg("--root")
        .arg(ws.target("tools"))
        .env("LLVM_PREFIX", &prefix)
        // All the work is LLVM's: an optimised bpf-linker takes twice as long to build and links no faster.
        .envs([("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"), ("CARGO_PROFILE_RELEASE_LTO", "off")])
        .current_dir(ws.root());
    let by_hand =
        format!("build bpf-linker (by hand: LLVM_PREFIX={} {})", prefix.display(), exec::show(&command));
    exec::run_logged(&mut command, &by_hand, step, &ws.target("setup/bpf-linker.log"), BUILD_LIMIT)
}

/// A directory whose `lib` holds `libLLVM.so` of the compiler's release: rustup toolchains bring theirs along, others
/// use the system's, which is installed if need be.
fn llvm_prefix(ws: &Workspace, toolchain: &Toolchain, step: &Step) -> Result<PathBuf> {
    if let Some(prefix) = bundled_llvm(ws, toolchain)? {
        return Ok(prefix);
    }
    let major = toolchain.llvm_major;
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{major}"));
    if prefix.join("lib/libLLVM.so").exists() {
        return Ok(prefix);
    }
    let package = format!("llvm-{major}-dev");
    if which("apt-get").is_none() {
        bail!(
            "failed to find LLVM {major}: install your distribution's package of it (on Debian: {package})"
        );
    }
    step.say(&format!("installing {package}"));
    packages::install(ws, &[&package], step)?;
    if !prefix.join("lib/libLLVM.so").exists() {
        bail!(
            "failed to find {}: {package} was installed but it is not there",
            prefix.join("lib/libLLVM.so").display()
        );
    }
    Ok(prefix)
}

/// Gives the LLVM library of a rustup toolchain the name that linkers look for.
fn bundled_llvm(ws: &Workspace, toolchain: &Toolchain) -> Result<Option<PathBuf>> {
    let dir = toolchain.sysroot.join("lib");
    let bundled = fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path()).find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libLLVM.so.") && name.contains("-rust-")
    });
    let Some(library) = bundled else { return Ok(None) };
    let prefix = ws.target("tools/llvm");
    let lib = prefix.join("lib");
    let soname = library.file_name().context("failed to name the toolchain's LLVM library")?;
    let links = || -> std::io::Result<()> {
        if lib.exists() {
            fs::remove_dir_all(&lib)?;
        }
        fs::create_dir_all(&lib)?;
        symlink(&library, lib.join(soname))?;
        symlink(&library, lib.join("libLLVM.so"))
    };
    links().with_context(|| format!("failed to link {} into {}", library.display(), lib.display()))?;
    Ok(Some(prefix))
}

#[cfg(test)]
mod tests {
    use super::llvm_release;

    #[test]
    fn finds_the_llvm_release() {
        assert_eq!(llvm_release("\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x7)"), Some(22));
        assert_eq!(llvm_release("\tlibLLVM-21.so.1 => not found"), Some(21));
        assert_eq!(llvm_release("\tlibLLVM.so.22.1-rust-1.97.0-nightly => /x"), Some(22));
        assert_eq!(llvm_release("\tstatically linked"), None);
    }
}
