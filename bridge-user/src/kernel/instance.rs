//! One network namespace's set of pinned objects: finding, creating, upgrading and removing it.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, TcpListener},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use aya::{Ebpf, programs::links::FdLink};
use bridge_common::{ABI_VERSION, maps::Meta, names};

use super::{
    features::Features,
    host, identity,
    maps::{self, Maps},
    object::{self, BUILD_ID, EventLevel},
    pins::{self, Building, Lock, PinDir},
    state::State,
    sys, tc,
};
use crate::{attachment::AttachmentState, net::links::link_by_index};

/// An opened instance.
pub struct Instance {
    dir: PinDir,
    /// Its attachments.
    pub state: State,
}

/// What steers to MPTCP listeners.
#[derive(Default)]
pub struct MptcpSteering {
    /// The nftables table that the tc program needs is there.
    pub table: bool,
    /// The interfaces the tc program is attached to.
    pub attached: BTreeSet<u32>,
}

impl MptcpSteering {
    /// The interfaces over which connections can be steered.
    pub fn bridges(self) -> BTreeSet<u32> {
        if self.table { self.attached } else { BTreeSet::new() }
    }
}

/// The only way to change an instance: it proves the lock is held.
pub struct Writer {
    dir: PinDir,
    lock: Lock,
}

/// An instance being changed.
pub struct Session {
    /// Its attachments.
    pub state: State,
    unpublished: Option<(Building, FdLink)>,
    /// Where its objects are pinned.
    path: PathBuf,
    features: Features,
    /// Loaded for it, where that was necessary.
    ebpf: Option<Ebpf>,
}

impl Instance {
    /// Opens the calling thread's namespace's instance, if there is one.
    ///
    /// # Errors
    /// When the pins cannot be read, or were written by a version with another map layout.
    pub fn open() -> anyhow::Result<Option<Self>> {
        let dir = PinDir::current()?;
        let pin = dir.commit_pin();
        let closed = || {
            format!("failed to read {}: root, or CAP_DAC_READ_SEARCH and CAP_BPF, is needed", pin.display())
        };
        if !dir.is_published().with_context(closed)? {
            return Ok(None);
        }
        // A directory named after this namespace's inode may be left from a namespace that is gone.
        let link = sys::obj_get(&pin).with_context(closed)?;
        if u64::from(sys::link_facts(link.as_fd())?.netns_inode) != host::netns_inode()? {
            return Ok(None);
        }
        match Self::from_pins(dir) {
            // Its last attachment was detached meanwhile.
            Err(_) if !PinDir::current()?.is_published().with_context(closed)? => Ok(None),
            opened => opened.map(Some),
        }
    }

    pub(super) fn from_pins(dir: PinDir) -> anyhow::Result<Self> {
        let path = dir.path();
        maps::require_same_version(&path)?;
        let maps = Maps::open(&path)?;
        // Whoever wrote the rules knew whether the kernel tells the interface.
        let match_ifindex = !maps.rules.keys().filter_map(Result::ok).any(|key| key.ifindex == 0);
        Ok(Self { dir, state: State { maps, match_ifindex } })
    }

    /// Removes one attachment, and what only it needed.
    ///
    /// # Errors
    /// When a map cannot be written, or the tc program cannot be taken off.
    pub fn remove(&mut self, id: u32) -> anyhow::Result<()> {
        self.state.remove(id)?;
        sweep_mptcp(&self.dir.path(), &self.state)
    }

    /// What steers to MPTCP listeners, as far as nobody took it away.
    ///
    /// # Errors
    /// When the pins cannot be read, or the kernel not be asked.
    pub fn mptcp(&self) -> anyhow::Result<MptcpSteering> {
        let path = self.dir.path();
        let marked = tc::attached(&path).with_context(|| format!("failed to read {}", path.display()))?;
        let mut attached = BTreeSet::new();
        for ifindex in marked {
            if tc::is_attached(&path, ifindex)? {
                attached.insert(ifindex);
            }
        }
        Ok(MptcpSteering { table: !attached.is_empty() && tc::has_table(&path), attached })
    }

    /// Whether services can be shown local clients.
    pub fn tells_identities(&self) -> bool {
        identity::is_attached(&self.dir.path())
    }

    /// Id of the program that steers, which the event channel is found by.
    ///
    /// # Errors
    /// When the pinned link cannot be read.
    pub fn steer_program_id(&self) -> anyhow::Result<u32> {
        let path = self.dir.commit_pin();
        let link = sys::obj_get(&path).with_context(|| format!("failed to open {}", path.display()))?;
        Ok(sys::link_facts(link.as_fd())?.program_id)
    }
}

