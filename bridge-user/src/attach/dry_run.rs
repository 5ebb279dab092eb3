//! `attach --dry-run`: what would change, as commands a person can read. Changes nothing.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use bridge_common::names;
use serde::Serialize;

use super::{Prepared, owner_name};
use crate::{
    attachment::{AttachmentState, Identity},
    datapath::Datapath,
    kernel::{Instance, host, identity, instance::MptcpSteering, object, pins, tc},
    net::{listeners::Listener, untrack},
    plan,
    report::JSON_VERSION,
};

/// The steps an attach would take.
#[derive(Debug, Serialize)]
pub struct Plan {
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
    fn new(prepared: &Prepared, state: &AttachmentState) -> Self {
        let tc = state.datapath == Datapath::Steer && prepared.is_mptcp(state);
        let datapath = if tc { Datapath::SteerTc } else { state.datapath };
        Self { name: state.name(), datapath, reason: state.reason.to_string() }
    }
}

impl Plan {
    /// Plans a prepared attach.
    ///
    /// # Errors
    /// When the present state cannot be read.
    pub fn new(prepared: &Prepared) -> anyhow::Result<Self> {
        let mut plan = prepared.in_place(|| Self::here(prepared))?;
        if let Some(place) = &prepared.place {
            plan.container = Some(place.to_string());
            let forget = |(path, names): (PathBuf, Vec<String>)| {
                format!(
                    "bridge-user removes {} of an earlier run from {}",
                    plan::list(&names),
                    path.display()
                )
            };
            plan.steps.extend(place.earlier(&prepared.steered)?.into_iter().map(forget));
        }
        Ok(plan)
    }

    /// [`Plan::new`] in the calling thread's namespace.
    fn here(prepared: &Prepared) -> anyhow::Result<Self> {
        let dir = pins::PinDir::current()?.path();
        let mut steps = Vec::new();
        let mut present = Vec::new();
        let mut registered = HashSet::new();
        let mut mptcp = MptcpSteering::default();
        let mut tells_identities = false;
        match Instance::open()? {
            None if prepared.steered.is_empty() => {}
            None => steps.extend(create_steps(prepared, &dir)),
            Some(instance) => {
                if instance.state.is_outdated(prepared.event_level)? {
                    steps.extend(upgrade_steps(prepared, &dir));
                }
                present = instance.state.list()?.into_iter().map(|(_, state)| state).collect();
                mptcp = instance.mptcp()?;
                tells_identities = instance.tells_identities();
                registered = instance.state.listeners()?.into_iter().map(|(_, cookie)| cookie).collect();
            }
        }
        steps.extend(mptcp_steps(prepared, &mptcp, &dir));
        if !tells_identities && prepared.steered.iter().any(|state| state.identity == Identity::Loopback) {
            steps.extend(identity::PROGRAMS.map(|program| link_step(program, &dir)));
        }
        for state in &prepared.steered {
            let now = present.iter().find(|other| other.is_same(state));
            if now != Some(state) {
                steps.extend(attachment_steps(state, now, &dir));
            }
            let new = |l: &&Listener| {
                let serves = state.target.tcp().is_some_and(|target| l.can_serve(target));
                serves && !l.mptcp && !registered.contains(&l.cookie)
            };
            steps.extend(prepared.listeners.iter().filter(new).map(|listener| register_step(listener, &dir)));
        }
        steps.extend(prepared.relayed.iter().flat_map(relay_steps));
        let choices = prepared.wanted().map(|state| Choice::new(prepared, state)).collect();
        Ok(Self { version: JSON_VERSION, dry_run: true, container: None, choices, steps })
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

fn create_steps(prepared: &Prepared, dir: &Path) -> Vec<String> {
    let mut steps = Vec::new();
    if !host::bpffs_mounted() {
        steps.push(format!("mount -t bpf bpf {}", host::BPFFS));
    }
    steps.push(format!("mkdir {}", dir.display()));
    steps.extend(names::ALL_MAPS.map(|map| format!("bpftool map create {}/{map}", dir.display())));
    steps.extend(programs(prepared).map(|program| link_step(program, dir)));
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
    let pin = dir.join(pins::link_name(program));
    format!("bpftool link create {program} -> {hook}, pinned {}", pin.display())
}

/// What steering to MPTCP listeners needs, now or when a service begins to listen so.
fn mptcp_steps(prepared: &Prepared, there: &MptcpSteering, dir: &Path) -> Vec<String> {
    if prepared.features.is_none_or(|features| !features.mptcp_helper) {
        return Vec::new();
    }
    let missing: BTreeMap<u32, &str> = prepared
        .steered
        .iter()
        .filter(|state| !there.attached.contains(&state.ifindex))
        .map(|state| (state.ifindex, state.bridge.as_str()))
        .collect();
    let table = (!there.table && !prepared.steered.is_empty()).then(|| format!("nft '{}'", untrack::RULES));
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

fn upgrade_steps(prepared: &Prepared, dir: &Path) -> Vec<String> {
    let replace = |program| {
        let pin = dir.join(pins::link_name(program));
        format!("bpftool link update pinned {} with this build's {program}", pin.display())
    };
    programs(prepared).map(replace).collect()
}

fn programs(prepared: &Prepared) -> impl Iterator<Item = &'static str> {
    let tracking = prepared.features.map_or(&[][..], object::tracking_programs);
    tracking.iter().copied().chain([names::PROG_STEER])
}

fn relay_steps(state: &AttachmentState) -> impl Iterator<Item = String> {
    state.gateways.iter().map(|&gateway| {
        format!(
            "bridge-user relays {} on dev {} -> {} with {}, allow {}, in this process until a signal",
            SocketAddr::new(gateway, state.port.get()),
            state.bridge,
            state.target,
            state.datapath,
            plan::list(&state.allow)
        )
    })
}

fn register_step(listener: &Listener, dir: &Path) -> String {
    format!("{} register {} on {}", update(dir, names::LISTENERS), owner_name(listener), listener.addr)
}

fn update(dir: &Path, map: &str) -> String {
    format!("bpftool map update pinned {}/{map}", dir.display())
}

fn attachment_steps(state: &AttachmentState, now: Option<&AttachmentState>, dir: &Path) -> Vec<String> {
    let mut steps = vec![
        format!("{} allow {} for {}", update(dir, names::ALLOW), plan::list(&state.allow), state.name()),
        format!("{} track listeners on {}", update(dir, names::TARGETS), state.target),
    ];
    let rule = |verb: &str, of: &AttachmentState, gateway| {
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
            plan::list(&now.allow)
        ));
    }
    steps
}
