//! Changing one namespace's attachments, with a single commit point.
//!
//! Order of a change: what refers to the attachment first (target, listeners, allow-list set, counters, rules), then
//! the attachment itself, in one atomic map update, then removal of what is no longer referred to. A process killed in
//! between leaves only entries without effect, which [`State::remove_leftovers`] removes. Each function leaves nothing
//! of itself when it fails.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
};

use anyhow::{Context as _, ensure};
use aya::maps::{PerCpuValues, lpm_trie};
use bridge_common::{
    maps::{self as abi, AllowKey, ListenerKey, RuleKey, Stats, TargetKey},
    steer::{self, SourceClass},
};
use ipnet::IpNet;

use super::{
    State,
    codec::{decode_allow, encode, encode_allow, rule_keys},
    register::{forget_mptcp, register},
};
use crate::{kernel::sys, model::attachment::Attachment, net::namespace::Namespace};

/// Entries that no attachment refers to.
#[derive(Default)]
struct Unreferenced {
    rules: Vec<RuleKey>,
    allow: Vec<lpm_trie::Key<AllowKey>>,
    stats: Vec<u32>,
    targets: Vec<TargetKey>,
    mptcp_targets: Vec<TargetKey>,
    listeners: Vec<ListenerKey>,
}

impl State {
    /// Lets the tracking program note who listens on a target from now on, if it does not yet, and registers who does
    /// already in the namespace.
    ///
    /// # Errors
    /// When a map cannot be written, or a listener not be registered.
    pub fn track(&mut self, target: SocketAddr, is_new: bool, namespace: &Namespace) -> anyhow::Result<()> {
        let keys = steer::candidates(target.ip().into(), target.port());
        let result =
            self.write_targets(&keys, is_new).and_then(|()| register(&mut self.maps, &keys, namespace));
        if result.is_err() && is_new {
            self.untrack(target)?;
        }
        result
    }

    fn write_targets(&mut self, keys: &[TargetKey], is_new: bool) -> anyhow::Result<()> {
        for key in keys.iter().filter(|_| is_new) {
            self.maps.targets.insert(key, 1, 0).context("failed to write map TARGETS")?;
        }
        Ok(())
    }

