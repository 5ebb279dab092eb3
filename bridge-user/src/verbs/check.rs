//! The `check` verb: what this kernel and host can do, by trying it.
//!
//! Nothing is judged by kernel version, except the socket-map relay (`kernel::floor` says why), and nothing of the
//! machine's own network is touched: connections run in a scratch topology.

use std::process::ExitCode;

use anyhow::Context as _;
use serde::Serialize;

use crate::{
    cli::output::{FormatArgs, Out},
    cli::table::table,
    kernel::features::Features,
    model::JSON_VERSION,
    observe::preflight,
    probe::{self, require_loopback_identity, require_mptcp_steering},
    scope::{Roots, Scope},
};

/// What `check` prints.
#[derive(Debug, Serialize)]
pub struct CheckReport {
    /// [`JSON_VERSION`].
    pub version: u32,
    /// Kernel release, as `uname -r`.
    pub kernel: String,
    /// One entry per capability.
    pub capabilities: Vec<HostCapability>,
}

/// One thing the host can or cannot do.
#[derive(Debug, Serialize)]
pub struct HostCapability {
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

/// What can be asked of `check`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    output: FormatArgs,
}

/// Prints what works here; fails where something is missing that attaching needs.
///
/// # Errors
/// As [`try_all`].
pub(crate) fn run(args: &Args, scope: &Scope, out: &Out) -> anyhow::Result<ExitCode> {
    let report = try_all(&scope.roots)?;
    out.print_as(args.output.output, &report, CheckReport::to_text)?;
    Ok(ExitCode::from(u8::from(!report.passed())))
}

/// Tries everything.
///
/// # Errors
/// When nothing can be tried, for example because a capability is missing.
fn try_all(roots: &Roots) -> anyhow::Result<CheckReport> {
    preflight::may_probe()?;
    let release = nix::sys::utsname::uname().context("failed to read the kernel's release")?;
    let features = Features::detect().context("failed to probe the kernel's eBPF features")?;
    let mut capabilities = Vec::from(host_capabilities(roots));
    capabilities.extend(kernel_capabilities(features));
    capabilities.extend(probed_capabilities(features, roots));
    capabilities.push(mptcp_capability(features));
    capabilities.push(identity_capability(features, roots));
    capabilities.extend(relay_capabilities());
    Ok(CheckReport {
        version: JSON_VERSION,
        kernel: release.release().to_string_lossy().into_owned(),
        capabilities,
    })
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
        format!("kernel {}\n{}", self.kernel, table(&rows))
    }
}

fn host_capabilities(roots: &Roots) -> [HostCapability; 2] {
    let bpffs = roots.bpffs_mounted();
    let cgroup = roots.open_cgroup();
    [
        HostCapability {
            name: "bpffs",
            ok: bpffs,
            required: false,
            detail: format!(
                "{} at {}",
                if bpffs { "mounted" } else { "not mounted" },
                roots.bpffs().display()
            ),
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

fn kernel_capabilities(features: Features) -> [HostCapability; 4] {
    let feature = |name, ok, required, [yes, no]: [&'static str; 2]| HostCapability {
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

fn probed_capabilities(features: Features, roots: &Roots) -> Vec<HostCapability> {
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
    match probe::steering::run(features, roots) {
        Ok(found) => all([found.steer, found.tracking, found.guard, found.scope, found.events]),
        Err(error) => all(std::array::from_fn(|_| Err(anyhow::anyhow!("not tried: {error:#}")))),
    }
}

fn mptcp_capability(features: Features) -> HostCapability {
    from_result(
        "steer_tc",
        false,
        require_mptcp_steering(features),
        "tried: it works, with NAT rules loaded",
        ["MPTCP listeners (Go programs such as Ollama) are steered to", "MPTCP listeners need a relay"],
    )
}

fn identity_capability(features: Features, roots: &Roots) -> HostCapability {
    from_result(
        "loopback_identity",
        false,
        require_loopback_identity(features, roots),
        "tried: it works",
        ["--identity loopback is possible for steered connections", "--identity loopback needs a relay"],
    )
}

fn relay_capabilities() -> [HostCapability; 2] {
    let (splice, sockmap) = match probe::sockmap::run() {
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
) -> HostCapability {
    let ok = result.is_ok();
    let detail = result.map_or_else(|error| format!("{error:#}"), |()| works.to_owned());
    HostCapability { name, ok, required, detail, consequence: if ok { yes } else { no } }
}
