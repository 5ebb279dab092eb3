//! Typed access to one instance's maps, whether pinned or only held by this process.

use std::{mem::offset_of, os::fd::AsFd as _, path::Path};

use anyhow::{Context as _, ensure};
use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapInfo, PerCpuArray, PerCpuHashMap},
};
use bridge_common::{
    ABI_VERSION,
    maps::{
        self as abi, AllowKey, ListenerKey, Meta, NamedContainer, NamedKey, Prepared, RuleKey, Stats,
        TargetKey, TrackStats,
    },
    names,
    registry::MapRow,
};

use crate::{kernel::sys, model::instance::NamespaceId};

/// The maps userspace reads or writes. Their meaning is documented in `bridge_common::names`.
pub struct Maps {
    /// See `META`.
    pub meta: Array<MapData, Meta>,
    /// See `RULES`.
    pub rules: HashMap<MapData, RuleKey, u32>,
    /// See `ATTACHMENTS`.
    pub attachments: HashMap<MapData, u32, abi::Attachment>,
    /// See `ALLOW`.
    pub allow: LpmTrie<MapData, AllowKey, u32>,
    /// See `TARGETS`.
    pub targets: HashMap<MapData, TargetKey, u32>,
    /// See `NAMED`.
    pub named: HashMap<MapData, NamedKey, NamedContainer>,
    /// See `CLIENTS`.
    pub clients: HashMap<MapData, u64, u32>,
    /// See `MPTCP_TARGETS`.
    pub mptcp_targets: HashMap<MapData, TargetKey, u64>,
    /// See `MPTCP_PREPARED`.
    pub mptcp_prepared: HashMap<MapData, TargetKey, Prepared>,
    /// See `LISTENERS`.
    pub listeners: MapData,
    /// See `STATS`.
    pub stats: PerCpuHashMap<MapData, u32, Stats>,
    /// See `TRACK_STATS`.
    pub track_stats: PerCpuArray<MapData, TrackStats>,
    /// See `SOCKET_NETNS`.
    pub socket_netns: HashMap<MapData, u64, u64>,
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

    /// The registered listeners: key and socket cookie. A listener that closes meanwhile is left out.
    ///
    /// # Errors
    /// When the map cannot be walked.
    pub fn registered(&self) -> anyhow::Result<Vec<(ListenerKey, u64)>> {
        let fd = self.listeners.fd().as_fd();
        let mut all = Vec::new();
        for key in self.listener_keys()? {
            if let Ok(cookie) = sys::sockhash_cookie(fd, &key) {
                all.push((key, cookie));
            }
        }
        Ok(all)
    }

    /// The keys of the registered listeners.
    ///
    /// # Errors
    /// When the map cannot be walked.
    pub fn listener_keys(&self) -> anyhow::Result<Vec<ListenerKey>> {
        let fd = self.listeners.fd().as_fd();
        let mut keys = Vec::new();
        let mut last = None;
        while let Some(key) = sys::map_next_key(fd, last.as_ref()).context("failed to walk map LISTENERS")? {
            keys.push(key);
            last = Some(key);
        }
        Ok(keys)
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
            named: get(names::NAMED)?.try_into()?,
            clients: get(names::CLIENTS)?.try_into()?,
            mptcp_targets: get(names::MPTCP_TARGETS)?.try_into()?,
            mptcp_prepared: get(names::MPTCP_PREPARED)?.try_into()?,
            listeners,
            stats: get(names::STATS)?.try_into()?,
            track_stats: get(names::TRACK_STATS)?.try_into()?,
            socket_netns: get(names::SOCKET_NETNS)?.try_into()?,
        })
    }
}

/// Requires that the maps pinned in `dir` are those of this version: first the version they say, then every map's
/// sizes. aya takes a pinned map of any shape, and programs that read it with another one would go wrong silently.
///
/// # Errors
/// Names the first difference with both values, and what to do.
pub fn require_same_version(dir: &Path) -> anyhow::Result<()> {
    const NEXT: &str = "run `bridge-user detach --all`, then attach again";
    let found = read_abi(dir)
        .with_context(|| format!("failed to read the objects pinned in {}: {NEXT}", dir.display()))?;
    ensure!(
        found == ABI_VERSION,
        "failed to use the objects pinned in {}: they were written with map layout {found}, this version has layout \
         {ABI_VERSION}: {NEXT}",
        dir.display()
    );
    for MapRow { name, key_size, value_size, .. } in names::MAPS {
        let info = MapInfo::from_pin(dir.join(name))
            .with_context(|| format!("failed to read pinned map {name} in {}: {NEXT}", dir.display()))?;
        let found = (info.key_size() as usize, info.value_size() as usize);
        ensure!(
            found == (key_size, value_size),
            "failed to use pinned map {name} in {}: its key and value are {found:?} bytes, expected {:?}: {NEXT}",
            dir.display(),
            (key_size, value_size)
        );
    }
    Ok(())
}

/// Where a pinned instance comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// [`Meta::netns_cookie`].
    pub netns_cookie: u64,
    /// [`Meta::owner`]: the namespace that attached from outside, if one did.
    pub owner: Option<NamespaceId>,
}

/// The origin of the instance pinned in `dir`, whatever later version wrote it; cookie 0 and no owner if it cannot be
/// told.
pub fn read_origin(dir: &Path) -> Origin {
    MapData::from_pin(dir.join(names::META)).ok().and_then(|meta| origin(&meta)).unwrap_or_default()
}

/// What a map `META` says of the origin of its instance, whatever later version wrote it.
pub fn origin(meta: &MapData) -> Option<Origin> {
    const WORD: usize = size_of::<u64>();
    /// More than any version's `META` is expected to have.
    const WORDS: usize = 64;
    /// Layouts before 8 were smaller.
    const FIRST_WITH_OWNER: usize = 56;
    let size = meta.info().ok()?.value_size() as usize;
    let words: [u64; WORDS] = (FIRST_WITH_OWNER..=WORDS * WORD)
        .contains(&size)
        .then(|| sys::map_lookup(meta.fd().as_fd(), &0u32).ok())??;
    let word = |offset| words[offset / WORD];
    Some(Origin {
        netns_cookie: word(offset_of!(Meta, netns_cookie)),
        owner: owner_of(word(offset_of!(Meta, owner)), word(offset_of!(Meta, owner_cookie))),
    })
}

/// [`Meta::owner`] and [`Meta::owner_cookie`] as a value: in the map, 0 stands for none.
pub fn owner_of(inode: u64, cookie: u64) -> Option<NamespaceId> {
    (inode != 0).then_some(NamespaceId { inode, cookie: (cookie != 0).then_some(cookie) })
}

/// The version `META` says; a `META` of another size is another version too.
fn read_abi(dir: &Path) -> anyhow::Result<u32> {
    let data = MapData::from_pin(dir.join(names::META))?;
    let size = data.info()?.value_size() as usize;
    ensure!(size == size_of::<Meta>(), "map META has values of {size} bytes, expected {}", size_of::<Meta>());
    let meta: Array<_, Meta> = Map::from_map_data(data)?.try_into()?;
    Ok(meta.get(&0, 0)?.abi)
}
