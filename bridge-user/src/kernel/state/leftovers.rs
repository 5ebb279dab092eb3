//! Entries that no attachment refers to: what a killed process left. They have no effect, and take room.
//!
//! Invariant: everything is read here, so it happens once for each change of an instance, not for each attachment.

use std::collections::{HashMap, HashSet};

use anyhow::Context as _;
use aya::maps::lpm_trie;
use bridge_common::maps::{self as abi, AllowKey, NamedKey, RuleKey, TargetKey};

use super::{State, codec::decode_allow, track::keys_of_all};
use crate::net::namespace::Namespace;

/// What no attachment refers to.
#[derive(Default)]
struct Unreferenced {
    rules: Vec<RuleKey>,
    allow: Vec<lpm_trie::Key<AllowKey>>,
    named: Vec<NamedKey>,
    clients: Vec<u64>,
    stats: Vec<u32>,
    targets: HashSet<TargetKey>,
}

impl State {
    /// Whether there are entries that no attachment refers to.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn has_leftovers(&self) -> anyhow::Result<bool> {
        let Unreferenced { rules, allow, named, clients, stats, targets } = self.unreferenced()?;
        let has_settings = !(rules.is_empty() && allow.is_empty() && named.is_empty() && clients.is_empty());
        Ok(has_settings || !(stats.is_empty() && targets.is_empty()))
    }

    /// Removes every entry that no attachment refers to.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub fn remove_leftovers(&mut self, namespace: &Namespace) -> anyhow::Result<()> {
        let Unreferenced { rules, allow, named, clients: _, stats, targets } = self.unreferenced()?;
        self.remove_rules(&rules)?;
        self.remove_allow(&allow)?;
        self.remove_named(&named)?;
        for id in stats {
            self.maps.stats.remove(&id).context("failed to clean map STATS")?;
        }
        self.forget(&targets.into_iter().collect::<Vec<_>>(), namespace)
    }

    /// The entries of `ATTACHMENTS`.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub(super) fn live(&self) -> anyhow::Result<HashMap<u32, abi::Attachment>> {
        self.maps.attachments.iter().collect::<Result<_, _>>().context("failed to read map ATTACHMENTS")
    }

    fn unreferenced(&self) -> anyhow::Result<Unreferenced> {
        let live = self.live()?;
        let sets: HashSet<u32> = live.values().map(|attachment| attachment.allow_set).collect();
        let mut found = Unreferenced { targets: self.unwanted_targets(&live)?, ..Unreferenced::default() };
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
        found.named = self.named_keys()?.into_iter().filter(|key| !sets.contains(&key.set)).collect();
        found.clients = self.unnamed_clients()?;
        for id in self.maps.stats.keys() {
            let id = id.context("failed to read map STATS")?;
            found.stats.extend((!live.contains_key(&id)).then_some(id));
        }
        Ok(found)
    }

    /// The addresses that are tracked, noted as MPTCP, transparent, or have a listener, and that no attachment wants.
    fn unwanted_targets(&self, live: &HashMap<u32, abi::Attachment>) -> anyhow::Result<HashSet<TargetKey>> {
        let wanted = keys_of_all(live);
        let listeners = self.maps.listener_keys()?.into_iter().map(|key| TargetKey::new(key.addr, key.port));
        let mut found: HashSet<TargetKey> = listeners.collect();
        found.extend(self.targets()?);
        found.extend(self.mptcp_targets()?.into_keys());
        for key in self.maps.mptcp_prepared.keys() {
            found.insert(key.context("failed to read map MPTCP_PREPARED")?);
        }
        found.retain(|key| !wanted.contains(key));
        Ok(found)
    }
}
