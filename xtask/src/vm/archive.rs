//! Kernels out of Debian packages, unpacked below `target/vm/kernels`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    debian::Bundle,
    ui::{Detail, Step},
    vm::manifest::Kernel,
    workspace::Workspace,
};

/// An unpacked kernel.
pub(super) struct Tree {
    /// The bootable image.
    pub(super) vmlinuz: PathBuf,
    /// `lib/modules/<release>`.
    pub(super) modules: PathBuf,
}

/// Downloads and unpacks a kernel, unless that has been done.
pub(super) fn fetch(ws: &Workspace, kernel: &Kernel) -> Result<Tree> {
    if kernel.packages.is_empty() {
        bail!(
            "failed to download kernel {0}: no packages are listed: run `cargo xtask vm --update {0}`",
            kernel.name
        );
    }
    let root = ws.target("vm/kernels").join(&kernel.name);
    let bundle = Bundle {
        name: &format!("kernel {} ({})", kernel.name, kernel.version),
        suite: &kernel.suite,
        packages: &kernel.packages,
        listed_in: "tests/kernels.toml",
        newer: &format!("take a newer one with `cargo xtask vm --update {}`", kernel.name),
    };
    if !bundle.is_in(&root) {
        let step = Step::start(format!("kernel {}", kernel.name), Detail::Every);
        bundle.unpack(ws, &root, &step)?;
        step.done(&format!("{} downloaded and unpacked", kernel.version));
    }
    Tree::locate(&root)
}

impl Tree {
    fn locate(root: &Path) -> Result<Self> {
        let modules = ["lib/modules", "usr/lib/modules"]
            .iter()
            .find_map(|place| only_entry(&root.join(place)))
            .with_context(|| format!("failed to find modules below {}", root.display()))?;
        let boot = fs::read_dir(root.join("boot")).into_iter().flatten().flatten().map(|entry| entry.path());
        let vmlinuz = boot
            .chain([modules.join("vmlinuz")])
            .find(|path| {
                path.exists() && path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz"))
            })
            .with_context(|| format!("failed to find a kernel image below {}", root.display()))?;
        Ok(Self { vmlinuz, modules })
    }
}

fn only_entry(dir: &Path) -> Option<PathBuf> {
    Some(fs::read_dir(dir).ok()?.next()?.ok()?.path())
}
