//! The `check` verb: what this kernel and host can do, by trying it.
//!
//! Nothing is judged by kernel version, except the socket-map relay (`kernel::floor` says why), and nothing of the
//! machine's own network is touched: connections run in a scratch topology.

use std::process::ExitCode;

use anyhow::Context as _;
use serde::Serialize;

use crate::{
    cli::output::{FormatArgs, Out},
    cli::table::table_of_text,
    kernel::features::Features,
    model::{
        JSON_VERSION, codes,
        finding::{Code, Finding, Severity, exit_code},
    },
    net,
    observe::preflight,
    probe::{self, require_loopback_identity, require_mptcp_steering},
    relay::raise_descriptor_limit,
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
    /// One for each capability that is missing.
    pub findings: Vec<Finding>,
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
    /// What is found where it does not work.
    #[serde(skip)]
    code: &'static Code,
}

impl HostCapability {
    fn finding(&self) -> Finding {
        self.code.finding(self.name, self.detail.as_str(), self.code.cure)
    }
}

/// What can be asked of `check`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    output: FormatArgs,
}

/// Prints what works here; the exit code is 1 where something is missing that attaching needs.
///
/// # Errors
/// As [`try_all`].
pub(crate) fn run(args: &Args, scope: &Scope, out: &Out) -> anyhow::Result<ExitCode> {
    raise_descriptor_limit().context("failed to raise the limit on open files")?;
    let report = try_all(&scope.roots)?;
    out.print_as(args.output.output, &report, |report| report.to_text(out.width()))?;
    Ok(ExitCode::from(exit_code(&report.findings)))
}

/// Tries everything.
///
/// # Errors
/// When nothing can be tried, for example because a capability is missing.
fn try_all(roots: &Roots) -> anyhow::Result<CheckReport> {
    preflight::may_probe()?;
    let release = nix::sys::utsname::uname().context("failed to read the kernel's release")?;
    let features = Features::detect().context("failed to probe the kernel's eBPF features")?;
    let mut capabilities = Vec::from(host_capabilities(roots)?);
    capabilities.extend(kernel_capabilities(features));
    capabilities.extend(probed_capabilities(features, roots)?);
    let with_nat = "tried: it works, with NAT rules loaded";
    capabilities.push(STEER_TC.tried(require_mptcp_steering(features), with_nat)?);
    capabilities.push(LOOPBACK_IDENTITY.tried(require_loopback_identity(features, roots), WORKS)?);
    capabilities.extend(relay_capabilities()?);
    Ok(CheckReport::new(release.release().to_string_lossy().into_owned(), capabilities))
}

impl CheckReport {
    fn new(kernel: String, capabilities: Vec<HostCapability>) -> Self {
        let missing = capabilities.iter().filter(|capability| !capability.ok);
        let findings = missing.map(HostCapability::finding).collect();
        Self { version: JSON_VERSION, kernel, capabilities, findings }
    }

    /// As a table for people: for each capability what was found, what follows, and what to do about it.
    pub fn to_text(&self, width: usize) -> String {
        let row = |capability: &HostCapability| {
            let works = if capability.ok { "yes" } else { "no" };
            let mut said = vec![capability.detail.clone(), capability.consequence.to_owned()];
            let cure = capability.code.cure;
            if !capability.ok && !cure.is_empty() {
                said.push(format!("Cure: {cure}"));
            }
            ([capability.name.to_owned(), works.to_owned()], said)
        };
        let rows: Vec<_> = self.capabilities.iter().map(row).collect();
        let head = ["CAPABILITY", "WORKS"];
        format!("kernel {}\n{}", self.kernel, table_of_text(&head, &rows, "DETAIL, AND WHAT FOLLOWS", width))
    }
}

/// What is asked of the host: a name, the finding where it does not work, and what follows where it does and where it
/// does not.
struct Asked {
    name: &'static str,
    code: &'static Code,
    yes: &'static str,
    no: &'static str,
}

impl Asked {
    /// Attaching needs it if its absence is an error.
    fn found(&self, ok: bool, detail: String) -> HostCapability {
        HostCapability {
            name: self.name,
            ok,
            required: self.code.severity == Severity::Error,
            detail,
            consequence: if ok { self.yes } else { self.no },
            code: self.code,
        }
    }

    /// That no descriptor was free says nothing of the host, and is an error.
    fn tried(&self, result: anyhow::Result<()>, works: &str) -> anyhow::Result<HostCapability> {
        match result {
            Ok(()) => Ok(self.found(true, works.to_owned())),
            Err(error) if net::is_out_of_descriptors(&error) => Err(error.context(net::OUT_OF_DESCRIPTORS)),
            Err(error) => Ok(self.found(false, format!("{error:#}"))),
        }
    }

