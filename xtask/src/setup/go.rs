//! The Go HTTP server of the tests, which listens with MPTCP as Go 1.24 does by default.
//!
//! Debian's stable releases before trixie have no Go that new, so the compiler comes out of trixie's packages, unpacked
//! below `target/go`. Invariant: nothing is installed, and Go reaches for nothing but its own standard library.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;

use crate::{
    debian::{Bundle, Package},
    exec,
    setup::{Need, packages},
    ui::{Detail, Step},
    workspace::Workspace,
};

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
    let packages: Vec<Package> = PACKAGES
        .iter()
        .map(|&(path, sha256)| Package { path: path.into(), sha256: sha256.to_owned() })
        .collect();
    let bundle = Bundle {
        name: &format!("Go {VERSION}"),
        suite: SUITE,
        packages: &packages,
        listed_in: file!(),
        newer: &format!("put newer ones of {SUITE} into {}", file!()),
    };
    let root = ws.target("go/root");
    if !bundle.is_in(&root) {
        packages::ensure(ws, &[Need::Unpack], Detail::OnlyWork)?;
        bundle.unpack(ws, &root, &step)?;
    }
    compile(ws, &root.join(GOROOT), &step)?;
    step.done(&format!("built with Go {VERSION}"));
    Ok(())
}

/// A static program: it also runs inside guests.
fn compile(ws: &Workspace, goroot: &Path, step: &Step) -> Result<()> {
    let mut go = exec::tool(goroot.join("bin/go"));
    go.current_dir(ws.path(SOURCE)).args(["build", "-trimpath", "-ldflags=-s -w", "-o"]).arg(server(ws));
    go.env("GOROOT", goroot).env("GOPATH", ws.target("go/path")).env("GOCACHE", ws.target("go/cache"));
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
