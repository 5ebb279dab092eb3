//! From what is there to what should be: the changes, in the order in which each point in between is right.
//!
//! Invariants: what refers to an attachment is written before it and removed after it; a pin that stands for something
//! comes before it and goes after it; a new instance is published last, and withdrawn first. What is as wanted is left
//! alone, so that there is nothing left to do afterwards.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use bridge_common::{maps::TargetKey, names, steer};

use super::{
    change::{Change, ProgramPin, Registration, TcPin},
    is_mptcp,
    snapshot::{Earlier, HeldListener, Pinned, Snapshot, TcState},
};
use crate::model::{
    attachment::Attachment,
    bridge::Interface,
    event_level::EventLevel,
    features::Features,
    identity::Identity,
    instance::{InstanceMeta, NamespaceId},
    programs::{self, Hook, TcHook},
};

/// What should be in a namespace.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// What this process is to relay.
    pub relayed: Vec<Attachment>,
    /// What is to be steered; `None`: what is, whatever that may be.
    pub steered: Option<Steered>,
    /// The level of events; `None`: the one there is.
    pub event_level: Option<EventLevel>,
    /// Steering was tried on this host.
    pub probed: bool,
    /// The namespace that attaches from outside, if one does.
    pub owner: Option<NamespaceId>,
}

/// Everything that is to be steered in a namespace.
#[derive(Clone, Debug, Default)]
pub struct Steered {
    /// What is asked for now. What it needs is mended.
    pub asked: Vec<Attachment>,
    /// What stays as it is.
    pub kept: Vec<Attachment>,
}

impl Steered {
    fn all(&self) -> impl Iterator<Item = &Attachment> {
        self.kept.iter().chain(&self.asked)
    }
}

/// The changes that lead from what is there to what is wanted; none if it is as wanted.
pub fn diff(there: &Snapshot, wanted: &Wanted) -> Vec<Change> {
    let relay = |state: &Attachment| Change::StartRelay { attachment: Box::new(state.clone()) };
    // Relays first: they stop by themselves when something fails after them.
    let mut changes: Vec<Change> = wanted.relayed.iter().map(relay).collect();
    let Some(steered) = &wanted.steered else { return changes };
    if steered.all().next().is_none() {
        changes.extend(there.instance.iter().flat_map(|pinned| removal(there, pinned)));
        return changes;
    }
    changes.extend(steering(there, wanted, steered));
    let forget =
        |earlier: &Earlier| Change::ForgetEarlier { dir: earlier.dir.clone(), names: earlier.names.clone() };
    changes.extend(there.earlier.iter().map(forget));
    changes
}

/// The changes of an instance in which something is steered.
fn steering(there: &Snapshot, wanted: &Wanted, steered: &Steered) -> Vec<Change> {
    let nothing = Pinned::default();
    let pinned = there.instance.as_ref().unwrap_or(&nothing);
    let mut changes = Vec::new();
    if pinned.has_leftovers {
        changes.push(Change::RemoveLeftovers { dir: there.dir.clone() });
    }
    if let Some(features) = there.features {
        changes.extend(match there.instance {
            None => creation(there, wanted, features),
            Some(_) => refresh(pinned, wanted, features),
        });
        changes.extend(tc_additions(there, pinned, steered, features));
        changes.extend(identity_additions(there, pinned, steered));
    }
    changes.extend(attachments(there, pinned, steered));
    let is_kept = |index| steered.all().any(|state| state.ifindex == index);
    changes.extend(tc_removals(there, pinned, is_kept));
    if there.instance.is_none() && there.features.is_some() {
        changes.push(Change::Publish { pin: there.dir.join(programs::link_name(names::PROG_STEER)) });
    }
    changes
}

fn creation(there: &Snapshot, wanted: &Wanted, features: Features) -> Vec<Change> {
    let event_level = wanted.event_level.unwrap_or_default();
    let mut changes = Vec::new();
    changes.extend(there.to_mount.clone().map(|at| Change::MountBpffs { at }));
    changes.push(Change::CreateInstance { dir: there.dir.clone(), event_level });
    for &program in programs::tracking(features) {
        changes.push(attach_program(there, program));
    }
    let steer = names::PROG_STEER;
    changes.push(Change::AttachProgram(ProgramPin { program: steer, hook: Hook::of(steer), pin: None }));
    let new = InstanceMeta { event_level, probed: wanted.probed, owner: wanted.owner };
    changes.push(Change::WriteMeta { new, old: None });
    changes
}

