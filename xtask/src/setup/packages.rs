//! The programs the build and the tests run, by presence; Debian and Ubuntu packages are installed for missing ones.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::busybox::busybox;
use crate::{
    exec::{self, which},
    ui::{Detail, Step},
    workspace::Workspace,
};

const APT_LIMIT: Duration = Duration::from_secs(900);

/// What a program is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Building anything at all.
    Build,
    /// Network namespaces to try things in: the demo and the benchmark.
    Namespaces,
    /// The relays that the project's own are measured against.
    Peers,
    /// The suite on this machine.
    HostSuite,
    /// Kernels under QEMU.
    Vm,
    /// Packages that are unpacked and not installed.
    Unpack,
    /// Packages for others.
    Dist,
}

/// A program, the Debian package it comes in and what it is for.
struct Program {
    name: &'static str,
    package: &'static str,
    needs: &'static [Need],
}

const PROGRAMS: &[Program] = &[
    Program { name: "cc", package: "gcc libc6-dev", needs: &[Need::Build] },
    Program { name: "ip", package: "iproute2", needs: &[Need::Namespaces, Need::HostSuite, Need::Vm] },
    Program { name: "nft", package: "nftables", needs: &[Need::Namespaces, Need::HostSuite, Need::Vm] },
    Program { name: "iptables", package: "iptables", needs: &[Need::HostSuite] },
    Program { name: "sysctl", package: "procps", needs: &[Need::HostSuite] },
    Program { name: "depmod", package: "kmod", needs: &[Need::HostSuite, Need::Vm] },
    Program { name: BUSYBOX, package: "busybox-static", needs: &[Need::HostSuite, Need::Vm] },
    Program { name: "dpkg-deb", package: "dpkg", needs: &[Need::Vm, Need::Unpack, Need::Dist] },
    Program { name: "xz", package: "xz-utils", needs: &[Need::Vm] },
    Program { name: "qemu-system-x86_64", package: "qemu-system-x86", needs: &[Need::Vm] },
    Program { name: "redis-server", package: "redis-server", needs: &[Need::HostSuite, Need::Vm] },
    Program { name: "redis-cli", package: "redis-tools", needs: &[Need::HostSuite, Need::Vm] },
    Program { name: POSTGRES, package: "postgresql", needs: &[Need::HostSuite] },
    Program { name: "psql", package: "postgresql-client", needs: &[Need::HostSuite] },
    Program { name: "mariadbd", package: "mariadb-server-core", needs: &[Need::HostSuite] },
    Program { name: "mariadb", package: "mariadb-client-core", needs: &[Need::HostSuite] },
    Program { name: "haproxy", package: "haproxy", needs: &[Need::Peers] },
    Program { name: NGINX_STREAM, package: "nginx libnginx-mod-stream", needs: &[Need::Peers] },
    Program { name: "docker-proxy", package: "docker.io", needs: &[Need::Peers] },
    Program { name: "dockerd", package: "docker.io", needs: &[Need::HostSuite] },
    Program { name: "docker", package: "docker.io docker-cli", needs: &[Need::HostSuite] },
    Program { name: "podman", package: "podman", needs: &[Need::HostSuite] },
    Program { name: "netavark", package: "netavark", needs: &[Need::HostSuite] },
    Program { name: "socat", package: "socat", needs: &[Need::Namespaces, Need::Peers, Need::HostSuite] },
    Program { name: "zsh", package: "zsh", needs: &[Need::HostSuite] },
    Program { name: "fish", package: "fish", needs: &[Need::HostSuite] },
    Program { name: "curl", package: "curl", needs: &[Need::HostSuite] },
    Program { name: "systemd-analyze", package: "systemd", needs: &[Need::HostSuite] },
    Program { name: "bpftool", package: "bpftool", needs: &[Need::HostSuite] },
];

/// Only a static one will do.
const BUSYBOX: &str = "busybox";
/// PostgreSQL's server is not on PATH; [`postgres`] looks where distributions put it.
const POSTGRES: &str = "postgres";
/// nginx with its stream module, which some builds have inside and Debian has as a file of its own.
const NGINX_STREAM: &str = "nginx (stream)";

/// Installs what is missing among the programs needed for `needs`.
pub(super) fn ensure(ws: &Workspace, needs: &[Need], detail: Detail) -> Result<()> {
    let step = Step::start("system programs", detail);
    let wanted: Vec<&Program> =
        PROGRAMS.iter().filter(|program| program.needs.iter().any(|need| needs.contains(need))).collect();
    let missing = missing(&wanted);
    if missing.is_empty() {
        step.done(&format!("all {} found", wanted.len()));
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|program| program.name).collect();
    let packages: Vec<&str> = missing.iter().flat_map(|program| program.package.split(' ')).collect();
    if which("apt-get").is_none() {
        bail!(
            "failed to install {}: there is no apt-get on this machine: install the packages your distribution \
             has them in (on Debian: {})",
            names.join(", "),
            packages.join(" ")
        );
    }
    step.say(&format!("installing {}", packages.join(" ")));
    install(ws, &packages, &step)?;
    let still = missing_names(&wanted);
    if !still.is_empty() {
        bail!(
            "failed to find {}: the packages were installed but the programs are not there",
            still.join(", ")
        );
    }
    step.done(&format!("installed {}", packages.join(" ")));
    Ok(())
}

