//! One network namespace's set of pinned objects: finding, creating, upgrading and removing it.

pub mod meta;
pub mod owned;
pub mod pins;

use std::{
    collections::BTreeSet,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use aya::{Ebpf, programs::links::FdLink};
use bridge_common::{maps::Meta, names};

use self::pins::{Building, Lock, PinDir};
use super::{
    features::Features,
    programs::{
        identity, link_name,
        object::{self, BUILD_ID},
        tc,
    },
    state::{State, maps::Maps},
    sys,
};
use crate::{
    model::{attachment::Attachment, event_level::EventLevel},
    net::{links::link_by_index, namespace::Namespace},
    scope::Scope,
};

/// An opened instance.
pub struct Instance {
    namespace: Namespace,
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
    scope: Scope,
    dir: PinDir,
    lock: Lock,
}

/// An instance being changed.
pub struct Session {
    /// Its attachments.
    pub state: State,
    scope: Scope,
    unpublished: Option<(Building, FdLink)>,
    /// Where its objects are pinned.
    path: PathBuf,
    features: Features,
    /// Loaded for it, where that was necessary.
    ebpf: Option<Ebpf>,
}

impl Instance {
    /// Opens the namespace's instance, if there is one.
    ///
    /// # Errors
    /// When the pins cannot be read, or were written by a version with another map layout.
    pub fn open(scope: &Scope) -> anyhow::Result<Option<Self>> {
        let dir = PinDir::of(scope);
        let pin = dir.commit_pin();
        let closed = || {
            format!("failed to read {}: root, or CAP_DAC_READ_SEARCH and CAP_BPF, is needed", pin.display())
        };
        if !dir.is_published().with_context(closed)? {
            return Ok(None);
        }
        // A directory named after this namespace's inode may be left from a namespace that is gone.
        let link = sys::obj_get(&pin).with_context(closed)?;
        if u64::from(sys::link_facts(link.as_fd())?.netns_inode) != scope.namespace.inode() {
            return Ok(None);
        }
        match State::open(&dir.path()) {
            // Its last attachment was detached meanwhile.
            Err(_) if !dir.is_published().with_context(closed)? => Ok(None),
            state => Ok(Some(Self { namespace: scope.namespace.clone(), dir, state: state? })),
        }
    }

    /// Removes one attachment, and what only it needed.
    ///
    /// # Errors
    /// When a map cannot be written, or the tc program cannot be taken off.
    pub fn remove(&mut self, id: u32) -> anyhow::Result<()> {
        self.state.remove(id)?;
        sweep_mptcp(&self.namespace, &self.dir.path(), &self.state)
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
            if tc::is_attached(&self.namespace, &path, ifindex)? {
                attached.insert(ifindex);
            }
        }
        let table = !attached.is_empty() && tc::has_table(&self.namespace, &path);
        Ok(MptcpSteering { table, attached })
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
    /// Takes the lock, to change the namespace's instance. Mounts bpffs if it is missing.
    ///
    /// # Errors
    /// When bpffs is not there and cannot be mounted.
    pub fn begin(scope: &Scope) -> anyhow::Result<Self> {
        scope.roots.ensure_bpffs()?;
        Self::begin_mounted(scope)
    }

    /// Like [`Writer::begin`], but `None` where bpffs is not mounted: then nothing can be pinned.
    ///
    /// # Errors
    /// When the lock cannot be taken.
    pub fn begin_if_mounted(scope: &Scope) -> anyhow::Result<Option<Self>> {
        if scope.roots.bpffs_mounted() { Self::begin_mounted(scope).map(Some) } else { Ok(None) }
    }

    fn begin_mounted(scope: &Scope) -> anyhow::Result<Self> {
        let lock = Lock::take(scope)?;
        Ok(Self { scope: scope.clone(), dir: PinDir::of(scope), lock })
    }

    /// Opens the instance, creating it or replacing the programs of another build as needed. `probed`: steering was
    /// tried on this host, which is remembered. `owner`: the inode of the namespace that attaches from outside, if
    /// one does.
    ///
    /// # Errors
    /// When the pinned objects have another map layout, or the kernel refuses the programs. Nothing is left behind.
    pub fn open_or_create(
        &self,
        features: Features,
        level: Option<EventLevel>,
        probed: bool,
        owner: Option<u64>,
    ) -> anyhow::Result<Session> {
        let Some(mut instance) = self.open_existing()? else {
            return self.create(features, level.unwrap_or_default(), probed, owner);
        };
        let ebpf = self.upgrade(&mut instance, features, level)?;
        instance.state.match_ifindex = features.ingress_ifindex;
        instance.state.sweep()?;
        meta::remember(&mut instance.state, probed, owner)?;
        let path = self.dir.path();
        let scope = self.scope.clone();
        Ok(Session { state: instance.state, scope, unpublished: None, path, features, ebpf })
    }

    /// Opens the instance if there is one, for removing attachments.
    ///
    /// # Errors
    /// When the pinned objects have another map layout.
    pub fn open_existing(&self) -> anyhow::Result<Option<Instance>> {
        if !self.dir.is_published()? {
            return Ok(None);
        }
        let state = State::open(&self.dir.path())?;
        Ok(Some(Instance { namespace: self.scope.namespace.clone(), dir: self.dir.clone(), state }))
    }

    /// Removes the whole instance.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn remove_all(&self) -> anyhow::Result<()> {
        self.dir.remove(&self.scope.namespace, &self.lock)
    }

    fn create(
        &self,
        features: Features,
        level: EventLevel,
        probed: bool,
        owner: Option<u64>,
    ) -> anyhow::Result<Session> {
        let Scope { namespace, roots } = &self.scope;
        let building = self.dir.build(namespace, &self.lock)?;
        let mut ebpf = object::load(features, level, Some(building.path()))?;
        let maps = Maps::open(building.path())?;
        let mut state = State { maps, match_ifindex: features.ingress_ifindex };
        let links = object::attach(&mut ebpf, features, namespace, &roots.open_cgroup()?)?;
        meta::write(&mut state.maps, namespace, level, probed, owner)?;
        for (program, link) in links.tracking {
            let path = building.path().join(link_name(program));
            sys::obj_pin(link.as_fd(), &path).with_context(|| format!("failed to pin {}", path.display()))?;
        }
        let path = self.dir.path();
        let unpublished = Some((building, links.steering));
        let scope = self.scope.clone();
        Ok(Session { state, scope, unpublished, path, features, ebpf: Some(ebpf) })
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
        let level = EventLevel::from_u16(wanted);
        let mut ebpf = object::load(features, level, Some(&path))?;
        for program in object::tracking_programs(features).iter().chain(&[names::PROG_STEER]) {
            let pin = path.join(link_name(program));
            let link = sys::obj_get(&pin).with_context(|| format!("failed to open {}", pin.display()))?;
            sys::link_update(link.as_fd(), object::program_fd(&ebpf, program)?.as_fd())
                .with_context(|| format!("failed to replace program {program}"))?;
        }
        tc::upgrade(&self.scope.namespace, &path, &mut ebpf)?;
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
    pub fn steer_mptcp(&mut self, wanted: &[Attachment]) -> anyhow::Result<()> {
        if !self.features.mptcp_helper {
            return Ok(());
        }
        let (namespace, path) = (self.scope.namespace.clone(), self.path.clone());
        let bridges: BTreeSet<u32> = wanted.iter().map(|state| state.ifindex).collect();
        let mut missing = Vec::new();
        for ifindex in bridges {
            if !tc::is_attached(&namespace, &path, ifindex)? {
                missing.push(ifindex);
            }
        }
        if missing.is_empty() && tc::has_table(&namespace, &path) {
            return Ok(());
        }
        let ebpf = self.loaded()?;
        tc::ensure_table(&namespace, &path, ebpf)?;
        for ifindex in missing {
            if let Some(link) = link_by_index(&namespace, ifindex)? {
                tc::ensure(&namespace, &path, ebpf, &link)?;
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
        let cgroup = self.scope.roots.open_cgroup()?;
        identity::ensure(&path, self.loaded()?, &cgroup)
    }

    fn loaded(&mut self) -> anyhow::Result<&mut Ebpf> {
        match &mut self.ebpf {
            Some(ebpf) => Ok(ebpf),
            none => {
                let level = EventLevel::from_u16(self.state.meta()?.event_level);
                Ok(none.insert(object::load(self.features, level, Some(&self.path))?))
            }
        }
    }

    /// Takes the tc program off bridges that no attachment is on any more.
    ///
    /// # Errors
    /// When something cannot be undone; the rest still is.
    pub fn sweep_mptcp(&self) -> anyhow::Result<()> {
        sweep_mptcp(&self.scope.namespace, &self.path, &self.state)
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

fn sweep_mptcp(namespace: &Namespace, path: &Path, state: &State) -> anyhow::Result<()> {
    tc::sweep(namespace, path, &state.list()?.into_iter().map(|(_, attachment)| attachment.ifindex).collect())
}
