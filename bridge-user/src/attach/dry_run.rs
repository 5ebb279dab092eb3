//! `attach --dry-run`: what would change, as commands a person can read. Changes nothing.

use std::path::Path;

use bridge_common::names;
use serde::Serialize;

use super::{Prepared, owner_name};
use crate::{
    attachment::AttachmentState,
    kernel::{Instance, host, object, pins},
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
    /// One command per line, in order; empty when everything is as wanted.
    pub steps: Vec<String>,
}

impl Plan {
    /// Plans a prepared attach.
    ///
    /// # Errors
    /// When the present state cannot be read.
    pub fn new(prepared: &Prepared) -> anyhow::Result<Self> {
        let dir = pins::PinDir::current()?.path();
        let mut steps = Vec::new();
        let instance = Instance::open()?;
        let present: Vec<AttachmentState> = match &instance {
            Some(instance) => instance.state.list()?.into_iter().map(|(_, state)| state).collect(),
            None => {
                steps.extend(create_steps(prepared, &dir));
                Vec::new()
            }
        };
        for wanted in &prepared.wanted {
            if !present.contains(&wanted.state) {
                steps.extend(attachment_steps(&wanted.state, &dir, prepared));
            }
        }
        Ok(Self { version: JSON_VERSION, dry_run: true, steps })
    }

    /// As a script for people.
    pub fn to_text(&self) -> String {
        if self.steps.is_empty() {
            return "# nothing would change: everything is attached as asked\n".to_owned();
        }
        format!("# nothing was changed; attach would do this:\n{}\n", self.steps.join("\n"))
    }
}

fn create_steps(prepared: &Prepared, dir: &Path) -> Vec<String> {
    let mut steps = Vec::new();
    if !host::bpffs_mounted() {
        steps.push(format!("mount -t bpf bpf {}", host::BPFFS));
    }
    steps.push(format!("mkdir {}", dir.display()));
    steps.extend(names::ALL_MAPS.map(|map| format!("bpftool map create {}/{map}", dir.display())));
    for program in object::attached_programs(prepared.features) {
        let hook = match *program {
            names::PROG_STEER => "sk_lookup of this network namespace",
            names::PROG_TRACK => "sock_ops of the root cgroup",
            _ => "post_bind of the root cgroup",
        };
        steps.push(format!(
            "bpftool link create {program} -> {hook}, pinned {}/{}",
            dir.display(),
            pins::link_name(program)
        ));
    }
    steps
}

fn attachment_steps(state: &AttachmentState, dir: &Path, prepared: &Prepared) -> Vec<String> {
    let map = |name: &str| format!("bpftool map update pinned {}/{name}", dir.display());
    let mut steps = vec![
        format!("{} allow {} for {}", map(names::ALLOW), plan::list(&state.allow), state.name()),
        format!("{} track listeners on {}", map(names::TARGETS), state.target),
    ];
    for listener in prepared.listeners.iter().filter(|l| l.serves(state.target)) {
        steps.push(format!(
            "{} register {} on {}",
            map(names::LISTENERS),
            owner_name(listener),
            listener.addr
        ));
    }
    for gateway in &state.gateways {
        steps.push(format!(
            "{} tcp dev {} to {gateway} port {} -> {}",
            map(names::RULES),
            state.bridge,
            state.port,
            state.name()
        ));
    }
    steps.push(format!("{} {} -> {}", map(names::ATTACHMENTS), state.name(), state.target));
    steps
}
