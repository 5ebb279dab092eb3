//! What of a request is going to be attached. Each SPEC on each network stands alone: what is in the way of one takes
//! no other down. Pure.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    limits::Room,
    request::{AllowedSource, Request},
    taken::Taken,
    wanted::failed_to_attach,
};
use crate::model::{
    attachment::{Attachment, AttachmentKey, Keeper},
    bridge::Bridge,
    finding::Finding,
    source::Source,
    spec::ServiceSpec,
};

/// One SPEC on one network.
pub struct Candidate<'a> {
    /// The SPEC.
    pub spec: &'a ServiceSpec,
    /// The network, or the interface where a bridge was given.
    pub network: &'a str,
    /// The container in whose namespace it is to be.
    pub container: Option<&'a str>,
    /// The network's bridge, if that is there.
    pub bridge: Option<&'a Bridge>,
    /// What it would be, or why it cannot be attached.
    pub found: Result<Attachment, String>,
    /// The addresses that were left out of that.
    pub left_out: Vec<Finding>,
}

impl Candidate<'_> {
    fn key(&self) -> AttachmentKey<'_> {
        (self.container, self.network, &self.spec.service, self.spec.port)
    }

    fn refusal(&self, cause: &str) -> Refusal {
        let ServiceSpec { service, port, .. } = self.spec;
        let error = match self.bridge {
            Some(bridge) => format!("{}: {cause}", failed_to_attach(service, *port, &bridge.name)),
            None => cause.to_owned(),
        };
        Refusal { spec: Some(self.spec.to_string()), network: self.network.to_owned(), error }
    }

    /// Whether what is attached is what the same request made of this, as far as that can be told. What can be told of
    /// the allow-list is compared: nobody stays admitted who is not asked for.
    fn has_made(&self, request: &Request, there: &Attachment) -> bool {
        let steered = request.may_steer() && request.relay.proxy_protocol.is_none();
        let is_same = self.spec.target == there.target && request.identity == there.identity;
        steered && is_same && serves_asked(request, there) && self.admits_the_same(request, there)
    }

    fn admits_the_same(&self, request: &Request, there: &Attachment) -> bool {
        let of_family = |source: &&Source| {
            there.target.tcp().is_some_and(|target| target.is_ipv4() == source.addr().is_ipv4())
        };
        let admitted: BTreeSet<String> = there.allow.iter().map(Source::as_typed).collect();
        match (&self.found, self.bridge) {
            (Ok(wanted), _) => {
                let wants_process =
                    wanted.datapath.is_relay() && request.foreground && self.container.is_none();
                let typed: BTreeSet<_> =
                    wanted.allow.iter().filter(of_family).map(Source::as_typed).collect();
                !wants_process && wanted.ifindex == there.ifindex && typed == admitted
            }
            (Err(_), Some(bridge)) if request.allow.is_empty() => there.allow.iter().all(|source| {
                let is_in = |subnet: &IpNet| source.net().is_some_and(|net| subnet.trunc().contains(net));
                bridge.addrs.iter().any(is_in)
            }),
            // Nothing arrives on a bridge that is not there.
            (Err(_), None) if request.allow.is_empty() => true,
            (Err(_), _) => {
                let asked: BTreeSet<_> = request.allow.iter().map(AllowedSource::as_typed).collect();
                // Of those that the daemon waits for, some were not there.
                asked == admitted || request.keeper == Keeper::Config && admitted.is_subset(&asked)
            }
        }
    }
}

/// Whether each `--gateway` of the target's family is served there.
fn serves_asked(request: &Request, there: &Attachment) -> bool {
    let is_family =
        |address: &&IpAddr| there.target.tcp().is_some_and(|target| target.is_ipv4() == address.is_ipv4());
    request.gateways.iter().filter(is_family).all(|address| there.gateways.contains(address))
}

/// What is not going to be attached, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The SPEC in its full form; none: all of them on that network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<String>,
    /// The network, or the interface where a bridge was given.
    pub network: String,
    /// What failed, why, and what to do next: the line on standard error.
    pub error: String,
}

