//! Tests of the changes against a model of a namespace: what they lead to, what undoes them, and in which order they
//! come.

use proptest::prelude::*;

use super::*;
use crate::{
    model::{
        attachment::Keeper,
        datapath::{Datapath, Reason},
        listener::Listener,
        source::Source,
        target::{Port, Target},
    },
    plan::HeldListener,
};

const FEATURES: Features =
    Features { sk_lookup: true, ingress_ifindex: true, netns_cookie: true, mptcp_helper: true, tcx: true };

/// One attachment in numbers: bridge, service, target, gateway, and whether it has the loopback identity.
type Numbers = (u32, u16, u16, u8, bool);

fn attachment((bridge, service, target, gateway, local): Numbers) -> Attachment {
    Attachment {
        service: format!("service{service}"),
        container: None,
        network: format!("br-{bridge}"),
        bridge: format!("br-{bridge}"),
        ifindex: bridge,
        port: Port::new(7000 + service).unwrap(),
        target: Target::Tcp(SocketAddr::from(([127, 0, 0, 1], 3000 + target))),
        gateways: BTreeSet::from([IpAddr::from([172, 30, bridge as u8, gateway])]),
        allow: BTreeSet::from([Source::Net("172.30.0.0/16".parse().unwrap())]),
        datapath: Datapath::Steer,
        reason: Reason::ProbePassed,
        identity: if local { Identity::Loopback } else { Identity::Container },
        keeper: Keeper::Command,
    }
}

/// A listener in numbers: target, whether it is on every address, whether it is MPTCP.
fn held((at, (target, anywhere, mptcp)): (usize, (u16, bool, bool))) -> HeldListener {
    let ip = if anywhere { [0, 0, 0, 0] } else { [127, 0, 0, 1] };
    let addr = SocketAddr::from((ip, 3000 + target));
    let cookie = at as u64 + 1;
    let listener =
        Listener { addr, inode: cookie, cookie, v6only: None, mptcp, device: 0, uid: 0, is_full: false };
    HeldListener { listener, owner: Some(format!("service (pid {at})")) }
}

fn empty(listeners: &[(u16, bool, bool)]) -> Snapshot {
    Snapshot {
        dir: "/bpf/7".into(),
        features: Some(FEATURES),
        listeners: listeners.iter().copied().enumerate().map(held).collect(),
        ..Snapshot::default()
    }
}

/// The wanted state in which `asked` is added to what is there.
fn adding(there: &Snapshot, asked: &[Attachment]) -> Wanted {
    let kept = there.attachments().filter(|present| !asked.iter().any(|new| new.is_same(present)));
    let steered = Steered { asked: asked.to_vec(), kept: kept.cloned().collect() };
    Wanted { steered: Some(steered), probed: true, ..Wanted::default() }
}

/// The wanted state in which only `kept` stays.
fn keeping(kept: Vec<Attachment>) -> Wanted {
    Wanted { steered: Some(Steered { asked: Vec::new(), kept }), ..Wanted::default() }
}

/// What a change does to the model; panics where the kernel would refuse.
fn apply(there: &mut Snapshot, change: &Change) {
    let listeners = there.listeners.clone();
    match change {
        Change::MountBpffs { .. } => there.to_mount = None,
        Change::CreateInstance { event_level, .. } => {
            assert!(there.instance.is_none(), "there is an instance");
            let meta = InstanceMeta { event_level: *event_level, ..InstanceMeta::default() };
            there.instance = Some(Pinned { meta, ..Pinned::default() });
        }
        Change::RemoveInstance { .. } => there.instance = None,
        Change::Publish { .. } | Change::Withdraw { .. } => {}
        change => in_instance(there.instance.as_mut().expect("there is no instance"), &listeners, change),
    }
}