fn missing<'a>(wanted: &[&'a Program]) -> Vec<&'a Program> {
    wanted.iter().copied().filter(|program| find(program.name).is_none()).collect()
}

fn missing_names(wanted: &[&Program]) -> Vec<&'static str> {
    missing(wanted).iter().map(|program| program.name).collect()
}

fn find(name: &str) -> Option<PathBuf> {
    match name {
        BUSYBOX => busybox(),
        POSTGRES => postgres(),
        NGINX_STREAM => nginx_stream(),
        // Docker's own packages keep it out of PATH.
        "docker-proxy" => which(name).or_else(|| existing("/usr/libexec/docker/docker-proxy")),
        // So do Podman's.
        "netavark" => which(name).or_else(|| existing("/usr/lib/podman/netavark")),
        _ => which(name),
    }
}

/// nginx, if it can do `stream`.
fn nginx_stream() -> Option<PathBuf> {
    let nginx = which("nginx")?;
    existing("/usr/lib/nginx/modules/ngx_stream_module.so").or_else(|| {
        // `-V` writes to standard error.
        let said = exec::tool(&nginx).arg("-V").output().ok()?.stderr;
        String::from_utf8_lossy(&said)
            .split_whitespace()
            .any(|option| option == "--with-stream")
            .then_some(nginx)
    })
}

fn existing(path: &str) -> Option<PathBuf> {
    Some(PathBuf::from(path)).filter(|path| path.exists())
}

/// PostgreSQL's server, the newest one installed.
pub(crate) fn postgres() -> Option<PathBuf> {
    fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|release| release.join("bin/postgres").exists())
        .max_by_key(|release| numbers(&release.file_name().unwrap_or_default().to_string_lossy()))
        .map(|release| release.join("bin/postgres"))
        .or_else(|| which(POSTGRES))
}

/// A version to compare by: as text, 9.6 would come after 15.
fn numbers(version: &str) -> Vec<u32> {
    version.split('.').map_while(|part| part.parse().ok()).collect()
}

/// Installs Debian packages, without starting the services in them.
pub(super) fn install(ws: &Workspace, packages: &[&str], step: &Step) -> Result<()> {
    /// apt does not wait for another apt.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let stubs = ServiceStubs::create()?;
    let known = available(packages);
    let by_hand = format!("install packages (by hand, as root: apt-get install {})", packages.join(" "));
    let apt = which("apt-get").context("failed to install packages: there is no apt-get")?;
    let envs = [("DEBIAN_FRONTEND", OsString::from("noninteractive"))];
    let mut update = exec::as_root_unasked(&apt, &envs, &by_hand, step)?;
    update.args(["-q", "update"]);
    let log = ws.target("setup/apt-update.log");
    if let Err(error) = exec::run_logged(&mut update, "refresh the package lists", step, &log, APT_LIMIT) {
        step.say(&format!("going on with the package lists at hand: {error:#}"));
    }
    let known = if known.len() == packages.len() { known } else { available(packages) };
    let mut install = exec::as_root_unasked(&apt, &envs, &by_hand, step)?;
    install
        .args(["-q", "install", "-y", "--no-install-recommends"])
        .arg("-o")
        .arg(format!("DPkg::Path={}", stubs.search_path()))
        .args(known);
    let log = ws.target("setup/apt-install.log");
    exec::run_logged(&mut install, &by_hand, step, &log, APT_LIMIT)
}

/// Drops package names this release does not have (Docker's client is a package of its own only in newer ones).
fn available<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    let known = |package: &str| {
        exec::capture(exec::tool("apt-cache").args(["show", package]), "look a package up").is_ok()
    };
    packages.iter().copied().filter(|package| *package != "docker-cli" || known(package)).collect()
}

/// Programs that do nothing, put in front of those with which package scripts start services.
///
/// dpkg gets them through its own search path for one run, so nothing on the machine is changed for it.
struct ServiceStubs(tempfile::TempDir);

impl ServiceStubs {
    fn create() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("bridge-user-setup")
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir()
            .context("failed to create a temporary directory")?;
        for name in ["invoke-rc.d", "deb-systemd-invoke"] {
            write_stub(&dir.path().join(name))?;
        }
        Ok(Self(dir))
    }

    fn search_path(&self) -> String {
        format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", self.0.path().display())
    }
}

fn write_stub(path: &Path) -> Result<()> {
    fs::write(path, "#!/bin/sh\nexit 0\n")
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("failed to write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn versions_compare_as_numbers() {
        let newest = ["9.6", "15", "10", "lost+found"].into_iter().max_by_key(|version| numbers(version));
        assert_eq!(newest, Some("15"));
        assert!(numbers("9.6") > numbers("9.5"));
    }
}
