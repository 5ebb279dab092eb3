//! `attach --dry-run`: what would change, as commands a person can read. Changes nothing.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use bridge_common::names;
use serde::Serialize;

use super::{Intent, list};
use crate::{
    kernel::{
        instance::MptcpSteering,
        programs::{identity, link_name, object, tc},
    },
    model::JSON_VERSION,
    model::{attachment::Attachment, datapath::Datapath, identity::Identity},
    net::listeners::Listener,
    netfilter::nft,
};

/// The steps an attach would take.
#[derive(Debug, Serialize)]
pub struct DryRun {
    /// [`JSON_VERSION`].
    pub version: u32,
    /// Always true: tells this document from a report.
    pub dry_run: bool,
    /// The container in whose network namespace all of it would happen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// What would carry each attachment.
    pub choices: Vec<Choice>,
    /// One command per line, in order; empty when everything is as wanted.
    pub steps: Vec<String>,
}

/// What would carry an attachment, and why.
#[derive(Debug, Serialize)]
pub struct Choice {
    /// The attachment's name.
    pub name: String,
    /// The datapath.
    pub datapath: Datapath,
    /// Why that one.
    pub reason: String,
}

impl Choice {
    fn new(intent: &Intent, state: &Attachment) -> Self {
        let tc = state.datapath == Datapath::Steer && intent.is_mptcp(state);
        let datapath = if tc { Datapath::SteerTc } else { state.datapath };
        Self { name: state.name(), datapath, reason: state.reason.to_string() }
    }
}

/// What is there before the steps are taken.
pub struct Surroundings {
    /// The container, and its process, that all of it would happen inside of.
    pub container: Option<String>,
    /// What earlier runs of the container left, by the directory it is pinned in.
    pub earlier: Vec<(PathBuf, Vec<String>)>,
    /// Where the namespace's objects are pinned, or would be.
    pub dir: PathBuf,
    /// Where bpffs has to be mounted first.
    pub to_mount: Option<PathBuf>,
    /// What is pinned there.
    pub pinned: Option<Pinned>,
}

/// What is pinned for a namespace; by default, nothing.
#[derive(Default)]
pub struct Pinned {
    /// The programs are another build's, or have another event level than the one asked for.
    pub outdated: bool,
    /// The attachments.
    pub attachments: Vec<Attachment>,
    /// What steers to MPTCP listeners.
    pub mptcp: MptcpSteering,
    /// Whether services can be shown local clients.
    pub tells_identities: bool,
    /// Cookies of the registered listeners.
    pub registered: HashSet<u64>,
}

impl DryRun {
    /// Shows the steps from what is there to what is intended; `owner_name` says whose a listener is.
    pub fn new(intent: &Intent, there: &Surroundings, owner_name: impl Fn(&Listener) -> String) -> Self {
        let dir = there.dir.as_path();
        let nothing = Pinned::default();
        let pinned = there.pinned.as_ref().unwrap_or(&nothing);
        let mut steps = Vec::new();
        if there.pinned.is_none() && !intent.steered.is_empty() {
            steps.extend(create_steps(intent, there));
        }
        if pinned.outdated {
            steps.extend(upgrade_steps(intent, dir));
        }
        steps.extend(mptcp_steps(intent, &pinned.mptcp, dir));
        if !pinned.tells_identities && intent.steered.iter().any(|state| state.identity == Identity::Loopback)
        {
            steps.extend(identity::PROGRAMS.map(|program| link_step(program, dir)));
        }
        for state in &intent.steered {
            let now = pinned.attachments.iter().find(|other| other.is_same(state));
            if now != Some(state) {
                steps.extend(attachment_steps(state, now, dir));
            }
            let new = |l: &&Listener| {
                let serves = state.target.tcp().is_some_and(|target| l.can_serve(target));
                serves && !l.mptcp && !pinned.registered.contains(&l.cookie)
            };
            let register = |listener: &Listener| register_step(&owner_name(listener), listener, dir);
            steps.extend(intent.listeners.iter().filter(new).map(register));
        }
        steps.extend(intent.relayed.iter().flat_map(relay_steps));
        steps.extend(there.earlier.iter().map(|(dir, names)| forget_step(names, dir)));
        let choices = intent.wanted().map(|state| Choice::new(intent, state)).collect();
        Self { version: JSON_VERSION, dry_run: true, container: there.container.clone(), choices, steps }
    }

    /// As a script for people.
    pub fn to_text(&self) -> String {
        let choice = |c: &Choice| format!("# {}: {}: {}\n", c.name, c.datapath, c.reason);
        let place = self
            .container
            .iter()
            .map(|container| format!("# in the network namespace of container {container}\n"));
        let choices: String = place.chain(self.choices.iter().map(choice)).collect();
        if self.steps.is_empty() {
            return format!("{choices}# nothing would change: everything is attached as asked\n");
        }
        format!("{choices}# nothing was changed; attach would do this:\n{}\n", self.steps.join("\n"))
    }
}

