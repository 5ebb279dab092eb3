//! The package for Debian and Ubuntu, made by dpkg-deb.
//!
//! Invariants: installing it starts and enables nothing; removing it stops the daemon and detaches everything, since
//! nothing would be left that could.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{
    Release,
    contents::{CONFIG, Entry, compressed},
};
use crate::exec;

const DESCRIPTION: &str = "\
Description: reach services on the host's loopback from containers
 Containers connect to their bridge gateway, such as 172.17.0.1:6379, and an
 eBPF program gives the connection to the service that listens only on the
 host's 127.0.0.1. Nothing listens on the gateway and nothing copies bytes;
 what cannot be steered like this is relayed.
 .
 Docker, Podman and plain Linux bridges are supported. Linux 5.10 or newer is
 needed.
";

/// Restarts a daemon that runs, and no other.
const POSTINST: &str = "\
#!/bin/sh
set -e
if [ \"$1\" = configure ] && [ -d /run/systemd/system ]; then
    systemctl --system daemon-reload || true
    if [ -n \"$2\" ]; then
        deb-systemd-invoke try-restart bridge-user.service || true
    fi
fi
";
const PRERM: &str = "\
#!/bin/sh
set -e
if [ \"$1\" = remove ]; then
    if [ -d /run/systemd/system ]; then
        deb-systemd-invoke stop bridge-user.service || true
    fi
    bridge-user detach --all || true
fi
";
const POSTRM: &str = "\
#!/bin/sh
set -e
if [ \"$1\" = purge ] && command -v deb-systemd-helper > /dev/null; then
    deb-systemd-helper purge bridge-user.service || true
fi
if [ -d /run/systemd/system ]; then
    systemctl --system daemon-reload || true
fi
";

/// What lintian finds and is meant.
const OVERRIDES: &str = "\
# One binary for every release, so without a libc of its own.
bridge-user: shared-library-lacks-prerequisites [usr/bin/bridge-user]
# Made from the repository, not uploaded to the archive.
bridge-user: initial-upload-closes-no-bugs [usr/share/doc/bridge-user/changelog.Debian.gz:1]
";

const COPYRIGHT: &str = "\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: bridge-user

Files: *
Copyright: YEAR bridge-user contributors
License: MIT or Apache-2.0
 The texts of both are beside this file, as LICENSE-MIT and LICENSE-APACHE;
 that of the Apache License is also in /usr/share/common-licenses/Apache-2.0.
 The eBPF programs inside may also be used under MIT or GPL-2.0; the text of
 the latter is in /usr/share/common-licenses/GPL-2.
";

/// Writes the package and returns its path.
pub(super) fn write(release: &Release, contents: &[Entry], out: &Path) -> Result<PathBuf> {
    let tree = tempfile::tempdir().context("failed to create a temporary directory")?;
    let root = tree.path().join("root");
    let extra = debian_documents(release)?;
    for entry in contents.iter().chain(&extra) {
        put(&root, &entry.path, entry.mode, &entry.bytes)?;
    }
    let size: usize = contents.iter().chain(&extra).map(|entry| entry.bytes.len()).sum();
    put(&root, "DEBIAN/control", 0o644, control(release, size).as_bytes())?;
    put(&root, "DEBIAN/conffiles", 0o644, format!("/{CONFIG}\n").as_bytes())?;
    put(&root, "DEBIAN/md5sums", 0o644, sums(&root, contents.iter().chain(&extra))?.as_bytes())?;
    for (name, script) in [("postinst", POSTINST), ("prerm", PRERM), ("postrm", POSTRM)] {
        put(&root, &format!("DEBIAN/{name}"), 0o755, script.as_bytes())?;
    }
    let path = out.join(format!("bridge-user_{}-1_amd64.deb", release.version));
    let mut dpkg = exec::tool("dpkg-deb");
    dpkg.args(["--root-owner-group", "-Zxz", "--build"]).arg(&root).arg(&path).envs([release.date()]);
    exec::capture(&mut dpkg, "build the .deb")?;
    Ok(path)
}

fn control(release: &Release, size: usize) -> String {
    format!(
        "Package: bridge-user\nVersion: {}-1\nSection: net\nPriority: optional\nArchitecture: amd64\n\
         Maintainer: {}\nInstalled-Size: {}\nPre-Depends: init-system-helpers (>= 1.54~)\n\
         Recommends: nftables | iptables\nSuggests: docker.io | podman\n{DESCRIPTION}",
        release.version,
        release.maintainer,
        size.div_ceil(1024),
    )
}

fn debian_documents(release: &Release) -> Result<Vec<Entry>> {
    let date = |format: &str| {
        let mut date = exec::tool("date");
        date.args(["--utc", &format!("--date=@{}", release.epoch), format]).env("LC_ALL", "C");
        exec::capture(&mut date, "write a date").map(|date| date.trim().to_owned())
    };
    let changelog = format!(
        "bridge-user ({}-1) unstable; urgency=medium\n\n  * See changelog.gz beside this file.\n\n -- {}  {}\n",
        release.version,
        release.maintainer,
        date("--rfc-email")?
    );
    let document = |path: &str, bytes: Vec<u8>| Entry { path: path.to_owned(), mode: 0o644, bytes };
    Ok(vec![
        document("usr/share/doc/bridge-user/changelog.Debian.gz", compressed(changelog.as_bytes())?),
        document(
            "usr/share/doc/bridge-user/copyright",
            COPYRIGHT.replace("YEAR", &date("+%Y")?).into_bytes(),
        ),
        document("usr/share/lintian/overrides/bridge-user", OVERRIDES.as_bytes().to_vec()),
    ])
}

fn sums<'a>(root: &Path, contents: impl Iterator<Item = &'a Entry>) -> Result<String> {
    let mut md5sum = exec::tool("md5sum");
    md5sum.current_dir(root).args(contents.filter(|entry| entry.path != CONFIG).map(|entry| &entry.path));
    exec::capture(&mut md5sum, "sum up the package's files")
}

/// Writes a file below the root, with directories for everybody whatever the umask is.
fn put(root: &Path, path: &str, mode: u16, bytes: &[u8]) -> Result<()> {
    let at = root.join(path);
    let failed = || format!("failed to write {}", at.display());
    let directory = at.parent().with_context(failed)?;
    fs::create_dir_all(directory).with_context(failed)?;
    for directory in directory.ancestors().take_while(|directory| directory.starts_with(root)) {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).with_context(failed)?;
    }
    fs::write(&at, bytes).with_context(failed)?;
    fs::set_permissions(&at, fs::Permissions::from_mode(mode.into())).with_context(failed)
}
