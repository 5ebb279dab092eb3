//! Typed access to one instance's maps, whether pinned or only held by this process.

use std::path::Path;

use anyhow::Context as _;
use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuArray, PerCpuHashMap},
};
use bridge_common::{
    maps::{AllowKey, Attachment, Meta, RuleKey, Stats, TargetKey, TrackStats},
    names,
};

/// The maps userspace reads or writes. Their meaning is documented in `bridge-ebpf/src/maps.rs`.
pub struct Maps {
    /// See `META`.
    pub meta: Array<MapData, Meta>,
    /// See `RULES`.
    pub rules: HashMap<MapData, RuleKey, u32>,
    /// See `ATTACHMENTS`.
    pub attachments: HashMap<MapData, u32, Attachment>,
    /// See `ALLOW`.
    pub allow: LpmTrie<MapData, AllowKey, u32>,
    /// See `TARGETS`.
    pub targets: HashMap<MapData, TargetKey, u32>,
    /// See `LISTENERS`.
    pub listeners: MapData,
    /// See `STATS`.
    pub stats: PerCpuHashMap<MapData, u32, Stats>,
    /// See `TRACK_STATS`.
    pub track_stats: PerCpuArray<MapData, TrackStats>,
    /// See `BOUND`.
    pub bound: HashMap<MapData, u64, u64>,
}

impl Maps {
    /// Opens the maps pinned in `dir`.
    ///
    /// # Errors
    /// When a pin is missing or is not the map its name says.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        Self::from_source(|name| {
            let path = dir.join(name);
            let data = MapData::from_pin(&path)?;
            Ok(Map::from_map_data(data)?)
        })
    }

    /// Takes the maps out of a freshly loaded object.
    ///
    /// # Errors
    /// When the object lacks one.
    pub fn take(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        Self::from_source(|name| ebpf.take_map(name).context("it is missing from the eBPF object"))
    }

    fn from_source(mut source: impl FnMut(&str) -> anyhow::Result<Map>) -> anyhow::Result<Self> {
        let mut get = |name: &'static str| source(name).with_context(|| format!("failed to open map {name}"));
        let listeners = match get(names::LISTENERS)? {
            Map::SockHash(data) => data,
            _ => anyhow::bail!("failed to open map {}: it is not a SOCKHASH", names::LISTENERS),
        };
        Ok(Self {
            meta: get(names::META)?.try_into()?,
            rules: get(names::RULES)?.try_into()?,
            attachments: get(names::ATTACHMENTS)?.try_into()?,
            allow: get(names::ALLOW)?.try_into()?,
            targets: get(names::TARGETS)?.try_into()?,
            listeners,
            stats: get(names::STATS)?.try_into()?,
            track_stats: get(names::TRACK_STATS)?.try_into()?,
            bound: get(names::BOUND)?.try_into()?,
        })
    }
}

/// Reads the first field of a pinned `META`, whatever version wrote it.
///
/// # Errors
/// When the pin is missing or shorter than that field.
pub fn read_abi(dir: &Path) -> anyhow::Result<u32> {
    let data = MapData::from_pin(dir.join(names::META))?;
    let info = data.info()?;
    anyhow::ensure!(
        info.value_size() as usize == size_of::<Meta>(),
        "its value is {} bytes, expected {}",
        info.value_size(),
        size_of::<Meta>()
    );
    let meta: Array<_, Meta> = Map::from_map_data(data)?.try_into()?;
    Ok(meta.get(&0, 0)?.abi)
}