fn create_steps(intent: &Intent, there: &Surroundings) -> Vec<String> {
    let dir = there.dir.as_path();
    let mut steps = Vec::new();
    if let Some(bpffs) = &there.to_mount {
        steps.push(format!("mount -t bpf bpf {}", bpffs.display()));
    }
    steps.push(format!("mkdir {}", dir.display()));
    steps.extend(names::ALL_MAPS.map(|map| format!("bpftool map create {}/{map}", dir.display())));
    steps.extend(programs(intent).map(|program| link_step(program, dir)));
    steps
}

fn link_step(program: &str, dir: &Path) -> String {
    let hook = match program {
        names::PROG_STEER => "sk_lookup of this network namespace",
        names::PROG_SOCK_OPS => "sock_ops of the root cgroup",
        names::PROG_GETPEERNAME4 | names::PROG_GETPEERNAME6 => "getpeername of the root cgroup",
        names::PROG_GETSOCKNAME4 | names::PROG_GETSOCKNAME6 => "getsockname of the root cgroup",
        names::PROG_SOCK_RELEASE => "sock_release of the root cgroup",
        _ => "post_bind of the root cgroup",
    };
    let pin = dir.join(link_name(program));
    format!("bpftool link create {program} -> {hook}, pinned {}", pin.display())
}

/// What steering to MPTCP listeners needs, now or when a service begins to listen so.
fn mptcp_steps(intent: &Intent, there: &MptcpSteering, dir: &Path) -> Vec<String> {
    if intent.features.is_none_or(|features| !features.mptcp_helper) {
        return Vec::new();
    }
    let missing: BTreeMap<u32, &str> = intent
        .steered
        .iter()
        .filter(|state| !there.attached.contains(&state.ifindex))
        .map(|state| (state.ifindex, state.bridge.as_str()))
        .collect();
    let table = (!there.table && !intent.steered.is_empty()).then(|| format!("nft '{}'", nft::RULES));
    let attach = missing.iter().map(|(ifindex, bridge)| {
        let pin = tc::link_pin(dir, *ifindex);
        format!(
            "bpftool net attach tcx_ingress {} dev {bridge}, pinned {}",
            names::PROG_STEER_TC,
            pin.display()
        )
    });
    table.into_iter().chain(attach).collect()
}

fn upgrade_steps(intent: &Intent, dir: &Path) -> Vec<String> {
    let replace = |program| {
        let pin = dir.join(link_name(program));
        format!("bpftool link update pinned {} with this build's {program}", pin.display())
    };
    programs(intent).map(replace).collect()
}

fn programs(intent: &Intent) -> impl Iterator<Item = &'static str> {
    let tracking = intent.features.map_or(&[][..], object::tracking_programs);
    tracking.iter().copied().chain([names::PROG_STEER])
}

fn relay_steps(state: &Attachment) -> impl Iterator<Item = String> {
    state.gateways.iter().map(|&gateway| {
        format!(
            "bridge-user relays {} on dev {} -> {} with {}, allow {}, in this process until a signal",
            SocketAddr::new(gateway, state.port.get()),
            state.bridge,
            state.target,
            state.datapath,
            list(&state.allow)
        )
    })
}

fn register_step(owner: &str, listener: &Listener, dir: &Path) -> String {
    format!("{} register {owner} on {}", update(dir, names::LISTENERS), listener.addr)
}

fn forget_step(names: &[String], dir: &Path) -> String {
    format!("bridge-user removes {} of an earlier run from {}", list(names), dir.display())
}

fn update(dir: &Path, map: &str) -> String {
    format!("bpftool map update pinned {}/{map}", dir.display())
}

fn attachment_steps(state: &Attachment, now: Option<&Attachment>, dir: &Path) -> Vec<String> {
    let mut steps = vec![
        format!("{} allow {} for {}", update(dir, names::ALLOW), list(&state.allow), state.name()),
        format!("{} track listeners on {}", update(dir, names::TARGETS), state.target),
    ];
    let rule = |verb: &str, of: &Attachment, gateway| {
        let (bridge, port, name) = (&of.bridge, of.port, of.name());
        format!(
            "bpftool map {verb} pinned {}/{} tcp dev {bridge} to {gateway} port {port} -> {name}",
            dir.display(),
            names::RULES
        )
    };
    steps.extend(state.gateways.iter().map(|gateway| rule("update", state, gateway)));
    let shown = if state.identity == Identity::Loopback { ", which sees local clients" } else { "" };
    let attachments = update(dir, names::ATTACHMENTS);
    steps.push(format!("{attachments} {} -> {}{shown}", state.name(), state.target));
    if let Some(now) = now {
        let gone = |gateway: &&IpAddr| now.ifindex != state.ifindex || !state.gateways.contains(gateway);
        steps.extend(now.gateways.iter().filter(gone).map(|gateway| rule("delete", now, gateway)));
        steps.push(format!(
            "bpftool map delete pinned {}/{} allow {} (the old list)",
            dir.display(),
            names::ALLOW,
            list(&now.allow)
        ));
    }
    steps
}