impl Writer {
    /// Takes the lock for the calling thread's namespace. Mounts bpffs if it is missing.
    ///
    /// # Errors
    /// When bpffs is not there and cannot be mounted.
    pub fn begin() -> anyhow::Result<Self> {
        host::ensure_bpffs()?;
        Self::begin_mounted()
    }

    /// Like [`Writer::begin`], but `None` where bpffs is not mounted: then nothing can be pinned.
    ///
    /// # Errors
    /// When the lock cannot be taken.
    pub fn begin_if_mounted() -> anyhow::Result<Option<Self>> {
        if host::bpffs_mounted() { Self::begin_mounted().map(Some) } else { Ok(None) }
    }

    fn begin_mounted() -> anyhow::Result<Self> {
        let dir = PinDir::current()?;
        let lock = dir.lock()?;
        Ok(Self { dir, lock })
    }

    /// Opens the instance, creating it or replacing the programs of another build as needed. `probed`: steering was
    /// tried on this host, which is remembered. `owner`: the namespace that attaches from outside, or 0.
    ///
    /// # Errors
    /// When the pinned objects have another map layout, or the kernel refuses the programs. Nothing is left behind.
    pub fn open_or_create(
        &self,
        features: Features,
        level: Option<EventLevel>,
        probed: bool,
        owner: u64,
    ) -> anyhow::Result<Session> {
        let Some(mut instance) = self.open_existing()? else {
            return self.create(features, level.unwrap_or_default(), probed, owner);
        };
        let ebpf = self.upgrade(&mut instance, features, level)?;
        instance.state.match_ifindex = features.ingress_ifindex;
        instance.state.sweep()?;
        remember(&mut instance.state, probed, owner)?;
        let path = self.dir.path();
        Ok(Session { state: instance.state, unpublished: None, path, features, ebpf })
    }

    /// Opens the instance if there is one, for removing attachments.
    ///
    /// # Errors
    /// When the pinned objects have another map layout.
    pub fn open_existing(&self) -> anyhow::Result<Option<Instance>> {
        if !self.dir.is_published()? {
            return Ok(None);
        }
        Instance::from_pins(PinDir::current()?).map(Some)
    }

    /// Removes the whole instance.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn remove_all(&self) -> anyhow::Result<()> {
        self.dir.remove(&self.lock)
    }

    fn create(
        &self,
        features: Features,
        level: EventLevel,
        probed: bool,
        owner: u64,
    ) -> anyhow::Result<Session> {
        let building = self.dir.build(&self.lock)?;
        let mut ebpf = object::load(features, level, Some(building.path()))?;
        let maps = Maps::open(building.path())?;
        let mut state = State { maps, match_ifindex: features.ingress_ifindex };
        let links = object::attach(&mut ebpf, features, &host::netns()?, &host::cgroup_root()?)?;
        write_meta(&mut state.maps, level, probed, owner)?;
        for (program, link) in links.tracking {
            let path = building.path().join(pins::link_name(program));
            sys::obj_pin(link.as_fd(), &path).with_context(|| format!("failed to pin {}", path.display()))?;
        }
        let path = self.dir.path();
        let unpublished = Some((building, links.steering));
        Ok(Session { state, unpublished, path, features, ebpf: Some(ebpf) })
    }

    /// Brings the programs of a pinned instance to this build and event level, one atomic link update each; the maps,
    /// and with them every rule, stay.
    fn upgrade(
        &self,
        instance: &mut Instance,
        features: Features,
        level: Option<EventLevel>,
    ) -> anyhow::Result<Option<Ebpf>> {
        if !instance.state.is_outdated(level)? {
            return Ok(None);
        }
        let meta = instance.state.meta()?;
        let wanted = level.map_or(meta.event_level, |level| u16::from(level.as_u8()));
        let path = self.dir.path();
        let level = level_from(wanted);
        let mut ebpf = object::load(features, level, Some(&path))?;
        for program in object::tracking_programs(features).iter().chain(&[names::PROG_STEER]) {
            let pin = path.join(pins::link_name(program));
            let link = sys::obj_get(&pin).with_context(|| format!("failed to open {}", pin.display()))?;
            sys::link_update(link.as_fd(), object::program_fd(&ebpf, program)?.as_fd())
                .with_context(|| format!("failed to replace program {program}"))?;
        }
        tc::upgrade(&path, &mut ebpf)?;
        identity::upgrade(&path, &mut ebpf)?;
        let meta = Meta { event_level: wanted, build: BUILD_ID, ..meta };
        instance.state.maps.meta.set(0, meta, 0).context("failed to write map META")?;
        Ok(Some(ebpf))
    }
}