    fn verified(&self, accepted: bool) -> HostCapability {
        self.found(accepted, format!("the verifier {} it", if accepted { "accepts" } else { "refuses" }))
    }
}

const BPFFS: Asked = Asked {
    name: "bpffs",
    code: &codes::MISSING_BPFFS,
    yes: "attachments stay without a process",
    no: "attach mounts it",
};
const BPFFS_READ_ONLY: Asked =
    Asked { code: &codes::BPFFS_READ_ONLY, no: "nothing can be attached or detached", ..BPFFS };
const CGROUP2: Asked = Asked {
    name: "cgroup2",
    code: &codes::MISSING_CGROUP2,
    yes: "listeners can be tracked",
    no: "attach is not possible",
};
const SK_LOOKUP: Asked = Asked {
    name: "sk_lookup",
    code: &codes::MISSING_SK_LOOKUP,
    yes: "connections can be steered",
    no: "attach relays instead, with --foreground; steering needs Linux 5.9 or newer",
};
const INGRESS_IFINDEX: Asked = Asked {
    name: "ingress_ifindex",
    code: &codes::MISSING_INGRESS_IFINDEX,
    yes: "connections are matched by the bridge they arrive on",
    no: "weaker: matched by gateway address and the bridge's subnet; --allow must stay within it",
};
const NETNS_COOKIE: Asked = Asked {
    name: "netns_cookie",
    code: &codes::MISSING_NETNS_COOKIE,
    yes: "a listener's namespace is known at listen(2)",
    no: "it is noted at bind(2): a socket bound before the first attach and listening after it is missed until the \
         next attach",
};
const MPTCP_GUARD: Asked = Asked {
    name: "mptcp_guard",
    code: &codes::MISSING_MPTCP_GUARD,
    yes: "MPTCP listeners are recognised in the kernel",
    no: "MPTCP listeners are recognised only at attach: keep MPTCP off for attached services",
};
const STEER: Asked = Asked {
    name: "steer",
    code: &codes::MISSING_STEER,
    yes: "containers reach loopback listeners in the kernel",
    no: "attach relays instead, with --foreground",
};
const LISTENER_TRACKING: Asked = Asked {
    name: "listener_tracking",
    code: &codes::MISSING_LISTENER_TRACKING,
    yes: "a restarted service is served again by itself",
    no: "attach again after each restart",
};
const NAMESPACE_GUARD: Asked = Asked {
    name: "namespace_guard",
    code: &codes::MISSING_NAMESPACE_GUARD,
    yes: "a container's own listener cannot take a service's place",
    no: "do not attach on this kernel",
};
const SOURCE_SCOPE: Asked = Asked {
    name: "source_scope",
    code: &codes::MISSING_SOURCE_SCOPE,
    yes: "only allowed containers get in",
    no: "do not attach on this kernel",
};
const EVENTS: Asked = Asked {
    name: "events",
    code: &codes::MISSING_EVENTS,
    yes: "`bridge-user events` shows refusals",
    no: "no events; counters still count",
};
const STEER_TC: Asked = Asked {
    name: "steer_tc",
    code: &codes::MISSING_STEER_TC,
    yes: "MPTCP listeners (Go programs such as Ollama) are steered to",
    no: "MPTCP listeners need a relay",
};
const LOOPBACK_IDENTITY: Asked = Asked {
    name: "loopback_identity",
    code: &codes::MISSING_LOOPBACK_IDENTITY,
    yes: "--identity loopback is possible for steered connections",
    no: "--identity loopback needs a relay",
};
const SPLICE_RELAY: Asked = Asked {
    name: "splice_relay",
    code: &codes::MISSING_SPLICE_RELAY,
    yes: "services that steering cannot reach can be relayed",
    no: "only steering is possible",
};
const SOCKMAP_RELAY: Asked = Asked {
    name: "sockmap_relay",
    code: &codes::MISSING_SOCKMAP_RELAY,
    yes: "relays can let the kernel move the bytes of exchanges",
    no: "relays move all bytes themselves (--datapath sockmap needs --force)",
};

/// What a probe that passed found.
const WORKS: &str = "tried: it works";

fn host_capabilities(roots: &Roots) -> anyhow::Result<[HostCapability; 2]> {
    let at = roots.bpffs().display();
    let bpffs = match (roots.bpffs_mounted(), roots.bpffs_is_read_only()) {
        (_, true) => BPFFS_READ_ONLY.found(false, format!("mounted read-only at {at}")),
        (true, false) => BPFFS.found(true, format!("mounted at {at}")),
        (false, false) => BPFFS.found(false, format!("not mounted at {at}")),
    };
    Ok([bpffs, CGROUP2.tried(roots.open_cgroup().map(drop), "mounted")?])
}

