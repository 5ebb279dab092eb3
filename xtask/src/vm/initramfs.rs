//! What a guest is made of: busybox, the suite, `bridge-user`, a few of this machine's programs, and modules.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    exec::{self, which},
    setup,
    test::GO_SERVER_VARIABLE,
    vm::{archive::Tree, cpio::Archive, manifest::Kernel, modules},
    workspace::{OBJECT_VARIABLE, Profile, Workspace},
};

const INIT: &str = include_str!("init.sh");
const OBJECT: &str = "usr/lib/bridge-ebpf.o";
const GO_SERVER: &str = "go-http-server";

/// This machine's programs that the suite uses inside a guest; busybox provides the rest. The shell is among them since
/// busybox's prefers its own applets to the real `ip`. The second group is only taken along when present.
const PROGRAMS: &[&str] = &["sh", "ip", "nft", "redis-server", "redis-cli"];
const USEFUL_PROGRAMS: &[&str] = &["bridge", "tc", "ss", "bpftool", "socat", "curl"];

/// What runs in the guest.
pub(super) struct Payload {
    /// The program that takes the suite's place.
    pub(super) suite: PathBuf,
    /// Which of the trials that can run in a guest.
    pub(super) group: Group,
    /// Only tests whose name contains this.
    pub(super) filter: Option<String>,
}

/// Groups of the suite, by what it calls them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// What a kernel can change.
    Kernels,
    /// Everything that can run in a guest.
    Namespaces,
}

impl Group {
    fn name(self) -> &'static str {
        match self {
            Self::Kernels => "kernels",
            Self::Namespaces => "namespaces",
        }
    }
}

/// Writes the guest's initramfs and returns where it is.
pub(super) fn write(ws: &Workspace, kernel: &Kernel, tree: &Tree, payload: &Payload) -> Result<PathBuf> {
    let dir = ws.target("vm/images");
    fs::create_dir_all(&dir).with_context(|| format!("failed to create {}", dir.display()))?;
    let path = dir.join(format!("{}.cpio", kernel.name));
    let mut archive = Archive::create(&path)?;
    skeleton(&mut archive)?;
    program(&mut archive, "suite", &payload.suite)?;
    let bridge_user = ws.program(Profile::Release, "bridge-user");
    if bridge_user.exists() {
        program(&mut archive, "bridge-user", &bridge_user)?;
        archive.copy(OBJECT, &ws.ebpf_object())?;
    }
    let go_server = setup::go_server(ws);
    if go_server.exists() {
        program(&mut archive, GO_SERVER, &go_server)?;
    }
    for name in PROGRAMS {
        let found =
            which(name).with_context(|| format!("failed to find {name} for the guest: is it installed?"))?;
        program(&mut archive, name, &found)?;
    }
    for (name, found) in USEFUL_PROGRAMS.iter().filter_map(|name| Some((name, which(name)?))) {
        program(&mut archive, name, &found)?;
    }
    busybox(&mut archive)?;
    kernel_modules(&mut archive, tree)?;
    archive.file("etc/bridge.env", 0o644, environment(kernel, payload).as_bytes())?;
    archive.file("init", 0o755, INIT.as_bytes())?;
    archive.finish()?;
    Ok(path)
}

fn skeleton(archive: &mut Archive) -> Result<()> {
    for name in
        ["dev", "proc", "sys", "run", "tmp", "root", "var/lib", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64"]
    {
        archive.directory(name)?;
    }
    for (name, target) in
        [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")]
    {
        archive.link(name, target)?;
    }
    archive.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    archive.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    archive.file("etc/hosts", 0o644, b"127.0.0.1 localhost\n::1 localhost\n")
}

/// Adds a program of this machine with the libraries it needs.
fn program(archive: &mut Archive, name: &str, source: &Path) -> Result<()> {
    archive.copy(&format!("usr/bin/{name}"), source)?;
    for library in libraries(source) {
        archive.copy(&place_of(&library), &library)?;
    }
    Ok(())
}

/// The libraries ldd lists. Scripts and static programs have none, which ldd reports as a failure.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let listed =
        exec::capture(exec::tool("ldd").arg(program), "list a program's libraries").unwrap_or_default();
    listed.lines().filter_map(library_in).map(PathBuf::from).collect()
}

/// The path in a line of ldd: `libc.so.6 => /lib/libc.so.6 (0x…)` or `/lib64/ld-linux.so.2 (0x…)`.
fn library_in(line: &str) -> Option<&str> {
    let path = line.split_once("=>").map_or(line, |(_, path)| path).split_whitespace().next()?;
    path.starts_with('/').then_some(path)
}

/// Where a library goes: in the guest `/lib` and `/lib64` are links into `/usr`.
fn place_of(library: &Path) -> String {
    let name = library.to_string_lossy().trim_start_matches('/').to_owned();
    if name.starts_with("lib") { format!("usr/{name}") } else { name }
}

/// Adds busybox, under the name of every applet that nothing else provides.
fn busybox(archive: &mut Archive) -> Result<()> {
    let busybox =
        setup::busybox().context("failed to find a static busybox for the guest: install busybox-static")?;
    program(archive, "busybox", &busybox)?;
    let applets = exec::capture(exec::tool(&busybox).arg("--list"), "list busybox's applets")?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        let name = format!("usr/bin/{applet}");
        if !archive.contains(&name) {
            archive.link(&name, "busybox")?;
        }
    }
    Ok(())
}

fn kernel_modules(archive: &mut Archive, tree: &Tree) -> Result<()> {
    let mut order = String::new();
    for file in modules::load_order(&tree.modules)? {
        let stem = file.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("usr/lib/modules/{}.ko", stem.split('.').next().unwrap_or(&stem));
        archive.file(&name, 0o644, &modules::read(&tree.modules.join(&file))?)?;
        order.push_str(&format!("/{name}\n"));
    }
    archive.file("etc/modules", 0o644, order.as_bytes())
}

/// The suite's environment, for the guest's shell to read.
fn environment(kernel: &Kernel, payload: &Payload) -> String {
    let object = format!("/{OBJECT}");
    let go_server = format!("/usr/bin/{GO_SERVER}");
    let (expectation, lacks) = (kernel.expectation(), kernel.lacks().join(","));
    let variables = [
        ("BRIDGE_KERNEL", kernel.name.as_str()),
        ("BRIDGE_EXPECT", expectation.as_str()),
        ("BRIDGE_LACKS", lacks.as_str()),
        ("BRIDGE_GROUP", payload.group.name()),
        ("BRIDGE_USER", "/usr/bin/bridge-user"),
        (OBJECT_VARIABLE, object.as_str()),
        (GO_SERVER_VARIABLE, go_server.as_str()),
        ("BRIDGE_FILTER", payload.filter.as_deref().unwrap_or_default()),
        ("RUST_BACKTRACE", "1"),
    ];
    variables.iter().map(|(name, value)| format!("{name}='{}'\n", value.replace('\'', "'\\''"))).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{library_in, place_of};

    #[test]
    fn reads_ldd() {
        assert_eq!(
            library_in("\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f)"),
            Some("/lib/x86_64-linux-gnu/libc.so.6")
        );
        assert_eq!(library_in("\t/lib64/ld-linux-x86-64.so.2 (0x7f)"), Some("/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(library_in("\tlinux-vdso.so.1 (0x7f)"), None);
        assert_eq!(library_in("\tlibx.so => not found"), None);
        assert_eq!(place_of(Path::new("/lib64/ld.so")), "usr/lib64/ld.so");
        assert_eq!(place_of(Path::new("/usr/lib/x.so")), "usr/lib/x.so");
    }
}
