//! `cargo xtask build`: the eBPF objects, then `bridge-user` with the objects inside.

use std::{fs, io::Write as _, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::{
    exec,
    setup::{self, Need},
    ui::Detail,
    workspace::{Profile, Workspace},
};

/// The newest instruction set that every supported kernel accepts.
const BPF_CPU: &str = "v3";

/// Options of the command.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave target/quick/bridge-user, which takes a third of the time to build; the eBPF objects are the same
    #[arg(long)]
    quick: bool,
}

/// The command.
pub(crate) fn run(ws: &Workspace, args: &Args) -> Result<()> {
    let profile = if args.quick { Profile::Quick } else { Profile::Release };
    ebpf(ws)?;
    packages(ws, profile, &["bridge-user"])
}

/// Builds `bridge-user` and the suite that tests it.
pub(crate) fn suite(ws: &Workspace, profile: Profile) -> Result<()> {
    ebpf(ws)?;
    packages(ws, profile, &["bridge-user", "bridge-tests"])
}

fn packages(ws: &Workspace, profile: Profile, packages: &[&str]) -> Result<()> {
    let mut cargo = ws.cargo("build");
    cargo.args(["--profile", profile.name()]);
    for package in packages {
        cargo.args(["--package", package]);
    }
    exec::run(&mut cargo, &format!("build {}", packages.join(" and ")))
}

/// Builds the eBPF objects and returns what the compiler said.
///
/// Cargo replaces an object whenever anything below it changed, even if the result is the same; the previous file is
/// then put back, so that its time stamp does not make cargo rebuild `bridge-user`.
pub(crate) fn ebpf(ws: &Workspace) -> Result<String> {
    setup::programs(ws, &[Need::Build], Detail::OnlyWork)?;
    let tools = setup::ebpf(ws, Detail::OnlyWork)?;
    let objects = [ws.ebpf_object(), ws.ebpf_relay_object()];
    let before = objects.each_ref().map(|object| Stamped::read(object));
    let mut cargo = tools.toolchain.cargo();
    cargo
        .current_dir(ws.root())
        .args(["build", "--package", "bridge-ebpf", "--release", "--target", "bpfel-unknown-none"])
        .args(["-Z", "build-std=core", "--target-dir"])
        .arg(ws.target("bpf"))
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(ws, &tools));
    let said = exec::run_teeing_errors(&mut cargo, "build the eBPF objects")?;
    record_toolchain(ws, &tools)?;
    for (object, before) in objects.iter().zip(before) {
        if !object.exists() {
            bail!("failed to find {}: the build succeeded but left no object there", object.display());
        }
        if let Some(before) = before {
            before.restore_if_same(object)?;
        }
    }
    Ok(said)
}

/// Writes down beside the objects what built them, for `bridge-user --version --verbose`.
fn record_toolchain(ws: &Workspace, tools: &setup::Ebpf) -> Result<()> {
    let (path, text) = (ws.ebpf_toolchain(), tools.to_string());
    if fs::read_to_string(&path).is_ok_and(|known| known == text) {
        return Ok(());
    }
    fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))
}

fn rustflags(ws: &Workspace, tools: &setup::Ebpf) -> String {
    let arch = std::env::consts::ARCH;
    let mut flags = vec![
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".to_owned(),
        format!("-Ctarget-cpu={BPF_CPU}"),
        format!("-Clinker={}", tools.linker.display()),
        "-Clink-arg=--btf".to_owned(),
    ];
    flags.extend(ws.without_paths(&tools.toolchain.sysroot));
    flags.join("\x1f")
}

/// A file's content and time of change.
struct Stamped {
    content: Vec<u8>,
    modified: std::time::SystemTime,
}

impl Stamped {
    fn read(path: &Path) -> Option<Self> {
        let modified = fs::metadata(path).and_then(|meta| meta.modified()).ok()?;
        Some(Self { content: fs::read(path).ok()?, modified })
    }

    /// Puts this version back when the file at `path` has the same content. The file there is a hard link to the one
    /// whose time stamp cargo looks at, so it is replaced, not changed.
    fn restore_if_same(&self, path: &Path) -> Result<()> {
        let failed = || format!("failed to keep the time stamp of {}", path.display());
        if fs::read(path).with_context(failed)? != self.content {
            return Ok(());
        }
        let dir = path.parent().with_context(failed)?;
        let mut file = tempfile::NamedTempFile::new_in(dir).with_context(failed)?;
        file.write_all(&self.content).with_context(failed)?;
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).with_context(failed)?;
        file.as_file().set_modified(self.modified).with_context(failed)?;
        file.persist(path).with_context(failed)?;
        Ok(())
    }
}
