//! How much one network namespace can hold, so that what is too much is refused before anything is changed.
//!
//! Invariant: what passes here fits into the maps at every point of the change: they have room for two versions of what
//! an attachment has, and what is not wanted any more is removed first, or counted here.

use std::collections::HashSet;

use bridge_common::{
    maps::{MAX_ALLOW, MAX_ATTACHMENTS, MAX_NAMED, MAX_RULES, MAX_TARGETS, TargetKey},
    steer,
};

use super::wanted::failed_to_attach;
use crate::model::attachment::{Attachment, AttachmentKey};

/// What attachments have together.
#[derive(Default)]
struct Totals {
    attachments: usize,
    rules: usize,
    allow: usize,
    named: usize,
    /// Also those of attachments as they were: they are tracked until the end of a change.
    targets: HashSet<TargetKey>,
}

/// Requires that the kernel has room for the wanted attachments beside those that are there and stay; `next_id`: the
/// number that the next new one gets.
///
/// # Errors
/// Names the first that is too much, the value and the limit.
pub fn require_room(wanted: &[Attachment], present: &[Attachment], next_id: u32) -> Result<(), String> {
    let changed: HashSet<_> = wanted.iter().map(Attachment::key).collect();
    let mut room = Room::beside(present, &changed, next_id);
    for state in wanted {
        let refused =
            |cause| format!("{}: {cause}", failed_to_attach(&state.service, state.port, &state.bridge));
        room.take(state).map_err(refused)?;
    }
    Ok(())
}

/// What is left for wanted attachments.
pub struct Room {
    totals: Totals,
    /// Numbers that were left, and how many are given to attachments since.
    numbers: u32,
    given: u32,
}

impl Room {
    /// Beside what is there, without what `changed` names; `next_id`: the number that the next new one gets.
    pub fn beside(present: &[Attachment], changed: &HashSet<AttachmentKey<'_>>, next_id: u32) -> Self {
        let mut totals = Totals::default();
        for state in present {
            totals.track(state);
            if !changed.contains(&state.key()) {
                totals.add(state);
            }
        }
        Self { totals, numbers: u32::MAX - next_id, given: 0 }
    }

    /// Takes what a wanted attachment needs.
    ///
    /// # Errors
    /// Names the value and the limit; nothing is taken then.
    pub fn take(&mut self, state: &Attachment) -> Result<(), String> {
        if self.given == self.numbers {
            return Err(format!(
                "{} numbers for attachments are left in this network namespace, and none is used twice: run \
                 `bridge-user detach --all`, then attach again",
                self.numbers
            ));
        }
        let tracked = self.totals.track(state);
        self.totals.add(state);
        if let Err(cause) = self.totals.require() {
            self.totals.remove(state);
            self.totals.targets.retain(|key| !tracked.contains(key));
            return Err(cause);
        }
        self.given += 1;
        Ok(())
    }

    /// Takes what one that is there needs, which is not changed after all.
    pub fn hold(&mut self, state: &Attachment) {
        self.totals.add(state);
    }
}

impl Totals {
    fn add(&mut self, state: &Attachment) {
        let named = named(state);
        self.attachments += 1;
        self.rules += state.gateways.len();
        self.named += named;
        self.allow += state.allow.len() - named;
    }

    /// The inverse of [`Totals::add`].
    fn remove(&mut self, state: &Attachment) {
        let named = named(state);
        self.attachments -= 1;
        self.rules -= state.gateways.len();
        self.named -= named;
        self.allow -= state.allow.len() - named;
    }

    /// Returns those that were not tracked yet.
    fn track(&mut self, state: &Attachment) -> Vec<TargetKey> {
        let target = state.target.tcp();
        let keys = target.into_iter().flat_map(|at| steer::candidates(at.ip().into(), at.port()));
        keys.filter(|key| self.targets.insert(*key)).collect()
    }