fn kernel_capabilities(features: Features) -> [HostCapability; 4] {
    [
        SK_LOOKUP.verified(features.sk_lookup),
        INGRESS_IFINDEX.verified(features.ingress_ifindex),
        NETNS_COOKIE.verified(features.netns_cookie),
        MPTCP_GUARD.verified(features.mptcp_helper),
    ]
}

fn probed_capabilities(features: Features, roots: &Roots) -> anyhow::Result<[HostCapability; 5]> {
    match probe::steering::run(features, roots) {
        Ok(found) => Ok([
            STEER.tried(found.steer, WORKS)?,
            LISTENER_TRACKING.tried(found.tracking, WORKS)?,
            NAMESPACE_GUARD.tried(found.guard, WORKS)?,
            SOURCE_SCOPE.tried(found.scope, WORKS)?,
            EVENTS.tried(found.events, WORKS)?,
        ]),
        Err(error) => not_tried(error, [STEER, LISTENER_TRACKING, NAMESPACE_GUARD, SOURCE_SCOPE, EVENTS]),
    }
}

fn relay_capabilities() -> anyhow::Result<[HostCapability; 2]> {
    const NO_BUGS: &str = "tried: it works, and this kernel has no known bugs in it";
    match probe::sockmap::run() {
        Ok(found) => {
            Ok([SPLICE_RELAY.tried(found.splice, WORKS)?, SOCKMAP_RELAY.tried(found.sockmap, NO_BUGS)?])
        }
        Err(error) => not_tried(error, [SPLICE_RELAY, SOCKMAP_RELAY]),
    }
}

/// Where nothing could be tried at all.
fn not_tried<const N: usize>(error: anyhow::Error, asked: [Asked; N]) -> anyhow::Result<[HostCapability; N]> {
    if net::is_out_of_descriptors(&error) {
        return Err(error.context(net::OUT_OF_DESCRIPTORS));
    }
    Ok(asked.map(|asked| asked.found(false, format!("not tried: {error:#}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Asked; 15] = [
        BPFFS,
        CGROUP2,
        SK_LOOKUP,
        INGRESS_IFINDEX,
        NETNS_COOKIE,
        MPTCP_GUARD,
        STEER,
        LISTENER_TRACKING,
        NAMESPACE_GUARD,
        SOURCE_SCOPE,
        EVENTS,
        STEER_TC,
        LOOPBACK_IDENTITY,
        SPLICE_RELAY,
        SOCKMAP_RELAY,
    ];

    #[test]
    fn a_code_is_named_like_its_capability() {
        for asked in ALL {
            assert_eq!(asked.code.name, format!("missing-{}", asked.name.replace('_', "-")));
            assert_eq!(asked.code.verb, "check");
        }
        assert_eq!(BPFFS_READ_ONLY.name, BPFFS.name);
        let known = codes::CODES.iter().filter(|code| code.verb == "check").count();
        assert_eq!(known, ALL.len() + 1, "and that of a bpffs that is read-only");
    }

    #[test]
    fn only_what_attaching_needs_fails() {
        for asked in ALL {
            let report = CheckReport::new("6.18".into(), vec![asked.found(false, "it is not there".into())]);
            let needed =
                ["cgroup2", "sk_lookup", "steer", "listener_tracking", "namespace_guard", "source_scope"];
            let required = needed.contains(&asked.name);
            assert_eq!(report.capabilities[0].required, required, "{}", asked.name);
            assert_eq!(exit_code(&report.findings), u8::from(required), "{}", asked.name);
            let text = report.to_text(80);
            assert!(text.contains("no     it is not there\n"), "{text}");
            assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        }
        let works = CheckReport::new("6.18".into(), ALL.map(|asked| asked.found(true, WORKS.into())).into());
        assert!(works.findings.is_empty(), "{:?}", works.findings);
    }

    #[test]
    fn what_is_missing_is_a_finding_in_json_too() {
        let missing = INGRESS_IFINDEX.verified(false);
        let json = serde_json::to_string(&CheckReport::new("5.10.0".into(), vec![missing])).unwrap();
        let expected = concat!(
            r#"{"version":1,"kernel":"5.10.0","capabilities":[{"name":"ingress_ifindex","ok":false,"#,
            r#""required":false,"detail":"the verifier refuses it","consequence":"weaker: matched by gateway "#,
            r#"address and the bridge's subnet; --allow must stay within it"}],"findings":["#,
            r#"{"code":"missing-ingress-ifindex","severity":"warning","subject":"ingress_ifindex","#,
            r#""cause":"the verifier refuses it","#,
            r#""cure":"keep --allow within the bridge's subnet, or use Linux 5.17 or newer"}]}"#
        );
        assert_eq!(json, expected);
    }
}