fn in_instance(pinned: &mut Pinned, listeners: &[HeldListener], change: &Change) {
    match change {
        Change::AttachProgram(program) if programs::IDENTITY.contains(&program.program) => {
            assert!(pinned.identity.insert(program.program), "{} is attached", program.program);
        }
        Change::AttachProgram(_) | Change::DetachProgram(_) => {}
        Change::ReplacePrograms { event_level, .. } => {
            pinned.meta.event_level = *event_level;
            pinned.is_other_build = false;
        }
        Change::WriteMeta { new, .. } => pinned.meta = *new,
        Change::RemoveLeftovers { .. } => {
            let all = listeners.iter().map(|held| (held.listener.key(), held.listener.cookie));
            let registered: Vec<_> = all.filter(|(_, cookie)| pinned.registered.contains(cookie)).collect();
            *pinned = Pinned { has_leftovers: false, ..pinned.clone().without_leftovers(&registered) };
        }
        Change::ReleaseListeners { .. } => pinned.prepared.clear(),
        Change::AttachTc { tc: TcPin { interface, hook, .. }, .. } => {
            let state = TcState { interface: interface.clone(), hook: *hook, is_attached: true };
            assert!(pinned.tc.insert(interface.index, state).is_none(), "{interface} has the program");
        }
        Change::DetachTc { tc } => {
            assert!(pinned.tc.remove(&tc.interface.index).is_some(), "{} has no program", tc.interface);
        }
        Change::TrackTarget { target, is_new, forgotten, .. } => {
            track_in(pinned, listeners, *target, *is_new, forgotten);
        }
        Change::UntrackTarget { target } => untrack_in(pinned, listeners, *target),
        Change::PutAttachment { id, new, old, .. } => {
            let keys =
                steer::candidates(new.target.tcp().unwrap().ip().into(), new.target.tcp().unwrap().port());
            assert!(keys.iter().all(|key| pinned.targets.contains(key)), "listeners would be missed");
            let before = pinned.attachments.iter().position(|(present, _)| present == id);
            assert_eq!(before.map(|at| pinned.attachments.remove(at).1), old.as_deref().cloned());
            pinned.next_id = pinned.next_id.max(id + 1);
            pinned.attachments.push((*id, (**new).clone()));
            pinned.attachments.sort_by_key(|(id, _)| *id);
        }
        Change::RemoveAttachment { id, .. } => pinned.attachments.retain(|(present, _)| present != id),
        other => panic!("{other} is no change of an instance"),
    }
}

fn keys_of(target: SocketAddr) -> [TargetKey; 3] {
    steer::candidates(target.ip().into(), target.port())
}

fn track_in(
    pinned: &mut Pinned,
    listeners: &[HeldListener],
    target: SocketAddr,
    is_new: bool,
    forgotten: &[SocketAddr],
) {
    let keys = keys_of(target);
    if is_new {
        pinned.targets.extend(keys);
    }
    for key in forgotten.iter().map(|addr| TargetKey::new(addr.ip().into(), addr.port())) {
        pinned.mptcp_targets.remove(&key);
        pinned.prepared.remove(&key);
    }
    for HeldListener { listener, .. } in listeners {
        match (keys.contains(&listener.key()), listener.mptcp) {
            (true, true) => {
                pinned.mptcp_targets.insert(listener.key());
                pinned.prepared.insert(listener.key());
            }
            (true, false) => drop(pinned.registered.insert(listener.cookie)),
            (false, _) => {}
        }
    }
}

fn untrack_in(pinned: &mut Pinned, listeners: &[HeldListener], target: SocketAddr) {
    let live: HashSet<TargetKey> =
        pinned.attachments.iter().flat_map(|(_, state)| keys_of(state.target.tcp().unwrap())).collect();
    let gone = keys_of(target).into_iter().filter(|key| !live.contains(key)).collect::<HashSet<_>>();
    pinned.targets.retain(|key| !gone.contains(key));
    pinned.mptcp_targets.retain(|key| !gone.contains(key));
    pinned.prepared.retain(|key| !gone.contains(key));
    for HeldListener { listener, .. } in listeners.iter().filter(|held| gone.contains(&held.listener.key())) {
        pinned.registered.remove(&listener.cookie);
    }
}