fn attach_program(there: &Snapshot, program: &'static str) -> Change {
    let pin = Some(there.dir.join(programs::link_name(program)));
    Change::AttachProgram(ProgramPin { program, hook: Hook::of(program), pin })
}

/// Brings the programs and what the instance says of itself up to date.
fn refresh(pinned: &Pinned, wanted: &Wanted, features: Features) -> Vec<Change> {
    let mut changes = Vec::new();
    let old_level = pinned.meta.event_level;
    let event_level = wanted.event_level.unwrap_or(old_level);
    if pinned.is_other_build || event_level != old_level {
        let tracking = programs::tracking(features).iter().copied();
        let identity = programs::IDENTITY.into_iter().filter(|program| pinned.identity.contains(program));
        let attached = pinned.tc.values().filter(|tc| tc.is_attached && tc.interface.name.is_some());
        changes.push(Change::ReplacePrograms {
            programs: tracking.chain([names::PROG_STEER]).chain(identity).collect(),
            interfaces: attached.map(|tc| tc.interface.clone()).collect(),
            event_level,
            old_level,
            is_other_build: pinned.is_other_build,
        });
    }
    // Whoever attached from outside last is the owner, also of what was attached there before.
    let old = InstanceMeta { event_level, ..pinned.meta };
    let owner = wanted.owner.or(old.owner);
    let new = InstanceMeta { event_level, probed: old.probed || wanted.probed, owner };
    if new != old {
        changes.push(Change::WriteMeta { new, old: Some(old) });
    }
    changes
}

/// What steering to MPTCP listeners needs, now or when a service begins to listen so.
fn tc_additions(there: &Snapshot, pinned: &Pinned, steered: &Steered, features: Features) -> Vec<Change> {
    if !features.mptcp_helper || steered.asked.is_empty() {
        return Vec::new();
    }
    let listeners: Vec<_> = there.listeners.iter().map(|held| held.listener.clone()).collect();
    let optional = !steered.asked.iter().any(|state| is_mptcp(&listeners, &state.target));
    let mut changes = Vec::new();
    let bridges: BTreeSet<Interface> = steered
        .asked
        .iter()
        .map(|state| Interface { index: state.ifindex, name: Some(state.bridge.clone()) })
        .collect();
    let hook = TcHook::of(features);
    for interface in bridges {
        let is_attached = pinned.tc.get(&interface.index).is_some_and(|tc| tc.is_attached);
        if !is_attached {
            let pin = there.dir.join(programs::tc_pin(hook, interface.index));
            changes.push(Change::AttachTc { tc: TcPin { interface, hook, pin }, optional });
        }
    }
    changes
}

fn identity_additions(there: &Snapshot, pinned: &Pinned, steered: &Steered) -> Vec<Change> {
    if steered.asked.iter().all(|state| state.identity == Identity::Container) {
        return Vec::new();
    }
    let missing = programs::IDENTITY.into_iter().filter(|program| !pinned.identity.contains(program));
    missing.map(|program| attach_program(there, program)).collect()
}

/// Removes the attachments that nobody wants, makes or changes the others, then forgets the targets that nobody wants.
fn attachments(there: &Snapshot, pinned: &Pinned, steered: &Steered) -> Vec<Change> {
    let mut changes = Vec::new();
    let wanted: HashSet<_> = steered.all().map(Attachment::key).collect();
    for (id, state) in &pinned.attachments {
        if !wanted.contains(&state.key()) {
            let attachment = Box::new(state.clone());
            changes.push(Change::RemoveAttachment { id: *id, dir: there.dir.clone(), attachment });
        }
    }
    if there.features.is_some() {
        changes.extend(tracking(there, pinned, steered));
    }
    let present: HashMap<_, _> =
        pinned.attachments.iter().map(|(id, state)| (state.key(), (*id, state))).collect();
    let mut unused = pinned.next_id.max(1)..;
    for state in steered.all() {
        let (id, old) = match present.get(&state.key()) {
            Some((_, present)) if *present == state => continue,
            Some((id, present)) => (*id, Some(Box::new((*present).clone()))),
            None => (unused.next().unwrap_or(u32::MAX), None),
        };
        changes.push(Change::PutAttachment { id, dir: there.dir.clone(), new: Box::new(state.clone()), old });
    }
    let mut seen: HashSet<SocketAddr> = steered.all().filter_map(|state| state.target.tcp()).collect();
    let old_targets = pinned.attachments.iter().filter_map(|(_, state)| state.target.tcp());
    let unwanted = old_targets.filter(|target| seen.insert(*target));
    changes.extend(unwanted.map(|target| Change::UntrackTarget { target }));
    changes
}