    fn require(&self) -> Result<(), String> {
        const DETACH: &str = "detach what is not needed (bridge-user detach NAME)";
        let too_many = |what: &str, found: usize, limit: u32, next: &str| {
            if found <= limit as usize {
                return Ok(());
            }
            Err(format!(
                "with it this network namespace would have {found} {what}, at most {limit} are possible: {next}"
            ))
        };
        too_many("attachments", self.attachments, MAX_ATTACHMENTS, DETACH)?;
        too_many("rules, one for each gateway address of an attachment", self.rules, MAX_RULES, DETACH)?;
        let narrower = format!("allow a subnet instead of single addresses, or {DETACH}");
        too_many("allow-list entries", self.allow, MAX_ALLOW, &narrower)?;
        too_many("containers in allow-lists", self.named, MAX_NAMED, &narrower)?;
        let fewer = format!("change fewer attachments at once, or {DETACH}");
        too_many(
            "addresses that services may listen on, old and new ones",
            self.targets.len(),
            MAX_TARGETS,
            &fewer,
        )
    }
}

/// The containers in an attachment's allow-list.
fn named(state: &Attachment) -> usize {
    state.allow.iter().filter(|source| source.container().is_some()).count()
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        net::{IpAddr, Ipv4Addr, SocketAddr},
    };

    use super::*;
    use crate::{
        model::{
            source::Source,
            target::{Port, Target},
        },
        observe::readiness::tests::state,
    };

    fn numbered(number: u16) -> Attachment {
        let port = Port::new(number).unwrap();
        let target = Target::Tcp(SocketAddr::from(([127, 0, 0, 1], number)));
        Attachment { port, target, ..state() }
    }

    fn several(count: u32) -> Vec<Attachment> {
        (1..=u16::try_from(count).unwrap()).map(numbered).collect()
    }

    fn addresses(count: u32) -> impl Iterator<Item = IpAddr> {
        (0..count).map(|at| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + at)))
    }

    #[test]
    fn as_many_as_fit_and_no_more() {
        let all = several(MAX_ATTACHMENTS + 1);
        let (last, full) = all.split_last().unwrap();
        assert_eq!(require_room(full, &[], 1), Ok(()));
        assert_eq!(require_room(full, full, 1), Ok(()), "the same again");
        let error = require_room(std::slice::from_ref(last), full, 1).unwrap_err();
        for said in ["(4097) on", "4097 attachments", "at most 4096", "detach"] {
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn an_allow_list_may_be_replaced_by_one_as_long() {
        let with = |count| {
            let allow: BTreeSet<Source> = addresses(count).map(|one| Source::Net(one.into())).collect();
            Attachment { allow, ..numbered(1) }
        };
        let full = with(MAX_ALLOW);
        assert_eq!(require_room(std::slice::from_ref(&full), std::slice::from_ref(&full), 1), Ok(()));
        for (wanted, present) in [(vec![with(MAX_ALLOW + 1)], vec![]), (vec![numbered(2)], vec![full])] {
            let error = require_room(&wanted, &present, 1).unwrap_err();
            assert!(error.contains("65537 allow-list entries, at most 65536"), "{error}");
        }
    }

    #[test]
    fn rules_and_targets_are_counted() {
        let gateways: BTreeSet<IpAddr> = addresses(MAX_RULES + 1).collect();
        let error = require_room(&[Attachment { gateways, ..numbered(1) }], &[], 1).unwrap_err();
        assert!(error.contains("16385 rules") && error.contains("at most 16384"), "{error}");
        let elsewhere = |mut state: Attachment| {
            let port = state.port.get() + 10_000;
            state.target = Target::Tcp(SocketAddr::from(([127, 0, 0, 1], port)));
            state
        };
        let all = several(MAX_ATTACHMENTS);
        let moved: Vec<_> = all.iter().cloned().map(elsewhere).collect();
        let error = require_room(&moved, &all, 1).unwrap_err();
        assert!(error.contains("at most 12288 are possible: change fewer"), "{error}");
    }

    #[test]
    fn a_number_is_not_used_twice() {
        assert_eq!(require_room(&several(2), &[], u32::MAX - 2), Ok(()));
        let error = require_room(&several(2), &[], u32::MAX - 1).unwrap_err();
        assert!(error.contains("1 numbers") && error.contains("detach --all"), "{error}");
    }
}
