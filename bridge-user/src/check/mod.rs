//! The `check` verb: what this kernel and host can do, by trying it.
//!
//! Nothing is judged by kernel version, except the socket-map relay (`kernel::floor` says why), and nothing of the
//! machine's own network is touched: connections run in a scratch topology.

mod probe;
mod scratch;
mod sockmap_probe;

use anyhow::Context as _;
use serde::Serialize;

use crate::{
    kernel::{features::Features, host},
    preflight,
    report::{self, JSON_VERSION},
};

/// What `check` prints.
#[derive(Debug, Serialize)]
pub struct CheckReport {
    /// [`JSON_VERSION`].
    pub version: u32,
    /// Kernel release, as `uname -r`.
    pub kernel: String,
    /// One entry per capability.
    pub capabilities: Vec<Capability>,
}

/// One thing the host can or cannot do.
#[derive(Debug, Serialize)]
pub struct Capability {
    /// Stable name.
    pub name: &'static str,
    /// Whether it works here.
    pub ok: bool,
    /// Whether attaching is impossible without it.
    pub required: bool,
    /// What was found, or why it does not work.
    pub detail: String,
    /// What follows for the user.
    pub consequence: &'static str,
}

/// Tries everything.
///
/// # Errors
/// When nothing can be tried, for example because a capability is missing.
pub fn run() -> anyhow::Result<CheckReport> {
    preflight::may_probe()?;
    let release = nix::sys::utsname::uname().context("failed to read the kernel's release")?;
    let features = Features::detect().context("failed to probe the kernel's eBPF features")?;
    let mut capabilities = Vec::from(host_capabilities());
    capabilities.extend(kernel_capabilities(features));
    capabilities.extend(probed_capabilities(features));
    capabilities.push(mptcp_capability(features));
    capabilities.push(identity_capability(features));
    capabilities.extend(relay_capabilities());
    Ok(CheckReport {
        version: JSON_VERSION,
        kernel: release.release().to_string_lossy().into_owned(),
        capabilities,
    })
}

/// Requires that steering works, by steering a connection in a scratch topology.
///
/// # Errors
/// When it does not; says what was tried and where to look.
pub fn require_steering(features: Features) -> anyhow::Result<()> {
    probe::run_steer(features).context(
        "a probe connection in a scratch namespace failed (see `bridge-user check`; --datapath steer skips this probe)",
    )
}

/// Requires that steering to MPTCP listeners works, by steering a connection to one in a scratch topology with NAT rules.
///
/// # Errors
/// When it does not; says what was tried.
pub fn require_mptcp_steering(features: Features) -> anyhow::Result<()> {
    if !features.mptcp_helper {
        anyhow::bail!("this kernel cannot tell MPTCP listeners (Linux 5.19 with MPTCP can)");
    }
    probe::run_mptcp(features).context("a probe connection in a scratch namespace failed")
}

/// Requires that a steered connection's service can be shown a local client, by doing it in a scratch topology.
///
/// # Errors
/// When it does not work; says what was tried.
pub fn require_loopback_identity(features: Features) -> anyhow::Result<()> {
    probe::run_identity(features).context("a probe connection in a scratch namespace failed")
}

/// Requires that the socket-map relay works, by relaying connections through one. It does not ask
/// [`crate::kernel::floor::require`]: a kernel may pass here and still have the bugs that table is about.
///
/// # Errors
/// When it does not; says what was tried and where to look.
pub fn require_sockmap() -> anyhow::Result<()> {
    sockmap_probe::run_sockmap().context(
        "failed to relay through the kernel's socket map in a scratch namespace: this kernel cannot: use the splice relay \
         (see `bridge-user check`)",
    )
}

impl CheckReport {
    /// True when everything attaching needs works.
    pub fn passed(&self) -> bool {
        self.capabilities.iter().all(|c| c.ok || !c.required)
    }

    /// As a table for people.
    pub fn to_text(&self) -> String {
        let mut rows = vec![["CAPABILITY", "WORKS", "DETAIL", "WHAT FOLLOWS"].map(str::to_owned)];
        rows.extend(self.capabilities.iter().map(|c| {
            let works = if c.ok { "yes" } else { "no" };
            [c.name.to_owned(), works.to_owned(), c.detail.clone(), c.consequence.to_owned()]
        }));
        format!("kernel {}\n{}", self.kernel, report::table(&rows))
    }
}

