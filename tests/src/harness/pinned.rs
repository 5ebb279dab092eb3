//! The maps that bridge-user pins for a namespace, typed.

use anyhow::{Context, Result};
use aya::Pod;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData};

use super::netns::Netns;

/// A hash map of the namespace's instance.
pub(crate) fn hash<K: Pod, V: Pod>(netns: &Netns, name: &str) -> Result<HashMap<MapData, K, V>> {
    Ok(Map::HashMap(open(netns, name)?).try_into()?)
}

/// One that forgets.
pub(crate) fn lru_hash<K: Pod, V: Pod>(netns: &Netns, name: &str) -> Result<HashMap<MapData, K, V>> {
    Ok(Map::LruHashMap(open(netns, name)?).try_into()?)
}

/// A trie of prefixes.
pub(crate) fn lpm_trie<K: Pod, V: Pod>(netns: &Netns, name: &str) -> Result<LpmTrie<MapData, K, V>> {
    Ok(Map::LpmTrie(open(netns, name)?).try_into()?)
}

/// An array.
pub(crate) fn array<V: Pod>(netns: &Netns, name: &str) -> Result<Array<MapData, V>> {
    Ok(Map::Array(open(netns, name)?).try_into()?)
}

fn open(netns: &Netns, name: &str) -> Result<MapData> {
    let pin = netns.pins().join(name);
    MapData::from_pin(&pin).with_context(|| format!("failed to open {}", pin.display()))
}
