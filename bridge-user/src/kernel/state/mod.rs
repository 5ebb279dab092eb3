//! One namespace's attachments as the maps hold them: reading, and changing with a single commit point.

mod codec;
mod leftovers;
pub mod maps;
mod named;
mod register;
mod track;
mod transparent;
mod write;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    path::Path,
};

use anyhow::Context as _;
use aya::maps::MapError;
use bridge_common::{
    maps::{self as abi, ListenerKey, Meta, Stats, TargetKey, TrackStats},
    steer::SourceClass,
};

use self::{
    codec::{decode, decode_allow, decode_named},
    maps::Maps,
};
use super::programs::object::BUILD_ID;
use crate::model::{attachment::Attachment, source::Source};

/// The name of an attachment as a map holds it.
pub(super) fn name_of(value: &abi::Attachment) -> Option<String> {
    decode(value, BTreeSet::new(), BTreeSet::new()).map(|state| state.name())
}

/// The maps of one instance plus what is needed to interpret them.
pub struct State {
    /// The maps.
    pub maps: Maps,
    /// Whether rules carry an interface index (`false`: 0, see [`bridge_common::maps::RuleKey::ifindex`]).
    pub match_ifindex: bool,
    /// The addresses that attachments want, once they were asked for and until an attachment changes.
    wanted: Option<HashSet<TargetKey>>,
}

impl State {
    /// Of these maps.
    pub fn new(maps: Maps, match_ifindex: bool) -> Self {
        Self { maps, match_ifindex, wanted: None }
    }

    /// Opens what is pinned in `dir`.
    ///
    /// # Errors
    /// When the pins cannot be read, or were written by a version with another map layout.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        maps::require_same_version(dir)?;
        let maps = Maps::open(dir)?;
        // Whoever wrote the rules knew whether the kernel tells the interface.
        let match_ifindex = !maps.rules.keys().filter_map(Result::ok).any(|key| key.ifindex == 0);
        Ok(Self::new(maps, match_ifindex))
    }

    /// What this instance is.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn meta(&self) -> anyhow::Result<Meta> {
        self.maps.meta.get(&0, 0).context("failed to read map META")
    }

    /// Whether the attached programs are another build's.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn is_other_build(&self) -> anyhow::Result<bool> {
        Ok(self.meta()?.build != BUILD_ID)
    }

    /// All attachments by id.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn list(&self) -> anyhow::Result<Vec<(u32, Attachment)>> {
        let mut gateways: HashMap<u32, BTreeSet<IpAddr>> = HashMap::new();
        for entry in self.maps.rules.iter() {
            let (key, id) = entry.context("failed to read map RULES")?;
            if key != key.of_others() {
                gateways.entry(id).or_default().insert(key.gateway.into());
            }
        }
        let mut allow: HashMap<u32, BTreeSet<Source>> = HashMap::new();
        for entry in self.maps.allow.iter() {
            let (key, source) = entry.context("failed to read map ALLOW")?;
            if source == SourceClass::ALLOWED {
                let (set, net) = decode_allow(&key);
                allow.entry(set).or_default().insert(Source::Net(net));
            }
        }
        for entry in self.maps.named.iter() {
            let (key, value) = entry.context("failed to read map NAMED")?;
            let container = decode_named(&key, &value);
            allow.entry(key.set).or_default().insert(Source::Container(container));
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

    /// Counters of one attachment, summed over CPUs, and the latest times.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn stats(&self, id: u32) -> anyhow::Result<Stats> {
        match self.maps.stats.get(&id, 0) {
            Ok(values) => Ok(values.iter().copied().sum()),
            // Detached since it was listed.
            Err(MapError::KeyNotFound) => Ok(Stats::default()),
            Err(error) => Err(error).context("failed to read map STATS"),
        }
    }

    /// Listener-tracking counters, summed over CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn track_stats(&self) -> anyhow::Result<TrackStats> {
        let values = self.maps.track_stats.get(&0, 0).context("failed to read map TRACK_STATS")?;
        Ok(values.iter().copied().sum())
    }

    /// The addresses whose listeners are tracked.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn targets(&self) -> anyhow::Result<HashSet<TargetKey>> {
        self.maps.targets.keys().collect::<Result<_, _>>().context("failed to read map TARGETS")
    }

    /// Those that are known to have an MPTCP listener, with the cookie of the newest one.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn mptcp_targets(&self) -> anyhow::Result<HashMap<TargetKey, u64>> {
        self.maps.mptcp_targets.iter().collect::<Result<_, _>>().context("failed to read map MPTCP_TARGETS")
    }

    /// Those whose MPTCP listener is transparent: the `newest` one, by [`Self::mptcp_targets`], is the one that was
    /// made so last.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn prepared(&self, newest: &HashMap<TargetKey, u64>) -> anyhow::Result<HashSet<TargetKey>> {
        let mut found = HashSet::new();
        for entry in self.maps.mptcp_prepared.iter() {
            let (key, prepared) = entry.context("failed to read map MPTCP_PREPARED")?;
            let is_newest = newest.get(&key) == Some(&prepared.listener);
            found.extend((is_newest && prepared.ready != 0).then_some(key));
        }
        Ok(found)
    }

    /// The registered listeners: key and socket cookie. A listener that closes meanwhile is left out.
    ///
    /// # Errors
    /// When the map cannot be walked.
    pub fn listeners(&self) -> anyhow::Result<Vec<(ListenerKey, u64)>> {
        self.maps.registered()
    }
}
