//! What steers a network namespace and is not among its pins.
//!
//! Pins can be out of sight: another bpffs is mounted on top of theirs, or a process has a mount namespace of its own.
//! The programs go on, so they are found by where they are attached and by id.
//!
//! Invariants: reads only, but for [`end`]; a program is ours by its name and by the names of its maps; what belongs
//! together shares maps.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt, io,
    os::fd::AsFd as _,
};

use anyhow::{Context as _, anyhow};
use aya::{
    maps::{HashMap, Map, MapData, MapInfo},
    programs::{ProgramInfo, loaded_programs},
};
use bridge_common::{maps as abi, names};

use super::pins::{Lock, PinDir};
use crate::{
    kernel::{
        programs::tc,
        state::{maps::origin, name_of},
        sys::objects,
    },
    model::instance::NamespaceId,
    net::namespace::Namespace,
    scope::Scope,
};

/// Something of bridge-user that the pins do not show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// The id of the program that steers.
    pub program: u32,
    /// Ids of its maps, by name.
    maps: BTreeMap<String, u32>,
    /// The names of its attachments, as far as this version can read them.
    pub attachments: Vec<String>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hidden {
    /// Everything that steers the namespace is known.
    Nothing,
    /// These programs steer it, too, and this process may not see whose they are; none: it may not even see them.
    Unknown(BTreeSet<u32>),
    /// These are ours.
    Found(Vec<Generation>),
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "program steer (id {})", self.program)?;
        match self.attachments.is_empty() {
            true => Ok(()),
            false => write!(f, " with {}", self.attachments.join(", ")),
        }
    }
}

/// What steers the namespace beside what is pinned. An attach that is under way is waited for: what it makes is pinned
/// last. Not to be called with the lock held.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn find(scope: &Scope) -> anyhow::Result<Hidden> {
    let found = find_now(scope)?;
    if found == Hidden::Nothing {
        return Ok(found);
    }
    Lock::wait(scope);
    find_now(scope)
}

/// The same at this moment, for who holds the lock.
///
/// # Errors
/// As [`find`].
pub fn find_now(scope: &Scope) -> anyhow::Result<Hidden> {
    let failed = || format!("failed to ask what steers network namespace {}", scope.namespace.inode());
    let mut others: BTreeSet<u32> = match objects::sk_lookup_programs(scope.namespace.file()) {
        Ok(ids) => ids.into_iter().collect(),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            return Ok(Hidden::Unknown(BTreeSet::new()));
        }
        // The kernel has no sk_lookup.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            return Ok(Hidden::Nothing);
        }
        Err(error) => return Err(error).with_context(failed),
    };
    if let Some(pinned) = PinDir::of(scope).steering_program() {
        others.remove(&pinned);
    }
    if others.is_empty() {
        return Ok(Hidden::Nothing);
    }
    let Some(programs) = programs()? else { return Ok(Hidden::Unknown(others)) };
    let steering = programs.iter().filter(|program| others.contains(&program.id()));
    let ours: Vec<_> = steering.filter_map(Generation::of).collect();
    Ok(if ours.is_empty() { Hidden::Nothing } else { Hidden::Found(ours) })
}

/// What the namespace attached inside containers and is not among the pins, each with the container's namespace while a
/// process is in that; nothing for who may not see it. As for [`find`], the lock must not be held.
///
/// # Errors
/// When the kernel cannot be asked, or the pins not be read.
pub fn find_owned(scope: &Scope) -> anyhow::Result<Vec<(Option<Namespace>, Generation)>> {
    if find_owned_now(scope)?.is_empty() {
        return Ok(Vec::new());
    }
    Lock::wait(scope);
    let found = find_owned_now(scope)?;
    found.into_iter().map(|(inode, generation)| Ok((Namespace::find(inode)?, generation))).collect()
}

/// The same at this moment, with the inodes of the namespaces.
fn find_owned_now(scope: &Scope) -> anyhow::Result<Vec<(u64, Generation)>> {
    let Some(programs) = programs()? else { return Ok(Vec::new()) };
    let is_owned = |generation: &Generation| {
        generation.owner(&programs).is_some_and(|owner| owner.is(scope.namespace.id()))
    };
    let owned: Vec<_> = programs.iter().filter_map(Generation::of).filter(is_owned).collect();
    if owned.is_empty() {
        return Ok(Vec::new());
    }
    let pinned: BTreeSet<u32> =
        PinDir::all(&scope.roots.pins())?.iter().filter_map(PinDir::steering_program).collect();
    let links = links()?;
    let namespace_of = |generation: &Generation| {
        let link = links.iter().find(|link| link.program == generation.program && link.netns != 0)?;
        Some(u64::from(link.netns))
    };
    let hidden = owned.into_iter().filter(|generation| !pinned.contains(&generation.program));
    Ok(hidden.filter_map(|generation| Some((namespace_of(&generation)?, generation))).collect())
}