fn applied(there: &Snapshot, changes: &[Change]) -> Snapshot {
    let mut after = there.clone();
    changes.iter().for_each(|change| apply(&mut after, change));
    after
}

/// What the next change finds when one was killed after it had carried out `changes`.
fn seen_after_a_kill(there: &Snapshot, changes: &[Change]) -> Snapshot {
    let mut left = applied(there, changes);
    let is_published = match changes.iter().rev().find(|change| {
        matches!(change, Change::CreateInstance { .. } | Change::Publish { .. } | Change::Withdraw { .. })
    }) {
        Some(Change::Publish { .. }) => true,
        Some(_) => false,
        None => there.instance.is_some(),
    };
    // Taking the lock removes what was not published.
    left.instance = left.instance.filter(|_| is_published).map(|pinned| {
        let all: Vec<_> =
            left.listeners.iter().map(|held| (held.listener.key(), held.listener.cookie)).collect();
        let registered: Vec<_> =
            all.into_iter().filter(|(_, cookie)| pinned.registered.contains(cookie)).collect();
        let seen = pinned.clone().without_leftovers(&registered);
        Pinned { has_leftovers: seen != pinned, ..seen }
    });
    left
}

/// A namespace in which `present` was attached.
fn world(listeners: &[(u16, bool, bool)], present: &[Attachment]) -> Snapshot {
    let there = empty(listeners);
    if present.is_empty() { there } else { applied(&there, &diff(&there, &adding(&there, present))) }
}

fn attachments_of(numbers: &[Numbers]) -> Vec<Attachment> {
    let mut all: Vec<Attachment> = Vec::new();
    for state in numbers.iter().copied().map(attachment) {
        if !all.iter().any(|other| other.is_same(&state)) {
            all.push(state);
        }
    }
    all
}

fn some() -> impl Strategy<Value = Vec<Attachment>> {
    let one = (1u32..3, 0u16..4, 0u16..3, 1u8..3, any::<bool>());
    prop::collection::vec(one, 0..5).prop_map(|numbers| attachments_of(&numbers))
}

fn listening() -> impl Strategy<Value = Vec<(u16, bool, bool)>> {
    prop::collection::vec((0u16..3, any::<bool>(), any::<bool>()), 0..4)
}

/// Where the first change of this kind is.
fn first(changes: &[Change], is_it: impl Fn(&Change) -> bool) -> usize {
    changes.iter().position(is_it).expect("there is such a change")
}

