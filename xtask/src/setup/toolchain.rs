//! The compiler for the eBPF programs: one that has the standard library's sources next to it.
//!
//! Two routes lead there: a release of Rust by its number, with the `rust-src` component, from rustup; or Debian's
//! `rustc-web` with `rust-web-src`. A route that already works is taken before any network is touched.
//!
//! The number is pinned since the compiler's LLVM must be one that bpf-linker knows: a rolling nightly leaves it behind
//! sooner or later. `RUSTC_BOOTSTRAP` lets a stable release build `core`.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    exec::{self, which},
    setup::packages,
    ui::Step,
    workspace::Workspace,
};

/// The release of Rust that builds the eBPF programs, LLVM 22.
const PINNED: &str = "1.95.0";
/// Names another rustup toolchain than the pinned one.
const TOOLCHAIN_VARIABLE: &str = "BRIDGE_EBPF_TOOLCHAIN";
/// LLVM releases this bpf-linker can be built with.
const LLVM_RELEASES: std::ops::RangeInclusive<u32> = 21..=23;
/// The oldest compiler the workspace builds with.
const OLDEST_RUSTC: (u32, u32) = (1, 88);
const RUSTUP_LIMIT: Duration = Duration::from_secs(300);
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// A compiler that can build `core` for the eBPF target.
pub(crate) struct Toolchain {
    /// What to call it in messages.
    name: String,
    cargo: PathBuf,
    rustc: PathBuf,
    /// Where its libraries are.
    pub(crate) sysroot: PathBuf,
    release: String,
    /// The LLVM release its bitcode belongs to.
    pub(crate) llvm_major: u32,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, rustc {}, LLVM {}", self.name, self.release, self.llvm_major)
    }
}

impl Toolchain {
    /// This toolchain's cargo, free of what the cargo that runs xtask has put into the environment.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = exec::tool(&self.cargo);
        for name in [
            "CARGO",
            "CARGO_BUILD_TARGET",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_TARGET_DIR",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_WRAPPER",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
        ] {
            command.env_remove(name);
        }
        command.env("RUSTC", &self.rustc).env("RUSTC_BOOTSTRAP", "1");
        command
    }

    /// Looks at a compiler and says why it cannot be used, if so.
    fn inspect(name: &str, bin: &Path) -> Result<Self> {
        let (cargo, rustc) = (bin.join("cargo"), bin.join("rustc"));
        if !cargo.exists() || !rustc.exists() {
            bail!("{} has no cargo and rustc", bin.display());
        }
        let about = exec::capture(exec::tool(&rustc).arg("-vV"), "ask rustc for its version")?;
        let release = field(&about, "release: ").context("rustc -vV names no release")?;
        let llvm = field(&about, "LLVM version: ").context("rustc -vV names no LLVM version")?;
        let llvm_major = leading_numbers(llvm).0;
        if leading_numbers(release) < OLDEST_RUSTC {
            let (major, minor) = OLDEST_RUSTC;
            bail!("rustc {release} is older than {major}.{minor}");
        }
        if !LLVM_RELEASES.contains(&llvm_major) {
            let (first, last) = (LLVM_RELEASES.start(), LLVM_RELEASES.end());
            bail!(
                "rustc {release} is built on LLVM {llvm_major}, bpf-linker {} knows {first} to {last}: name an \
                 older toolchain in {TOOLCHAIN_VARIABLE}",
                super::linker::VERSION
            );
        }
        let sysroot = bin.parent().context("its directory has no parent")?.to_path_buf();
        if !sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists() {
            bail!("rustc {release} has no library sources (rust-src)");
        }
        Ok(Self { name: name.to_owned(), cargo, rustc, sysroot, release: release.to_owned(), llvm_major })
    }
}

/// Finds a usable toolchain, or installs one.
pub(super) fn ensure(ws: &Workspace, step: &Step) -> Result<Toolchain> {
    let wanted = env::var(TOOLCHAIN_VARIABLE).ok();
    let name = wanted.as_deref().unwrap_or(PINNED);
    let mut reasons = Vec::new();
    match rustup(name) {
        Ok(toolchain) => return Ok(toolchain),
        Err(error) => reasons.push(format!("rustup {name}: {error:#}")),
    }
    if wanted.is_none() {
        match debian() {
            Ok(toolchain) => return Ok(toolchain),
            Err(error) => reasons.push(format!("Debian: {error:#}")),
        }
    }
    match install_rustup(ws, name, step) {
        Ok(toolchain) => return Ok(toolchain),
        Err(error) => reasons.push(format!("rustup {name}, installing: {error:#}")),
    }
    if wanted.is_none() && which("apt-get").is_some() {
        step.say(&format!("rustup cannot deliver; installing {}", DEBIAN_PACKAGES.join(" ")));
        match packages::install(ws, &DEBIAN_PACKAGES, step).and_then(|()| debian()) {
            Ok(toolchain) => return Ok(toolchain),
            Err(error) => reasons.push(format!("Debian, installing: {error:#}")),
        }
    }
    bail!(
        "failed to find a compiler for the eBPF programs: by hand, run `rustup toolchain install {name} --component \
         rust-src` or, on Debian, `apt-get install {}`\n  tried {}",
        DEBIAN_PACKAGES.join(" "),
        reasons.join("\n  tried ")
    )
}

fn debian() -> Result<Toolchain> {
    Toolchain::inspect("Debian's packages", Path::new("/usr/bin"))
}

fn rustup(name: &str) -> Result<Toolchain> {
    let rustup = which("rustup").context("rustup is not installed")?;
    let args = ["which", "--toolchain", name, "rustc"];
    let rustc = exec::capture(exec::tool(rustup).args(args), "find the toolchain")?;
    let bin = Path::new(rustc.trim()).parent().context("rustc has no directory")?;
    Toolchain::inspect(&format!("rustup's {name}"), bin)
}

fn install_rustup(ws: &Workspace, name: &str, step: &Step) -> Result<Toolchain> {
    let rustup_program = which("rustup").context("rustup is not installed")?;
    step.say(&format!("installing {name} with rust-src"));
    let mut command = exec::tool(rustup_program);
    command.args(["toolchain", "install", name, "--profile", "minimal", "--component", "rust-src"]);
    command.arg("--no-self-update");
    let log = ws.target("setup/rustup.log");
    exec::run_logged(&mut command, "install the toolchain", step, &log, RUSTUP_LIMIT)?;
    rustup(name)
}

/// The rest of the line that starts with `name`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// The first two numbers of a version.
fn leading_numbers(version: &str) -> (u32, u32) {
    let mut numbers = version.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::{field, leading_numbers};

    #[test]
    fn reads_verbose_version() {
        let about = "rustc 1.96.0\nrelease: 1.97.0-nightly\nLLVM version: 22.1.8\n";
        assert_eq!(field(about, "LLVM version: "), Some("22.1.8"));
        assert_eq!(field(about, "release: ").map(leading_numbers), Some((1, 97)));
        assert_eq!(field(about, "host: "), None);
    }
}
