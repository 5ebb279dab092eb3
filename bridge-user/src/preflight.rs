//! What must be true before anything is changed: capabilities and kernel features, each named when missing.

use anyhow::{Context as _, bail};
use caps::{CapSet, Capability};

use crate::kernel::{features::Features, host};

/// Capabilities detach needs, and what for; attach needs one more.
const DETACH: [(Capability, &str); 2] = [
    (Capability::CAP_BPF, "to open the pinned eBPF objects"),
    (Capability::CAP_NET_ADMIN, "to change this network namespace's programs"),
];

/// Capabilities the probes of `check` need.
const PROBE: [(Capability, &str); 3] = [
    (Capability::CAP_SYS_ADMIN, "to make a scratch network namespace"),
    (Capability::CAP_BPF, "to load eBPF programs"),
    (Capability::CAP_NET_ADMIN, "to attach them to a network namespace"),
];

/// Requires what attach needs. Mounting bpffs needs CAP_SYS_ADMIN too, when it is not mounted.
///
/// # Errors
/// Names each missing capability.
pub fn may_attach() -> anyhow::Result<()> {
    let mut needed = DETACH.to_vec();
    needed.push((Capability::CAP_SYS_PTRACE, "to register listeners of running services"));
    if !host::bpffs_mounted() {
        needed.push((Capability::CAP_SYS_ADMIN, "to mount bpffs, which is not mounted at /sys/fs/bpf"));
    }
    require(&needed)
}

/// Requires what detach needs.
///
/// # Errors
/// Names each missing capability.
pub fn may_detach() -> anyhow::Result<()> {
    require(&DETACH)
}

/// Requires what the probes of `check` need.
///
/// # Errors
/// Names each missing capability.
pub fn may_probe() -> anyhow::Result<()> {
    require(&PROBE)
}

fn require(needed: &[(Capability, &str)]) -> anyhow::Result<()> {
    let mut missing = Vec::new();
    for (capability, purpose) in needed {
        if !caps::has_cap(None, CapSet::Effective, *capability)
            .context("failed to read this process's capabilities")?
        {
            missing.push(format!("{capability} ({purpose})"));
        }
    }
    if !missing.is_empty() {
        bail!("missing capability {}: run as root, for example with sudo", missing.join(", "));
    }
    Ok(())
}

/// Detects the kernel's features and requires those steering cannot do without.
///
/// # Errors
/// Says which feature is missing and what to use instead.
pub fn steering_features() -> anyhow::Result<Features> {
    let features = Features::detect().context("failed to probe the kernel's eBPF features")?;
    if !features.sk_lookup {
        bail!(
            "this kernel has no sk_lookup programs (they came with Linux 5.9): use a newer kernel, or forward the port \
             with socat or a DNAT rule until this project's relay datapath is released"
        );
    }
    host::cgroup_root()?;
    Ok(features)
}
