//! The Go HTTP server of the tests, which listens with MPTCP as Go 1.24 does by default.
//!
//! Go 1.24 or newer on PATH builds it. Debian's releases before trixie have none that new; there the compiler comes
//! out of trixie's packages, unpacked below `target/go`. Invariant: nothing is installed, and Go reaches for nothing
//! but its own standard library.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    debian::{Bundle, Package},
    exec::{self, which},
    setup::{Need, packages},
    ui::{Detail, Step},
    workspace::Workspace,
};

/// The first release that listens with MPTCP by default.
const OLDEST: (u32, u32) = (1, 24);
const VERSION: &str = "1.24.4-1";
const SUITE: &str = "trixie";
/// Place in the archive and SHA-256.
const PACKAGES: &[(&str, &str)] = &[
    (
        "pool/main/g/golang-1.24/golang-1.24-go_1.24.4-1_amd64.deb",
        "93c6c109bbc0f1d55523282a16739d10634499c04f6d066a6aa58b67b687a44f",
    ),
    (
        "pool/main/g/golang-1.24/golang-1.24-src_1.24.4-1_all.deb",
        "c396bc2c2e94606e0a060cff52b9bbbf1d7cefacb040eb3c40a55604111e66e1",
    ),
];
/// Where the packages have Go.
const GOROOT: &str = "usr/lib/go-1.24";
const SOURCE: &str = "tests/go/http-server";
const BUILD_LIMIT: Duration = Duration::from_secs(900);

/// Where the server is, once it has been built.
pub(crate) fn server(ws: &Workspace) -> PathBuf {
    ws.target("go/http-server")
}

/// Builds the server. Go itself knows what there is left to do, and takes a moment when that is nothing.
pub(super) fn ensure(ws: &Workspace, detail: Detail) -> Result<()> {
    let step = Step::start("Go HTTP server", detail);
    let go = match installed() {
        Some(go) => go,
        None => unpacked(ws, &step).with_context(|| {
            format!("failed to get Go: there is no Go {}.{} on PATH: install it", OLDEST.0, OLDEST.1)
        })?,
    };
    compile(ws, &go, &step)?;
    step.done(&format!("built with {}", go.display()));
    Ok(())
}

/// Go on PATH, if it is new enough.
fn installed() -> Option<PathBuf> {
    let go = which("go")?;
    let mut command = exec::tool(&go);
    command.env("GOTOOLCHAIN", "local").args(["env", "GOVERSION"]);
    let version = exec::capture(&mut command, "ask Go for its version").ok()?;
    (release(&version)? >= OLDEST).then_some(go)
}

/// The numbers in `go1.24.4`.
fn release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.trim().strip_prefix("go")?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Go out of Debian's packages.
fn unpacked(ws: &Workspace, step: &Step) -> Result<PathBuf> {
    let bundle = Bundle {
        name: &format!("Go {VERSION}"),
        suite: SUITE,
        packages: &Package::list(PACKAGES),
        listed_in: file!(),
        newer: &format!("put newer ones of {SUITE} into {}", file!()),
    };
    let root = ws.target("go/root");
    if !bundle.is_in(&root) {
        packages::ensure(ws, &[Need::Unpack], Detail::OnlyWork)?;
        bundle.unpack(ws, &root, step)?;
    }
    Ok(root.join(GOROOT).join("bin/go"))
}

/// A static program: it also runs inside guests.
fn compile(ws: &Workspace, go: &Path, step: &Step) -> Result<()> {
    let mut go = exec::tool(go);
    go.current_dir(ws.path(SOURCE)).args(["build", "-trimpath", "-ldflags=-s -w", "-o"]).arg(server(ws));
    go.env("GOPATH", ws.target("go/path")).env("GOCACHE", ws.target("go/cache")).env_remove("GOROOT");
    for (name, value) in [
        ("CGO_ENABLED", "0"),
        ("GOENV", "off"),
        ("GOFLAGS", "-mod=mod"),
        ("GOPROXY", "off"),
        ("GOTELEMETRY", "off"),
        ("GOTOOLCHAIN", "local"),
        ("GOWORK", "off"),
    ] {
        go.env(name, value);
    }
    step.note("compiling");
    exec::run_logged(&mut go, "build the Go HTTP server", step, &ws.target("setup/go.log"), BUILD_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::release;

    #[test]
    fn reads_versions() {
        assert_eq!(release("go1.24.4\n"), Some((1, 24)));
        assert_eq!(release("go1.25rc1"), Some((1, 25)));
        assert_eq!(release("devel go1.26-abc"), None);
    }
}
