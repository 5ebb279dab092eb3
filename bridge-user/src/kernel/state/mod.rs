//! One namespace's attachments as the maps hold them: reading, and changing with a single commit point.
//!
//! Order of a change: everything that refers to the attachment first (allow-list set, targets, listeners, counters,
//! rules), then the attachment itself, in one atomic map update, then removal of what is no longer referred to. A
//! process killed in between leaves only entries without effect, which the next [`State::sweep`] removes.

mod codec;
pub mod maps;
mod register;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    path::Path,
};

use anyhow::{Context as _, ensure};
use aya::maps::PerCpuValues;
use bridge_common::{
    maps::{self as abi, ListenerKey, Meta, RuleKey, Stats, TargetKey, TrackStats},
    steer::{self, SourceClass},
};
use ipnet::IpNet;

use self::{
    codec::{decode, decode_allow, encode, encode_allow, rule_keys},
    maps::Maps,
    register::{register_existing, remove_mptcp_except},
};
use super::{programs::object::BUILD_ID, sys};
use crate::{
    model::{attachment::Attachment, event_level::EventLevel},
    net::namespace::Namespace,
};

/// The maps of one instance plus what is needed to interpret them.
pub struct State {
    /// The maps.
    pub maps: Maps,
    /// Whether rules carry an interface index (`false`: 0, see [`RuleKey::ifindex`]).
    pub match_ifindex: bool,
}