    /// Forgets a target and its listeners, as far as no attachment wants them.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub fn untrack(&mut self, target: SocketAddr) -> anyhow::Result<()> {
        let keys = steer::candidates(target.ip().into(), target.port());
        self.forget_targets(|key| keys.contains(key))
    }

    /// Forgets those of the chosen addresses that no attachment wants: first that they are tracked, then the listeners
    /// that were registered until then.
    fn forget_targets(&mut self, is_chosen: impl Fn(&TargetKey) -> bool) -> anyhow::Result<()> {
        let live = self.live()?;
        let mut targets = self.unreferenced_targets(&live)?.targets;
        targets.retain(&is_chosen);
        self.remove_entries(&Unreferenced { targets, ..Unreferenced::default() })?;
        let mut rest = self.unreferenced_targets(&live)?;
        rest.targets.clear();
        rest.mptcp_targets.retain(&is_chosen);
        rest.listeners.retain(|key| is_chosen(&TargetKey::new(key.addr, key.port)));
        self.remove_entries(&rest)
    }

    /// Adds or updates one attachment, whose target is tracked.
    ///
    /// # Errors
    /// When a map is full or cannot be written; nothing of the change then has effect.
    pub fn put(&mut self, id: u32, new: &Attachment, old: Option<&Attachment>) -> anyhow::Result<()> {
        let result = self.write(id, new, old.is_none());
        let kept = if result.is_ok() { Some(new) } else { old };
        let rules = kept.map(|state| rule_keys(state, self.match_ifindex)).unwrap_or_default();
        self.drop_rules_except(id, &rules)?;
        self.remove_entries(&self.unreferenced_settings(&self.live()?)?)?;
        result.with_context(|| format!("failed to write attachment {}", new.name()))
    }

    fn write(&mut self, id: u32, wanted: &Attachment, is_new: bool) -> anyhow::Result<()> {
        let allow_set = self.next_allow_set()?;
        let allowed = wanted.allow.iter().map(|net| (*net, SourceClass::ALLOWED));
        let host = wanted.gateways.iter().map(|&gateway| (IpNet::from(gateway), SourceClass::HOST));
        for (net, source) in allowed.chain(host) {
            let key = encode_allow(allow_set, &net);
            self.maps.allow.insert(&key, source, 0).context("failed to write map ALLOW")?;
        }
        let target = steered_target(wanted)?;
        if is_new {
            let zeroes = vec![Stats::default(); aya::util::nr_cpus().map_err(|(_, error)| error)?];
            self.maps
                .stats
                .insert(id, PerCpuValues::try_from(zeroes)?, 0)
                .context("failed to write map STATS")?;
        }
        for key in rule_keys(wanted, self.match_ifindex) {
            // Without interface indices, two bridges with the same gateway address would share a rule.
            ensure!(
                self.maps.rules.get(&key, 0).map_or(true, |owner| owner == id),
                "gateway {} port {} already belongs to another attachment, and this kernel (below 5.17) cannot tell \
                 their bridges apart: choose another port",
                IpAddr::from(key.gateway),
                key.port
            );
            self.maps.rules.insert(key, id, 0).context("failed to write map RULES")?;
        }
        let value = encode(wanted, target, allow_set)?;
        self.maps.attachments.insert(id, value, 0).context("failed to write map ATTACHMENTS")
    }

    fn next_allow_set(&self) -> anyhow::Result<u32> {
        let mut highest = 0;
        for key in self.maps.allow.keys() {
            highest = highest.max(decode_allow(&key.context("failed to read map ALLOW")?).0);
        }
        Ok(highest + 1)
    }

    fn drop_rules_except(&mut self, id: u32, keep: &[RuleKey]) -> anyhow::Result<()> {
        let stale: Vec<_> = self
            .maps
            .rules
            .iter()
            .filter_map(Result::ok)
            .filter(|(key, owner)| *owner == id && !keep.contains(key))
            .map(|(key, _)| key)
            .collect();
        self.remove_entries(&Unreferenced { rules: stale, ..Unreferenced::default() })
    }

    /// Removes one attachment and the settings only it had.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub fn remove(&mut self, id: u32) -> anyhow::Result<()> {
        self.maps.attachments.remove(&id).context("failed to remove the attachment from map ATTACHMENTS")?;
        self.remove_entries(&self.unreferenced_settings(&self.live()?)?)
    }

    /// Whether there are entries that no attachment refers to.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn has_leftovers(&self) -> anyhow::Result<bool> {
        let live = self.live()?;
        Ok(!self.unreferenced_settings(&live)?.is_empty() || !self.unreferenced_targets(&live)?.is_empty())
    }

    /// Removes every entry that no attachment refers to.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub fn remove_leftovers(&mut self) -> anyhow::Result<()> {
        let live = self.live()?;
        self.remove_entries(&self.unreferenced_settings(&live)?)?;
        self.forget_targets(|_| true)
    }

    fn live(&self) -> anyhow::Result<HashMap<u32, abi::Attachment>> {
        self.maps.attachments.iter().collect::<Result<_, _>>().context("failed to read map ATTACHMENTS")
    }

    fn unreferenced_settings(&self, live: &HashMap<u32, abi::Attachment>) -> anyhow::Result<Unreferenced> {
        let sets: HashSet<u32> = live.values().map(|attachment| attachment.allow_set).collect();
        let mut found = Unreferenced::default();
        for entry in self.maps.rules.iter() {
            let (key, id) = entry.context("failed to read map RULES")?;
            let belongs =
                live.get(&id).is_some_and(|a| key.port == a.port && [0, a.ifindex].contains(&key.ifindex));
            found.rules.extend((!belongs).then_some(key));
        }
        for key in self.maps.allow.keys() {
            let key = key.context("failed to read map ALLOW")?;
            found.allow.extend((!sets.contains(&decode_allow(&key).0)).then_some(key));
        }
        for id in self.maps.stats.keys() {
            let id = id.context("failed to read map STATS")?;
            found.stats.extend((!live.contains_key(&id)).then_some(id));
        }
        Ok(found)
    }

    fn unreferenced_targets(&self, live: &HashMap<u32, abi::Attachment>) -> anyhow::Result<Unreferenced> {
        let wanted: HashSet<TargetKey> =
            live.values().flat_map(|a| steer::candidates(a.target, a.target_port)).collect();
        let is_unwanted = |key: &TargetKey| !wanted.contains(key);
        let mut listeners = self.maps.listener_keys()?;
        listeners.retain(|key| is_unwanted(&TargetKey::new(key.addr, key.port)));
        Ok(Unreferenced {
            targets: self.targets()?.into_iter().filter(is_unwanted).collect(),
            mptcp_targets: self.mptcp_targets()?.into_iter().filter(is_unwanted).collect(),
            listeners,
            ..Unreferenced::default()
        })
    }

    fn remove_entries(&mut self, all: &Unreferenced) -> anyhow::Result<()> {
        for key in &all.rules {
            self.maps.rules.remove(key).context("failed to clean map RULES")?;
        }
        for key in &all.allow {
            self.maps.allow.remove(key).context("failed to clean map ALLOW")?;
        }
        for id in &all.stats {
            self.maps.stats.remove(id).context("failed to clean map STATS")?;
        }
        for key in &all.targets {
            self.maps.targets.remove(key).context("failed to clean map TARGETS")?;
        }
        forget_mptcp(&mut self.maps, &all.mptcp_targets)?;
        for key in &all.listeners {
            match sys::map_delete(self.maps.listeners.fd().as_fd(), key) {
                // The listener closed meanwhile; the kernel removed it.
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
                    return Err(error).context("failed to clean map LISTENERS");
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Unreferenced {
    fn is_empty(&self) -> bool {
        self.rules.is_empty()
            && self.allow.is_empty()
            && self.stats.is_empty()
            && self.targets.is_empty()
            && self.mptcp_targets.is_empty()
            && self.listeners.is_empty()
    }
}

/// The listener's address; the choice of the datapath leaves no other target to steering.
fn steered_target(state: &Attachment) -> anyhow::Result<SocketAddr> {
    state.target.tcp().with_context(|| format!("{} cannot be steered to: use a relay", state.target))
}