/// Tracks the targets, all before the first attachment, so that listeners are looked for once.
fn tracking(there: &Snapshot, pinned: &Pinned, steered: &Steered) -> Vec<Change> {
    let mut listeners: HashMap<TargetKey, Vec<&HeldListener>> = HashMap::new();
    for held in there.listeners.iter().filter(|held| held.listener.device == 0) {
        listeners.entry(held.listener.key()).or_default().push(held);
    }
    let mut looked_at = HashSet::new();
    let targets = steered.all().filter_map(|state| state.target.tcp());
    targets.filter_map(|target| track(&listeners, pinned, target, &mut looked_at)).collect()
}

/// Tracks a target and registers its listeners, unless all of that is so. Each address is looked at once: attachments
/// may share it. `there`: the listeners, by where they are bound.
fn track(
    there: &HashMap<TargetKey, Vec<&HeldListener>>,
    pinned: &Pinned,
    target: SocketAddr,
    looked_at: &mut HashSet<TargetKey>,
) -> Option<Change> {
    let keys = steer::candidates(target.ip().into(), target.port());
    // The first is the target's own; listeners on every address serve others, too.
    let is_new = !looked_at.contains(&keys[0]) && keys.iter().any(|key| !pinned.targets.contains(key));
    let fresh: Vec<TargetKey> = keys.into_iter().filter(|key| looked_at.insert(*key)).collect();
    let mut noted = HashSet::new();
    let mut listeners = Vec::new();
    let mut found: Vec<&HeldListener> =
        fresh.iter().filter_map(|key| there.get(key)).flatten().copied().collect();
    // As they are registered.
    found.sort_by_key(|held| held.listener.cookie);
    for held in found {
        let listener = &held.listener;
        let key = listener.key();
        let is_known = if listener.mptcp {
            noted.insert(key);
            pinned.prepared.contains(&key)
        } else {
            pinned.registered.contains(&listener.cookie)
        };
        if let (false, Some(owner)) = (is_known, &held.owner) {
            listeners.push(Registration {
                owner: owner.clone(),
                address: listener.addr,
                mptcp: listener.mptcp,
                is_noted: pinned.mptcp_targets.contains(&key),
            });
        }
    }
    let is_stale = |key: &&TargetKey| pinned.mptcp_targets.contains(*key) && !noted.contains(*key);
    let forgotten: Vec<_> = fresh.iter().filter(is_stale).map(address).collect();
    let changes = is_new || !listeners.is_empty() || !forgotten.is_empty();
    changes.then_some(Change::TrackTarget { target, is_new, listeners, forgotten })
}

fn address(key: &TargetKey) -> SocketAddr {
    SocketAddr::new(IpAddr::from(key.addr), key.port)
}

/// Takes the tc program off every interface that is not kept.
fn tc_removals(there: &Snapshot, pinned: &Pinned, is_kept: impl Fn(u32) -> bool) -> Vec<Change> {
    let detach = |(index, state): (&u32, &TcState)| {
        let pin = there.dir.join(programs::tc_pin(state.hook, *index));
        let tc = TcPin { interface: state.interface.clone(), hook: state.hook, pin };
        Change::DetachTc { tc }
    };
    pinned.tc.iter().filter(|(index, _)| !is_kept(**index)).map(detach).collect()
}

/// Removes an instance.
fn removal(there: &Snapshot, pinned: &Pinned) -> Vec<Change> {
    let mut changes = Vec::new();
    // In a namespace that is gone nothing is attached any more, and what the pins stand for went with it.
    if !pinned.is_gone {
        changes.push(Change::Withdraw { pin: there.dir.join(programs::link_name(names::PROG_STEER)) });
        changes.extend(tc_removals(there, pinned, |_| false));
        changes.extend(release(pinned));
    }
    changes.push(Change::RemoveInstance { dir: there.dir.clone() });
    changes
}

/// Takes back what was done to the services' sockets.
fn release(pinned: &Pinned) -> Option<Change> {
    let mut addresses: Vec<_> = pinned.prepared.iter().map(address).collect();
    addresses.sort();
    (!addresses.is_empty()).then_some(Change::ReleaseListeners { addresses })
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