proptest! {
    #[test]
    fn what_was_attached_needs_no_change(present in some(), asked in some(), listeners in listening()) {
        let there = world(&listeners, &present);
        let after = applied(&there, &diff(&there, &adding(&there, &asked)));
        prop_assert_eq!(diff(&after, &adding(&after, &asked)), []);
    }

    #[test]
    fn what_was_detached_leaves_what_stays(present in some(), kept in prop::collection::vec(any::<bool>(), 5)) {
        let there = Snapshot { features: None, ..world(&[(0, false, false), (1, true, true)], &present) };
        let kept: Vec<_> = present.iter().zip(kept).filter(|(_, keep)| *keep).map(|(one, _)| one.clone()).collect();
        let after = applied(&there, &diff(&there, &keeping(kept.clone())));
        prop_assert_eq!(after.attachments().count(), kept.len());
        prop_assert_eq!(after.instance.is_some(), !kept.is_empty());
        let only = Snapshot { features: None, ..world(&[(0, false, false), (1, true, true)], &kept) };
        for (left, alone) in after.instance.iter().zip(&only.instance) {
            prop_assert_eq!(&left.targets, &alone.targets);
            prop_assert_eq!(&left.registered, &alone.registered);
            prop_assert_eq!(&left.mptcp_targets, &alone.mptcp_targets);
            prop_assert_eq!(&left.tc, &alone.tc);
        }
        prop_assert_eq!(diff(&after, &keeping(kept)), []);
    }

    #[test]
    fn the_inverses_in_reverse_order_lead_back(present in some(), asked in some(), listeners in listening()) {
        let there = world(&listeners, &present);
        let changes = diff(&there, &adding(&there, &asked));
        for stopped_after in 0..=changes.len() {
            let done = &changes[..stopped_after];
            let undo: Vec<_> = done.iter().rev().filter_map(Change::inverse).collect();
            let mut after = applied(&applied(&there, done), &undo);
            // These stay, so that no connection's identity ever changes.
            if let (Some(left), Some(before)) = (&mut after.instance, &there.instance) {
                left.identity.clone_from(&before.identity);
                // A number that was given out is not given out again.
                prop_assert!(left.next_id >= before.next_id);
                left.next_id = before.next_id;
            }
            prop_assert_eq!(&after, &there);
        }
    }

    #[test]
    fn no_number_is_given_out_twice(present in some(), asked in some(), listeners in listening()) {
        let there = world(&listeners, &present);
        let ids = |there: &Snapshot| -> HashSet<u32> {
            there.instance.iter().flat_map(|pinned| &pinned.attachments).map(|(id, _)| *id).collect()
        };
        let highest = ids(&there).into_iter().max().unwrap_or_default();
        // The newest goes, and its number is not given to the next.
        let kept: Vec<_> = there.attachments().take(1).cloned().collect();
        let fewer = applied(&there, &diff(&Snapshot { features: None, ..there.clone() }, &keeping(kept)));
        let old = ids(&fewer);
        let after = applied(&fewer, &diff(&fewer, &adding(&fewer, &asked)));
        prop_assert!(fewer.instance.is_none() || ids(&after).difference(&old).all(|id| *id > highest));
    }

    #[test]
    fn after_a_kill_at_any_point_the_next_attach_is_whole(
        present in some(), asked in some(), kept in prop::collection::vec(any::<bool>(), 5), listeners in listening()
    ) {
        let there = world(&listeners, &present);
        let kept = present.iter().zip(kept).filter(|(_, keep)| *keep).map(|(one, _)| one.clone()).collect();
        let detach = diff(&Snapshot { features: None, ..there.clone() }, &keeping(kept));
        for changes in [diff(&there, &adding(&there, &asked)), detach] {
            for killed_after in 0..=changes.len() {
                let left = seen_after_a_kill(&there, &changes[..killed_after]);
                let after = applied(&left, &diff(&left, &adding(&left, &asked)));
                prop_assert_eq!(diff(&after, &adding(&after, &asked)), []);
                prop_assert!(asked.iter().all(|state| after.attachments().any(|there| there == state)));
            }
        }
    }

    #[test]
    fn a_new_instance_is_published_last_and_an_old_one_withdrawn_first(asked in some(), listeners in listening()) {
        prop_assume!(!asked.is_empty());
        let there = empty(&listeners);
        let changes = diff(&there, &adding(&there, &asked));
        let is_it = matches!(changes[0], Change::CreateInstance { .. });
        prop_assert!(is_it, "{:?}", changes);
        let is_it = matches!(changes[changes.len() - 1], Change::Publish { .. });
        prop_assert!(is_it, "{:?}", changes);
        let there = Snapshot { features: None, ..applied(&there, &changes) };
        let changes = diff(&there, &keeping(Vec::new()));
        let is_it = matches!(changes[0], Change::Withdraw { .. });
        prop_assert!(is_it, "{:?}", changes);
        let is_it = matches!(changes[changes.len() - 1], Change::RemoveInstance { .. });
        prop_assert!(is_it, "{:?}", changes);
    }
}

