//! Ports and names that are taken already, by what is attached or by what is asked for in the same command. Pure.

use std::collections::HashMap;

use super::wanted::failed_to_attach;
use crate::model::{attachment::Attachment, target::Port};

/// Wanted attachments that would take the (bridge, port) of others, or of each other.
///
/// # Errors
/// Names the first, and the attachment that is in its way.
pub fn refuse_taken(wanted: &[Attachment], present: &[Attachment]) -> Result<(), String> {
    let mut taken = Taken::by(present);
    for state in wanted {
        taken.refuse(state).map_err(|cause| {
            format!("{}: {cause}", failed_to_attach(&state.service, state.port, &state.bridge))
        })?;
        taken.add(state);
    }
    Ok(())
}

/// What is in the way of others, found by what it takes.
#[derive(Default)]
pub struct Taken<'a> {
    names: HashMap<String, Vec<&'a Attachment>>,
    ports: HashMap<(u32, Port), Vec<&'a Attachment>>,
    /// Of the same command: two networks may turn out to be the same bridge, and two services may get the same gateway
    /// address.
    asked: HashMap<(u32, Port), Vec<&'a Attachment>>,
}

impl<'a> Taken<'a> {
    /// By what is attached.
    pub fn by(present: &'a [Attachment]) -> Self {
        let mut taken = Self::default();
        present.iter().for_each(|state| taken.hold(state));
        taken
    }

    /// And by this one, which the command asks for.
    pub fn add(&mut self, state: &'a Attachment) {
        self.hold(state);
        self.asked.entry((state.ifindex, state.port)).or_default().push(state);
    }

    fn hold(&mut self, state: &'a Attachment) {
        self.names.entry(state.name()).or_default().push(state);
        self.ports.entry((state.ifindex, state.port)).or_default().push(state);
    }

    /// Refuses a wanted attachment that would take another one's name or (bridge, port).
    ///
    /// # Errors
    /// Names the attachment that is in the way.
    pub fn refuse(&self, wanted: &Attachment) -> Result<(), String> {
        let nothing = Vec::new();
        let of_this_name = self.names.get(&wanted.name()).unwrap_or(&nothing);
        let port = (wanted.ifindex, wanted.port);
        refuse_twice(wanted, self.asked.get(&port).unwrap_or(&nothing))?;
        refuse_name(wanted, of_this_name)?;
        refuse_port(wanted, self.ports.get(&port).unwrap_or(&nothing))
    }
}

/// `asked`: those at the same port of the same bridge that the command asks for, too.
fn refuse_twice(wanted: &Attachment, asked: &[&Attachment]) -> Result<(), String> {
    match asked.iter().find(|first| share_a_port(first, wanted)) {
        None => Ok(()),
        Some(first) if first.network == wanted.network => {
            Err(format!("it would get the same gateway address as {}: choose another port", first.name()))
        }
        Some(first) => Err(format!(
            "networks {} and {} are both on this bridge: name one of them",
            first.network, wanted.network
        )),
    }
}

/// `present`: those of the same name.
fn refuse_name(wanted: &Attachment, present: &[&Attachment]) -> Result<(), String> {
    if let Some(other) = present.iter().find(|other| !other.is_same(wanted)) {
        return Err(format!(
            "the name {} already belongs to service {} on network {}: choose another service name (NAME=PORT)",
            other.name(),
            other.service,
            other.network
        ));
    }
    if let Some(other) = present.iter().find(|other| other.datapath != wanted.datapath) {
        return Err(format!(
            "{} is already attached with datapath {}, which would take every connection before {}: detach it first \
             (bridge-user detach {})",
            other.name(),
            other.datapath,
            wanted.datapath,
            other.name()
        ));
    }
    Ok(())
}

/// `present`: those at the same port of the same bridge.
fn refuse_port(wanted: &Attachment, present: &[&Attachment]) -> Result<(), String> {
    match present.iter().find(|other| share_a_port(other, wanted) && other.name() != wanted.name()) {
        None => Ok(()),
        Some(other) => Err(format!(
            "port {} is already attached there as {}: detach that first (bridge-user detach {}), or choose another \
             port",
            wanted.port,
            other.name(),
            other.name()
        )),
    }
}

/// Whether both would answer at one port of one gateway address. Attachments of either family may have the same port.
fn share_a_port(one: &Attachment, other: &Attachment) -> bool {
    one.ifindex == other.ifindex && one.port == other.port && !one.gateways.is_disjoint(&other.gateways)
}