impl State {
    /// Opens what is pinned in `dir`.
    ///
    /// # Errors
    /// When the pins cannot be read, or were written by a version with another map layout.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        maps::require_same_version(dir)?;
        let maps = Maps::open(dir)?;
        // Whoever wrote the rules knew whether the kernel tells the interface.
        let match_ifindex = !maps.rules.keys().filter_map(Result::ok).any(|key| key.ifindex == 0);
        Ok(Self { maps, match_ifindex })
    }

    /// What this instance is.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn meta(&self) -> anyhow::Result<Meta> {
        self.maps.meta.get(&0, 0).context("failed to read map META")
    }

    /// Whether the attached programs are another build's, or have another event level than the one asked for.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn is_outdated(&self, level: Option<EventLevel>) -> anyhow::Result<bool> {
        let meta = self.meta()?;
        let other_level = level.is_some_and(|level| u16::from(level.as_u8()) != meta.event_level);
        Ok(meta.build != BUILD_ID || other_level)
    }

    /// All attachments by id.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn list(&self) -> anyhow::Result<Vec<(u32, Attachment)>> {
        let mut gateways: HashMap<u32, BTreeSet<IpAddr>> = HashMap::new();
        for entry in self.maps.rules.iter() {
            let (key, id) = entry.context("failed to read map RULES")?;
            gateways.entry(id).or_default().insert(key.gateway.into());
        }
        let mut allow: HashMap<u32, BTreeSet<IpNet>> = HashMap::new();
        for entry in self.maps.allow.iter() {
            let (key, source) = entry.context("failed to read map ALLOW")?;
            if source == SourceClass::ALLOWED {
                let (set, net) = decode_allow(&key);
                allow.entry(set).or_default().insert(net);
            }
        }
        let mut all = Vec::new();
        for entry in self.maps.attachments.iter() {
            let (id, value) = entry.context("failed to read map ATTACHMENTS")?;
            let gateways = gateways.remove(&id).unwrap_or_default();
            let allow = allow.get(&value.allow_set).cloned().unwrap_or_default();
            // Port 0 is never written; an entry with it is not an attachment.
            all.extend(decode(&value, gateways, allow).map(|state| (id, state)));
        }
        all.sort_by_key(|(_, state)| state.name());
        Ok(all)
    }

    /// Counters of one attachment, summed over CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn stats(&self, id: u32) -> anyhow::Result<Stats> {
        let values = self.maps.stats.get(&id, 0).context("failed to read map STATS")?;
        Ok(values.iter().copied().sum())
    }

    /// Listener-tracking counters, summed over CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn track_stats(&self) -> anyhow::Result<TrackStats> {
        let values = self.maps.track_stats.get(&0, 0).context("failed to read map TRACK_STATS")?;
        Ok(values.iter().copied().sum())
    }

    /// The registered listeners: key and socket cookie. A listener that closes meanwhile is left out.
    ///
    /// # Errors
    /// When the map cannot be walked.
    pub fn listeners(&self) -> anyhow::Result<Vec<(ListenerKey, u64)>> {
        self.maps.registered()
    }

    /// Adds or updates one attachment, and registers the listeners of its namespace that are there for it.
    ///
    /// # Errors
    /// When a map is full or cannot be written; nothing of the change then has effect.
    pub fn put(&mut self, wanted: &Attachment, namespace: &Namespace) -> anyhow::Result<()> {
        let all = self.list()?;
        let present = all.iter().find(|(_, state)| state.is_same(wanted));
        if present.is_some_and(|(_, state)| state == wanted) {
            return register_existing(&mut self.maps, namespace);
        }
        let id = present.map_or_else(|| all.iter().map(|(id, _)| id + 1).max().unwrap_or(1), |(id, _)| *id);
        let old_gateways = present.map(|(_, state)| rule_keys(state, self.match_ifindex)).unwrap_or_default();
        let result = self.write(id, wanted, present.is_none(), namespace);
        let keep = if result.is_ok() { rule_keys(wanted, self.match_ifindex) } else { old_gateways };
        self.drop_rules_except(id, &keep)?;
        self.sweep()?;
        result.with_context(|| format!("failed to write attachment {}", wanted.name()))
    }

    fn write(
        &mut self,
        id: u32,
        wanted: &Attachment,
        is_new: bool,
        namespace: &Namespace,
    ) -> anyhow::Result<()> {
        let allow_set = self.next_allow_set()?;
        let allowed = wanted.allow.iter().map(|net| (*net, SourceClass::ALLOWED));
        let host = wanted.gateways.iter().map(|&gateway| (IpNet::from(gateway), SourceClass::HOST));
        for (net, source) in allowed.chain(host) {
            let key = encode_allow(allow_set, &net);
            self.maps.allow.insert(&key, source, 0).context("failed to write map ALLOW")?;
        }
        let target = steered_target(wanted)?;
        for key in steer::candidates(target.ip().into(), target.port()) {
            self.maps.targets.insert(key, 1, 0).context("failed to write map TARGETS")?;
        }
        register_existing(&mut self.maps, namespace)?;
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
                "gateway {} port {} already belongs to another attachment, and this kernel (below 5.17) cannot tell their \
                 bridges apart: choose another port",
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
        for key in stale {
            self.maps.rules.remove(&key).context("failed to clean map RULES")?;
        }
        Ok(())
    }

    /// Removes one attachment and everything only it needed.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub fn remove(&mut self, id: u32) -> anyhow::Result<()> {
        self.maps.attachments.remove(&id).context("failed to remove the attachment from map ATTACHMENTS")?;
        self.sweep()
    }

    /// Removes every entry that no attachment refers to.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub fn sweep(&mut self) -> anyhow::Result<()> {
        let live: HashMap<u32, abi::Attachment> = self
            .maps
            .attachments
            .iter()
            .collect::<Result<_, _>>()
            .context("failed to read map ATTACHMENTS")?;
        let sets: HashSet<u32> = live.values().map(|a| a.allow_set).collect();
        let wanted: HashSet<TargetKey> =
            live.values().flat_map(|a| steer::candidates(a.target, a.target_port)).collect();

        let rules: Vec<_> = self.maps.rules.iter().filter_map(Result::ok).collect();
        for (key, id) in rules {
            let belongs =
                live.get(&id).is_some_and(|a| key.port == a.port && [0, a.ifindex].contains(&key.ifindex));
            if !belongs {
                self.maps.rules.remove(&key).context("failed to clean map RULES")?;
            }
        }
        let allow: Vec<_> = self.maps.allow.keys().filter_map(Result::ok).collect();
        for key in allow.iter().filter(|key| !sets.contains(&decode_allow(key).0)) {
            self.maps.allow.remove(key).context("failed to clean map ALLOW")?;
        }
        let stats: Vec<_> = self.maps.stats.keys().filter_map(Result::ok).collect();
        for id in stats.iter().filter(|id| !live.contains_key(id)) {
            self.maps.stats.remove(id).context("failed to clean map STATS")?;
        }
        self.sweep_targets(&wanted)
    }

    fn sweep_targets(&mut self, wanted: &HashSet<TargetKey>) -> anyhow::Result<()> {
        let targets: Vec<_> = self.maps.targets.keys().filter_map(Result::ok).collect();
        for key in targets.iter().filter(|key| !wanted.contains(key)) {
            self.maps.targets.remove(key).context("failed to clean map TARGETS")?;
        }
        remove_mptcp_except(&mut self.maps, wanted)?;
        let fd = self.maps.listeners.fd().as_fd();
        for key in self.maps.listener_keys()? {
            if !wanted.contains(&TargetKey::new(key.addr, key.port)) {
                match sys::map_delete(fd, &key) {
                    // The listener closed meanwhile; the kernel removed it.
                    Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
                        return Err(error).context("failed to clean map LISTENERS");
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// The listener's address; the choice of the datapath leaves no other target to steering.
fn steered_target(state: &Attachment) -> anyhow::Result<SocketAddr> {
    state.target.tcp().with_context(|| format!("{} cannot be steered to: use a relay", state.target))
}