#[test]
fn what_an_attachment_refers_to_comes_before_it_and_goes_after_it() {
    let old = attachment((1, 1, 0, 1, false));
    let there = world(&[(0, false, false)], std::slice::from_ref(&old));
    let new = Attachment { target: Target::Tcp("127.0.0.1:3002".parse().unwrap()), ..old.clone() };
    let changes = diff(&there, &adding(&there, &[new]));
    let track = first(&changes, |change| matches!(change, Change::TrackTarget { .. }));
    let put = first(&changes, |change| matches!(change, Change::PutAttachment { .. }));
    let untrack = first(&changes, |change| matches!(change, Change::UntrackTarget { .. }));
    assert!(track < put && put < untrack, "{changes:?}");
}

#[test]
fn only_a_present_mptcp_listener_makes_its_program_necessary() {
    let is_optional = |mptcp| {
        let there = empty(&[(0, false, mptcp)]);
        let changes = diff(&there, &adding(&there, &[attachment((1, 1, 0, 1, false))]));
        let is_tc = |change: &Change| matches!(change, Change::AttachTc { .. });
        changes[first(&changes, is_tc)].is_optional()
    };
    assert!(is_optional(false));
    assert!(!is_optional(true));
}

#[test]
fn an_mptcp_listener_that_came_later_is_made_transparent() {
    let one = attachment((1, 1, 0, 1, false));
    let mut there = world(&[(0, false, true)], std::slice::from_ref(&one));
    assert_eq!(diff(&there, &adding(&there, std::slice::from_ref(&one))), []);
    there.instance.as_mut().unwrap().prepared.clear();
    let changes = diff(&there, &adding(&there, &[one]));
    let [Change::TrackTarget { is_new: false, listeners, .. }] = &changes[..] else { panic!("{changes:?}") };
    assert!(listeners[0].mptcp && listeners[0].is_noted, "{listeners:?}");
}

#[test]
fn another_level_of_events_replaces_every_attached_program_and_can_be_undone() {
    let there = world(&[], &[attachment((1, 1, 0, 1, true))]);
    let wanted =
        Wanted { event_level: Some(EventLevel::Debug), ..adding(&there, &[attachment((1, 1, 0, 1, true))]) };
    let changes = diff(&there, &wanted);
    let [Change::ReplacePrograms { programs, interfaces, event_level, .. }] = &changes[..] else {
        panic!("{changes:?}");
    };
    assert_eq!(*event_level, EventLevel::Debug);
    assert_eq!(programs.len(), 2 + programs::IDENTITY.len());
    assert_eq!(interfaces.len(), 1);
    let undone = applied(&applied(&there, &changes), &[changes[0].inverse().unwrap()]);
    assert_eq!(undone, there);
}

#[test]
fn another_build_is_replaced_for_good() {
    let mut there = world(&[], &[attachment((1, 1, 0, 1, false))]);
    there.instance.as_mut().unwrap().is_other_build = true;
    let changes = diff(&there, &adding(&there, &[attachment((1, 1, 0, 1, false))]));
    assert!(matches!(changes[..], [Change::ReplacePrograms { is_other_build: true, .. }]), "{changes:?}");
    assert_eq!(changes[0].inverse(), None);
}

#[test]
fn nothing_is_attached_where_a_namespace_is_gone() {
    let mut there = Snapshot { features: None, ..world(&[], &[attachment((1, 1, 0, 1, false))]) };
    there.instance.as_mut().unwrap().is_gone = true;
    let changes = diff(&there, &keeping(Vec::new()));
    assert!(matches!(changes[..], [Change::RemoveInstance { .. }]), "{changes:?}");
}

#[test]
fn a_relay_touches_nothing_that_is_pinned() {
    let there = world(&[], &[attachment((1, 1, 0, 1, false))]);
    let relayed = Attachment { datapath: Datapath::Splice, ..attachment((1, 2, 0, 1, false)) };
    let changes = diff(&there, &Wanted { relayed: vec![relayed.clone()], ..Wanted::default() });
    assert_eq!(changes, [Change::StartRelay { attachment: Box::new(relayed) }]);
    assert!(!changes[0].needs_lock());
}