fn host_capabilities() -> [Capability; 2] {
    let bpffs = host::bpffs_mounted();
    let cgroup = host::cgroup_root();
    [
        Capability {
            name: "bpffs",
            ok: bpffs,
            required: false,
            detail: format!("{} at {}", if bpffs { "mounted" } else { "not mounted" }, host::BPFFS),
            consequence: if bpffs { "attachments stay without a process" } else { "attach mounts it" },
        },
        from_result(
            "cgroup2",
            true,
            cgroup.map(drop),
            "mounted",
            ["listeners can be tracked", "attach is not possible"],
        ),
    ]
}

fn kernel_capabilities(features: Features) -> [Capability; 4] {
    let feature = |name, ok, required, [yes, no]: [&'static str; 2]| Capability {
        name,
        ok,
        required,
        detail: format!("the verifier {} it", if ok { "accepts" } else { "refuses" }),
        consequence: if ok { yes } else { no },
    };
    [
        feature(
            "sk_lookup",
            features.sk_lookup,
            true,
            [
                "connections can be steered",
                "attach relays instead, with --foreground; steering needs Linux 5.9 or newer",
            ],
        ),
        feature(
            "ingress_ifindex",
            features.ingress_ifindex,
            false,
            [
                "connections are matched by the bridge they arrive on",
                "weaker: matched by gateway address and the bridge's subnet; --allow must stay within it",
            ],
        ),
        feature(
            "netns_cookie",
            features.netns_cookie,
            false,
            [
                "a listener's namespace is known at listen(2)",
                "it is noted at bind(2): a socket bound before the first attach and listening after it is missed until \
                 the next attach",
            ],
        ),
        feature(
            "mptcp_guard",
            features.mptcp_helper,
            false,
            [
                "MPTCP listeners are recognised in the kernel",
                "MPTCP listeners are recognised only at attach: keep MPTCP off for attached services",
            ],
        ),
    ]
}

fn probed_capabilities(features: Features) -> Vec<Capability> {
    let consequences = [
        (
            "steer",
            ["containers reach loopback listeners in the kernel", "attach relays instead, with --foreground"],
        ),
        (
            "listener_tracking",
            ["a restarted service is served again by itself", "attach again after each restart"],
        ),
        (
            "namespace_guard",
            ["a container's own listener cannot take a service's place", "do not attach on this kernel"],
        ),
        ("source_scope", ["only allowed containers get in", "do not attach on this kernel"]),
        ("events", ["`bridge-user events` shows refusals", "no events; counters still count"]),
    ];
    let all = |results: [anyhow::Result<()>; 5]| {
        let required = [true, true, true, true, false];
        let named = consequences.into_iter().zip(results).zip(required);
        named
            .map(|(((name, c), result), required)| from_result(name, required, result, "tried: it works", c))
            .collect()
    };
    match probe::run(features) {
        Ok(found) => all([found.steer, found.tracking, found.guard, found.scope, found.events]),
        Err(error) => all(std::array::from_fn(|_| Err(anyhow::anyhow!("not tried: {error:#}")))),
    }
}

fn mptcp_capability(features: Features) -> Capability {
    from_result(
        "steer_tc",
        false,
        require_mptcp_steering(features),
        "tried: it works, with NAT rules loaded",
        ["MPTCP listeners (Go programs such as Ollama) are steered to", "MPTCP listeners need a relay"],
    )
}

fn identity_capability(features: Features) -> Capability {
    from_result(
        "loopback_identity",
        false,
        require_loopback_identity(features),
        "tried: it works",
        ["--identity loopback is possible for steered connections", "--identity loopback needs a relay"],
    )
}

fn relay_capabilities() -> [Capability; 2] {
    let (splice, sockmap) = match sockmap_probe::run() {
        Ok(found) => (found.splice, found.sockmap),
        Err(error) => {
            (Err(anyhow::anyhow!("not tried: {error:#}")), Err(anyhow::anyhow!("not tried: {error:#}")))
        }
    };
    [
        from_result(
            "splice_relay",
            false,
            splice,
            "tried: it works",
            ["services that steering cannot reach can be relayed", "only steering is possible"],
        ),
        from_result(
            "sockmap_relay",
            false,
            sockmap,
            "tried: it works, and this kernel has no known bugs in it",
            [
                "relays can let the kernel move the bytes of exchanges",
                "relays move all bytes themselves (--datapath sockmap needs --force)",
            ],
        ),
    ]
}

fn from_result(
    name: &'static str,
    required: bool,
    result: anyhow::Result<()>,
    works: &str,
    [yes, no]: [&'static str; 2],
) -> Capability {
    let ok = result.is_ok();
    let detail = result.map_or_else(|error| format!("{error:#}"), |()| works.to_owned());
    Capability { name, ok, required, detail, consequence: if ok { yes } else { no } }
}
