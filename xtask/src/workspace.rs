//! Where things are, and how the workspace's own cargo is called.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

/// The variable that tells `bridge-user`'s build script which eBPF object to embed. The relay's object is the file
/// `bridge-ebpf-relay` beside it.
pub(crate) const OBJECT_VARIABLE: &str = "BRIDGE_EBPF_OBJECT";

/// How host programs are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// What users get, what the suites try and what is measured.
    Release,
    /// A third of the time to build: the demo, and the unit tests, with every check of the language on.
    Quick,
}

impl Profile {
    /// Cargo's name for it, which is also that of its directory below `target/`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Quick => "quick",
        }
    }
}

/// The workspace on disk. All paths are absolute.
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// Finds the workspace this xtask belongs to.
    pub(crate) fn locate() -> Result<Self> {
        let manifest_dir = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest_dir
            .parent()
            .with_context(|| format!("failed to find the workspace above {}", manifest_dir.display()))?;
        Ok(Self { root: root.to_path_buf() })
    }

    /// The workspace root.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A path under the workspace root.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// A path under `target/`.
    pub(crate) fn target(&self, relative: &str) -> PathBuf {
        self.root.join("target").join(relative)
    }

    /// The eBPF object that `build` leaves and `bridge-user` embeds.
    pub(crate) fn ebpf_object(&self) -> PathBuf {
        self.target("bpf/bpfel-unknown-none/release/bridge-ebpf")
    }

    /// The relay's eBPF object, beside the other.
    pub(crate) fn ebpf_relay_object(&self) -> PathBuf {
        self.ebpf_object().with_file_name("bridge-ebpf-relay")
    }

    /// What built the eBPF objects, in words, beside them.
    pub(crate) fn ebpf_toolchain(&self) -> PathBuf {
        self.ebpf_object().with_file_name("toolchain.txt")
    }

    /// The program of the given name, built with that profile.
    pub(crate) fn program(&self, profile: Profile, name: &str) -> PathBuf {
        self.target(profile.name()).join(name)
    }

    /// Flags for a compiler in `sysroot` that keep this machine's paths out of what it makes, so that the same sources
    /// give the same bytes everywhere.
    pub(crate) fn without_paths(&self, sysroot: &Path) -> Vec<String> {
        let home = env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
        let named =
            [(Some(self.root.clone()), "bridge-user"), (home, "cargo"), (Some(sysroot.to_owned()), "rust")];
        let flag = |(path, name): (Option<PathBuf>, &str)| {
            path.map(|path| format!("--remap-path-prefix={}={name}", path.display()))
        };
        named.into_iter().filter_map(flag).collect()
    }

    /// Cargo for host code. The object's path is always passed in the same way, so that one command does not
    /// invalidate what another one built.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command
            .current_dir(&self.root)
            .arg(subcommand)
            .env("CARGO_TARGET_DIR", self.root.join("target"))
            .env(OBJECT_VARIABLE, self.ebpf_object());
        command
    }
}
