//! What the running kernel lacks of what trials need: declared by the runner of the VMs, and held against the kernel.
//!
//! Invariant: a trial is left out only where the declaration says so (`BRIDGE_LACKS=mptcp,sockmap`), and a declaration
//! that is not true of the kernel fails the whole run, so no trial can be left out by mistake.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use bridge_common::kernels::Version;
use nix::sys::utsname::uname;

/// What a kernel may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// MPTCP sockets.
    Mptcp,
    /// A version on which the relay by sockmap is trusted. A machine that runs the suite on its own forces it.
    Sockmap,
}

const ALL: [Need; 2] = [Need::Mptcp, Need::Sockmap];

impl Need {
    fn name(self) -> &'static str {
        match self {
            Self::Mptcp => "mptcp",
            Self::Sockmap => "sockmap",
        }
    }

    /// Whether the runner declared that this kernel lacks it.
    pub(crate) fn is_declared_missing(self) -> bool {
        let declared = std::env::var("BRIDGE_LACKS").unwrap_or_default();
        declared.split(',').any(|name| name == self.name())
    }

    fn is_there(self) -> Result<bool> {
        match self {
            Self::Mptcp => Ok(has_mptcp()),
            Self::Sockmap => sockmap_is_trusted(),
        }
    }
}

/// Requires that the kernel lacks what the runner declared, and nothing else. Without a runner nothing is declared.
pub(crate) fn require_as_declared() -> Result<()> {
    let Ok(declared) = std::env::var("BRIDGE_LACKS") else { return Ok(()) };
    for name in declared.split(',').filter(|name| !name.is_empty()) {
        ensure!(
            ALL.iter().any(|need| need.name() == name),
            "BRIDGE_LACKS names {name}, which no trial needs"
        );
    }
    for need in ALL {
        let (there, missing) = (need.is_there()?, need.is_declared_missing());
        if there == missing {
            bail!(
                "this kernel {} {}, and BRIDGE_LACKS={declared} says otherwise: correct tests/kernels.toml",
                if there { "has" } else { "lacks" },
                need.name()
            );
        }
    }
    Ok(())
}

/// Whether this kernel has MPTCP.
pub(crate) fn has_mptcp() -> bool {
    Path::new("/proc/sys/net/mptcp").exists()
}

/// Whether the running kernel is one on which the relay by sockmap is trusted.
pub(crate) fn sockmap_is_trusted() -> Result<bool> {
    let names = uname()?;
    let (release, build) = (names.release().to_string_lossy(), names.version().to_string_lossy());
    let version = Version::of_uname(&release, &build);
    let version = version.with_context(|| format!("no version in kernel release {release} ({build})"))?;
    Ok(version.sockmap().is_ok())
}
