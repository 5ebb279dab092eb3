//! What must be true before anything is changed: capabilities and kernel features, each named when missing.

use anyhow::{Context as _, bail};
use caps::{CapSet, Capability};

use super::checks::steering;
use crate::{
    kernel::{
        features::Features,
        instance::{hidden::Hidden, pins::PinDir},
    },
    model::datapath::Requested,
    scope::{Roots, Scope},
};

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

/// Requires what attach needs below these roots; `steering`: the datapath asked for, if steering is possible with it.
/// CAP_SYS_ADMIN is needed only for the probes, of which `--datapath steer` leaves out all but that of MPTCP
/// listeners, and to mount bpffs when it is not mounted.
///
/// # Errors
/// Names each missing capability.
pub fn may_attach(steering: Option<Requested>, roots: &Roots) -> anyhow::Result<()> {
    let mut needed = DETACH.to_vec();
    let Some(datapath) = steering else { return require(&needed) };
    let to_mount = format!("to mount bpffs, which is not mounted at {}", roots.bpffs().display());
    needed.push((Capability::CAP_PERFMON, "for the verifier to accept the programs"));
    needed.push((Capability::CAP_SYS_PTRACE, "to register listeners of running services"));
    if datapath == Requested::Auto {
        needed.push((
            Capability::CAP_SYS_ADMIN,
            "to probe steering in a scratch namespace, unless --datapath steer",
        ));
    }
    if !roots.bpffs_mounted() {
        needed.push((Capability::CAP_SYS_ADMIN, &to_mount));
    }
    require(&needed)
}

/// Requires what attaching inside a container needs besides.
///
/// # Errors
/// Names each missing capability.
pub fn may_enter() -> anyhow::Result<()> {
    require(&[
        (Capability::CAP_SYS_ADMIN, "to enter the container's network namespace"),
        (Capability::CAP_SYS_PTRACE, "to find the container's network namespace by its process"),
    ])
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

/// Requires what reading the event channel needs.
///
/// # Errors
/// Names each missing capability.
pub fn may_read_events() -> anyhow::Result<()> {
    require(&[(Capability::CAP_BPF, "to open the event channel")])
}

/// Requires that pins can be made that stay and show everything that steers.
///
/// # Errors
/// When bpffs is read-only or nobody else's, or something of bridge-user steers the namespace that `beside` names.
pub fn may_pin(scope: &Scope, beside: &Hidden) -> anyhow::Result<()> {
    scope.roots.require_writable()?;
    if let Some(finding) = steering::beside_pins(beside, &scope.namespace, &PinDir::of(scope).path()).first()
    {
        bail!("failed to build beside another instance: {finding}");
    }
    scope.roots.require_shared()
}

fn require(needed: &[(Capability, &str)]) -> anyhow::Result<()> {
    let mut missing = Vec::new();
    for (capability, purpose) in needed {
        if !has(*capability)? {
            missing.push(format!("{capability} ({purpose})"));
        }
    }
    if !missing.is_empty() {
        bail!("missing capability {}: run as root, for example with sudo", missing.join(", "));
    }
    Ok(())
}

/// CAP_SYS_ADMIN includes what was split off from it in Linux 5.8.
fn has(capability: Capability) -> anyhow::Result<bool> {
    let effective = |capability| {
        caps::has_cap(None, CapSet::Effective, capability)
            .context("failed to read this process's capabilities")
    };
    let split_off = matches!(capability, Capability::CAP_BPF | Capability::CAP_PERFMON);
    Ok(effective(capability)? || (split_off && effective(Capability::CAP_SYS_ADMIN)?))
}

/// Detects the kernel's features and requires those steering cannot do without.
///
/// # Errors
/// Says which feature is missing and what to use instead.
pub fn steering_features(roots: &Roots) -> anyhow::Result<Features> {
    let features = Features::detect().context("failed to probe the kernel's eBPF features")?;
    if !features.sk_lookup {
        bail!(
            "this kernel has no sk_lookup programs (they came with Linux 5.9): use a newer kernel, or a relay \
             (--datapath splice --foreground)"
        );
    }
    roots.open_cgroup()?;
    Ok(features)
}
