//! What this kernel and host can do, by trying it in a scratch topology.
//!
//! Invariant: nothing of the machine's own network is touched.

pub(crate) mod scratch;
pub(crate) mod sockmap;
pub(crate) mod steering;

use anyhow::Context as _;

use crate::{kernel::features::Features, scope::Roots};

/// Requires that steering works, by steering a connection in a scratch topology.
///
/// # Errors
/// When it does not; says what was tried and where to look.
pub fn require_steering(features: Features) -> anyhow::Result<()> {
    steering::run_steer(features).context(
        "a probe connection in a scratch namespace failed (see `bridge-user check`; --datapath steer skips this probe)",
    )
}

/// Requires that steering to MPTCP listeners works, by steering a connection to one in a scratch topology with NAT
/// rules.
///
/// # Errors
/// When it does not; says what was tried.
pub fn require_mptcp_steering(features: Features) -> anyhow::Result<()> {
    if !features.mptcp_helper {
        anyhow::bail!("this kernel cannot tell MPTCP listeners (Linux 5.19 with MPTCP can)");
    }
    steering::run_mptcp(features).context("a probe connection in a scratch namespace failed")
}

/// Requires that a steered connection's service can be shown a local client, by doing it in a scratch topology.
///
/// # Errors
/// When it does not work; says what was tried.
pub fn require_loopback_identity(features: Features, roots: &Roots) -> anyhow::Result<()> {
    steering::run_identity(features, roots).context("a probe connection in a scratch namespace failed")
}

/// Requires that the socket-map relay works, by relaying connections through one. It does not ask
/// [`crate::kernel::floor::require`]: a kernel may pass here and still have the bugs that table is about.
///
/// # Errors
/// When it does not; says what was tried and where to look.
pub fn require_sockmap() -> anyhow::Result<()> {
    sockmap::run_sockmap().context(
        "failed to relay through the kernel's socket map in a scratch namespace: this kernel cannot: use the splice \
         relay (see `bridge-user check`)",
    )
}
