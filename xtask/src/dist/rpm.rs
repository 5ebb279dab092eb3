//! The package for Fedora, RHEL and openSUSE.
//!
//! Invariant: as the other one, it starts and enables nothing, and its removal detaches everything.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rpm::{BuildConfig, CompressionType, Dependency, FileOptions, PackageBuilder};

use super::{
    Release,
    contents::{CONFIG, Entry},
};

const SUMMARY: &str = "Reach services on the host's loopback from containers";
const DESCRIPTION: &str = "\
Containers connect to their bridge gateway, and an eBPF program gives the connection to the service that listens only \
on the host's 127.0.0.1. Docker, Podman and plain Linux bridges are supported. Linux 5.10 or newer is needed.";
const LICENSE: &str = "MIT OR Apache-2.0";

/// Where there is systemd. `$1` is how many versions will be installed afterwards.
const POSTIN: &str = "[ -d /run/systemd/system ] && systemctl daemon-reload || :\n";
const PREUN: &str = "\
if [ \"$1\" -eq 0 ]; then
    [ -d /run/systemd/system ] && systemctl --no-reload disable --now bridge-user.service > /dev/null 2>&1 || :
    bridge-user detach --all || :
fi
";
const POSTUN: &str = "\
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
    [ \"$1\" -ge 1 ] && systemctl try-restart bridge-user.service || :
fi
";

/// Writes the package and returns its path.
pub(super) fn write(release: &Release, contents: &[Entry], out: &Path) -> Result<PathBuf> {
    let path = out.join(format!("bridge-user-{}-1.x86_64.rpm", release.version));
    let failed = || format!("failed to build {}", path.display());
    let config = BuildConfig::v4().source_date(release.epoch).compression(CompressionType::Gzip);
    let mut builder = PackageBuilder::new("bridge-user", &release.version, LICENSE, "x86_64", SUMMARY);
    builder.using_config(config).release("1").description(DESCRIPTION).packager(release.maintainer.as_str());
    builder.build_host("localhost").requires(Dependency::any("/bin/sh"));
    builder.recommends(Dependency::any("nftables"));
    builder.post_install_script(POSTIN).pre_uninstall_script(PREUN).post_uninstall_script(POSTUN);
    for entry in contents {
        let at = format!("/{}", entry.path.replace("vendor-completions", "site-functions"));
        let mut options = FileOptions::new(at).permissions(entry.mode);
        if entry.path == CONFIG {
            options = options.config().noreplace();
        }
        if entry.path.starts_with("usr/share/doc/") {
            options = options.doc();
        }
        builder.with_file_contents(entry.bytes.clone(), options).with_context(failed)?;
    }
    builder.build().and_then(|package| package.write_file(&path)).with_context(failed)?;
    Ok(path)
}