impl Session {
    /// Lets connections over the bridges of these attachments be steered to MPTCP listeners, now or when the services
    /// begin to listen so.
    ///
    /// # Errors
    /// When the kernel or nft(8) refuses; plain listeners are served nevertheless.
    pub fn steer_mptcp(&mut self, wanted: &[AttachmentState]) -> anyhow::Result<()> {
        if !self.features.mptcp_helper {
            return Ok(());
        }
        let path = self.path.clone();
        let bridges: BTreeSet<u32> = wanted.iter().map(|state| state.ifindex).collect();
        let mut missing = Vec::new();
        for ifindex in bridges {
            if !tc::is_attached(&path, ifindex)? {
                missing.push(ifindex);
            }
        }
        if missing.is_empty() && tc::has_table(&path) {
            return Ok(());
        }
        let ebpf = self.loaded()?;
        tc::ensure_table(&path, ebpf)?;
        for ifindex in missing {
            if let Some(link) = link_by_index(ifindex)? {
                tc::ensure(&path, ebpf, &link)?;
            }
        }
        Ok(())
    }

    /// Attaches the programs of the loopback identity, unless they are attached.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_identity(&mut self) -> anyhow::Result<()> {
        let path = self.path.clone();
        if identity::is_attached(&path) {
            return Ok(());
        }
        identity::ensure(&path, self.loaded()?, &host::cgroup_root()?)
    }

    fn loaded(&mut self) -> anyhow::Result<&mut Ebpf> {
        match &mut self.ebpf {
            Some(ebpf) => Ok(ebpf),
            none => {
                let level = level_from(self.state.meta()?.event_level);
                Ok(none.insert(object::load(self.features, level, Some(&self.path))?))
            }
        }
    }

    /// Takes the tc program off bridges that no attachment is on any more.
    ///
    /// # Errors
    /// When something cannot be undone; the rest still is.
    pub fn sweep_mptcp(&self) -> anyhow::Result<()> {
        sweep_mptcp(&self.path, &self.state)
    }

    /// Publishes a new instance; one that was there already is public all along. A session dropped without this
    /// takes a new instance with it.
    ///
    /// # Errors
    /// When the pin fails.
    pub fn commit(self) -> anyhow::Result<()> {
        self.unpublished.map_or(Ok(()), |(building, steering)| building.publish(steering))
    }
}

fn sweep_mptcp(path: &Path, state: &State) -> anyhow::Result<()> {
    tc::sweep(path, &state.list()?.into_iter().map(|(_, attachment)| attachment.ifindex).collect())
}

const fn level_from(level: u16) -> EventLevel {
    match level {
        0 => EventLevel::Off,
        1..=3 => EventLevel::Warn,
        _ => EventLevel::Debug,
    }
}

/// Writes `META` of a new instance. Until then its namespace cookie is 0 and no listener is accepted.
///
/// # Errors
/// When the namespace's cookie cannot be learnt or the map not written.
pub fn write_meta(maps: &mut Maps, level: EventLevel, probed: bool, owner: u64) -> anyhow::Result<()> {
    let netns_cookie =
        current_netns_cookie(maps).context("failed to learn this network namespace's cookie")?;
    let meta = Meta {
        abi: ABI_VERSION,
        event_level: u16::from(level.as_u8()),
        probed: u16::from(probed),
        netns_cookie,
        owner,
        build: BUILD_ID,
    };
    maps.meta.set(0, meta, 0).context("failed to write map META")
}

/// Whoever attached from outside last is the owner, also of what was attached there before.
fn remember(state: &mut State, probed: bool, owner: u64) -> anyhow::Result<()> {
    let meta = state.meta()?;
    let owner = if owner == 0 { meta.owner } else { owner };
    let probed = meta.probed.max(u16::from(probed));
    if (meta.probed, meta.owner) == (probed, owner) {
        return Ok(());
    }
    state.maps.meta.set(0, Meta { probed, owner, ..meta }, 0).context("failed to write map META")
}

/// The cookie of the calling thread's namespace. Where the kernel does not tell (below Linux 5.14), a socket is bound
/// and the attached bind hook has recorded it.
fn current_netns_cookie(maps: &Maps) -> anyhow::Result<u64> {
    let socket =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("failed to bind a socket on 127.0.0.1")?;
    match sys::netns_cookie(&socket) {
        Ok(cookie) => Ok(cookie),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
            let cookie = sys::socket_cookie(&socket)?;
            maps.bound_netns.get(&cookie, 0).context("the bind hook recorded nothing")
        }
        Err(error) => Err(error.into()),
    }
}