/// Ends what was found, in this order: what steers, what is on interfaces, and what tracks listeners. `namespace`:
/// theirs, if it can be entered.
///
/// # Errors
/// With everything that could not be ended; the rest is.
pub fn end(namespace: Option<&Namespace>, all: &[Generation]) -> anyhow::Result<()> {
    let mut failures = Vec::new();
    for generation in all {
        failures.extend(generation.end().with_context(|| format!("failed to end {generation}")).err());
    }
    failures.extend(namespace.and_then(|namespace| tc::remove_everywhere(namespace).err()));
    match failures.iter().map(|error| format!("{error:#}")).collect::<Vec<_>>() {
        none if none.is_empty() => Ok(()),
        all => Err(anyhow!(all.join("; "))),
    }
}

impl Generation {
    /// That of a program that steers, if it is ours.
    fn of(program: &ProgramInfo) -> Option<Self> {
        let maps = maps_of(program);
        let is_ours = program.name_as_str() == Some(names::PROG_STEER)
            && [names::RULES, names::ATTACHMENTS, names::ALLOW].iter().all(|name| maps.contains_key(*name));
        let attachments = maps.get(names::ATTACHMENTS).map(|id| attachments(*id)).unwrap_or_default();
        is_ours.then(|| Self { program: program.id(), maps, attachments })
    }

    /// Ids of its programs: those of our names that share a map with it, or with one that does.
    fn family(&self, all: &[ProgramInfo]) -> HashSet<u32> {
        let ours = all
            .iter()
            .filter(|program| program.name_as_str().is_some_and(|name| names::ALL_PROGRAMS.contains(&name)));
        let mut others: Vec<(u32, Vec<u32>)> = ours
            .map(|program| (program.id(), program.map_ids().ok().flatten().unwrap_or_default()))
            .collect();
        let mut maps: HashSet<u32> = self.maps.values().copied().collect();
        let mut its = HashSet::from([self.program]);
        while let Some(at) = others.iter().position(|(_, ids)| ids.iter().any(|id| maps.contains(id))) {
            let (program, ids) = others.swap_remove(at);
            its.insert(program);
            maps.extend(ids);
        }
        its
    }

    /// The namespace that attached it from outside, if one did. The program that steers has no use of `META`.
    fn owner(&self, all: &[ProgramInfo]) -> Option<NamespaceId> {
        let its = self.family(all);
        all.iter().filter(|program| its.contains(&program.id())).find_map(|program| {
            let meta = MapData::from_id(*maps_of(program).get(names::META)?).ok()?;
            origin(&meta)?.owner
        })
    }

    fn end(&self) -> anyhow::Result<()> {
        let all = programs()?.context("CAP_SYS_ADMIN is needed to open programs by id: run as root")?;
        let its = self.family(&all);
        let mut links = links()?;
        links.retain(|link| its.contains(&link.program));
        // The one that steers first: what it needs stays until then.
        links.sort_by_key(|link| (link.program != self.program, !link.on_interface, link.id));
        for link in links {
            match objects::link_by_id(link.id) {
                // It ended meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                found => objects::detach_link(found?.as_fd())
                    .with_context(|| format!("failed to detach link {}", link.id))?,
            }
        }
        Ok(())
    }
}

/// Every program; `None` for who may not see them.
fn programs() -> anyhow::Result<Option<Vec<ProgramInfo>>> {
    if !caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_ADMIN)? {
        return Ok(None);
    }
    // One that ended while the list is read is left out.
    Ok(Some(loaded_programs().filter_map(Result::ok).collect()))
}

fn links() -> anyhow::Result<Vec<objects::LinkFound>> {
    let mut found = Vec::new();
    let mut last = 0;
    while let Some(id) = objects::next_link(last).context("failed to list links")? {
        last = id;
        // One that ended while the list is read is left out.
        found.extend(objects::link_by_id(id).and_then(|link| objects::link_found(link.as_fd())));
    }
    Ok(found)
}

fn maps_of(program: &ProgramInfo) -> BTreeMap<String, u32> {
    let ids = program.map_ids().ok().flatten().unwrap_or_default();
    let named = |id: u32| Some((MapInfo::from_id(id).ok()?.name_as_str()?.to_owned(), id));
    ids.into_iter().filter_map(named).collect()
}

/// The names of the attachments in a map, if it has this version's layout.
fn attachments(id: u32) -> Vec<String> {
    let open = || -> Option<HashMap<MapData, u32, abi::Attachment>> {
        let data = MapData::from_id(id).ok()?;
        let fits = data.info().ok()?.value_size() as usize == size_of::<abi::Attachment>();
        Map::from_map_data(data).ok().filter(|_| fits)?.try_into().ok()
    };
    let Some(map) = open() else { return Vec::new() };
    let mut all: Vec<_> =
        map.iter().filter_map(Result::ok).filter_map(|(_, value)| name_of(&value)).collect();
    all.sort();
    all
}