/// A request, sorted.
#[derive(Debug, Default)]
pub struct Partition {
    /// What is going to be attached.
    pub wanted: Vec<Attachment>,
    /// What is not.
    pub refused: Vec<Refusal>,
    /// What is attached already, and left alone: its bridge is not there.
    pub kept: Vec<Attachment>,
    /// What is attached otherwise than asked for, and cannot be attached as asked.
    pub outdated: Vec<Attachment>,
    /// What is attached already and would be refused if it were not.
    pub warnings: Vec<String>,
    /// The addresses that were left out of what is going to be attached.
    pub left_out: Vec<Finding>,
}

/// Sorts the candidates; `next_id`: the number that the next new attachment gets; `check`: what else is in the way of
/// one. What the same request attached before is not refused: it stays as it is, with a warning.
pub fn partition(
    request: &Request,
    candidates: &[Candidate<'_>],
    present: &[Attachment],
    next_id: u32,
    check: impl Fn(&Attachment) -> Result<(), String>,
) -> Partition {
    let changed: HashSet<AttachmentKey<'_>> = candidates.iter().map(Candidate::key).collect();
    let there: HashMap<_, _> = present.iter().map(|state| (state.key(), state)).collect();
    let mut room = Room::beside(present, &changed, next_id);
    let mut taken = Taken::by(present);
    let mut sorted = Partition::default();
    for candidate in candidates {
        let accepted = candidate.found.as_ref().map_err(Clone::clone).and_then(|state| {
            refuse_relay(request, state)?;
            taken.refuse(state)?;
            check(state)?;
            room.take(state)?;
            Ok(state)
        });
        let there = there.get(&candidate.key()).copied();
        match (accepted, there) {
            (Ok(state), _) => {
                taken.add(state);
                sorted.wanted.push(kept_by(request, there, state));
                sorted.left_out.extend(candidate.left_out.iter().cloned());
            }
            (Err(cause), Some(there)) if candidate.has_made(request, there) => {
                room.hold(there);
                taken.add(there);
                sorted.warnings.push(format!("{} stays as it is: {cause}", there.name()));
                let is_there = candidate.bridge.is_some_and(|bridge| bridge.index == there.ifindex);
                let stays = if is_there { &mut sorted.wanted } else { &mut sorted.kept };
                stays.push(kept_by(request, Some(there), there));
            }
            (Err(cause), there) => {
                if let Some(there) = there {
                    room.hold(there);
                    sorted.outdated.push(there.clone());
                }
                sorted.refused.push(candidate.refusal(&cause));
            }
        }
    }
    // What is wrong with a network is said once.
    sorted.refused.dedup_by(|next, first| {
        let is_same = next.network == first.network && next.error == first.error;
        if is_same {
            first.spec = None;
        }
        is_same
    });
    sorted
}

/// The attachment with who keeps it from now on: what the configuration asked for once stays its affair.
fn kept_by(request: &Request, there: Option<&Attachment>, state: &Attachment) -> Attachment {
    let keeper = match there {
        Some(Attachment { keeper: Keeper::Config, .. }) => Keeper::Config,
        _ => request.keeper,
    };
    Attachment { keeper, ..state.clone() }
}

/// Refuses what needs a relay where none can run; names why it needs one, and the way out.
fn refuse_relay(request: &Request, state: &Attachment) -> Result<(), String> {
    if !state.datapath.is_relay() {
        return Ok(());
    }
    let needs = format!("it needs a relay ({}: {})", state.datapath, state.reason);
    match (&request.container, request.foreground) {
        (Some(_), _) => Err(format!(
            "{needs}, and there are none inside containers: use --datapath auto and a TCP listener on the container's \
             127.0.0.1, or let the service listen on the container's own address"
        )),
        (None, false) => Err(format!(
            "{needs}, which lives in a process: start the daemon (bridge-user run), or add --foreground and keep it \
             running"
        )),
        (None, true) => Ok(()),
    }
}

#[cfg(test)]
#[path = "partition_tests.rs"]
mod tests;
