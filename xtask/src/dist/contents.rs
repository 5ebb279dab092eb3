//! The files that every package has, and where they are on a system.
//!
//! Invariant: what they say of the program, manual pages and completions, is said by the very binary.

use std::{fs, io::Write as _, path::Path};

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};

use crate::{exec, workspace::Workspace};

/// Where the binary is, which the unit names.
pub(super) const BINARY: &str = "usr/bin/bridge-user";
/// What administrators change, and upgrades keep.
pub(super) const CONFIG: &str = "etc/bridge-user/config.toml";
/// The unit.
pub(super) const UNIT: &str = "usr/lib/systemd/system/bridge-user.service";
const DOCUMENTS: &str = "usr/share/doc/bridge-user";
const PAGES: &str = "usr/share/man/man1";

/// Shells, and where each looks for completions.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/bridge-user"),
    ("zsh", "usr/share/zsh/vendor-completions/_bridge-user"),
    ("fish", "usr/share/fish/vendor_completions.d/bridge-user.fish"),
];
/// What is there to read.
const READABLE: [&str; 7] = [
    "README.md",
    "SECURITY.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "docs/guide.md",
    "docs/reference.md",
    "docs/troubleshooting.md",
];

/// A file.
pub(super) struct Entry {
    /// Where, below the root.
    pub(super) path: String,
    /// Its permissions.
    pub(super) mode: u16,
    /// What is in it.
    pub(super) bytes: Vec<u8>,
}

/// Every file, by path.
pub(super) fn of(ws: &Workspace, binary: &Path) -> Result<Vec<Entry>> {
    let file = |path: String, mode, from: &Path| -> Result<Entry> {
        let bytes = fs::read(from).with_context(|| format!("failed to read {}", from.display()))?;
        Ok(Entry { path, mode, bytes })
    };
    let mut entries = vec![
        file(BINARY.to_owned(), 0o755, binary)?,
        file(UNIT.to_owned(), 0o644, &ws.path("packaging/bridge-user.service"))?,
        file(CONFIG.to_owned(), 0o644, &ws.path("packaging/config.toml"))?,
    ];
    for name in READABLE {
        let below = Path::new(name).file_name().unwrap_or_default().to_string_lossy();
        entries.push(file(format!("{DOCUMENTS}/{below}"), 0o644, &ws.path(name))?);
    }
    let changes = fs::read(ws.path("CHANGELOG.md")).context("failed to read CHANGELOG.md")?;
    entries.push(Entry {
        path: format!("{DOCUMENTS}/changelog.gz"),
        mode: 0o644,
        bytes: compressed(&changes)?,
    });
    for (shell, path) in COMPLETIONS {
        let mut completions = exec::tool(binary);
        let script = exec::capture(completions.args(["completions", shell]), "print completions")?;
        entries.push(Entry { path: path.to_owned(), mode: 0o644, bytes: script.into_bytes() });
    }
    entries.extend(manual(binary)?);
    entries.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(entries)
}

/// The manual pages, compressed as distributions want them.
fn manual(binary: &Path) -> Result<Vec<Entry>> {
    let dir = tempfile::tempdir().context("failed to create a temporary directory")?;
    let names =
        exec::capture(exec::tool(binary).args(["man", "--dir"]).arg(dir.path()), "write manual pages")?;
    let mut pages = Vec::new();
    for name in names.lines() {
        let page = fs::read(dir.path().join(name)).with_context(|| format!("failed to read {name}"))?;
        pages.push(Entry { path: format!("{PAGES}/{name}.gz"), mode: 0o644, bytes: compressed(&page)? });
    }
    Ok(pages)
}

/// As `gzip -9n`: without name and time.
pub(super) fn compressed(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).context("failed to compress")
}
