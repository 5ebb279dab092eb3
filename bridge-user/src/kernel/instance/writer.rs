//! What an instance can be changed by: one function for each change, called by `apply` alone.
//!
//! Invariants: a writer holds the lock. Each function is whole: what it made before it failed, it takes back. What they
//! have in common, such as the loaded object, is kept between them.

use std::{net::SocketAddr, os::fd::AsFd as _, path::Path};

use anyhow::Context as _;
use aya::{Ebpf, programs::links::FdLink};
use bridge_common::names;

use super::{
    meta,
    pins::{Lock, PinDir, detach_and_remove},
};
use crate::{
    kernel::{
        features::Features,
        programs::{identity, link_name, object, tc},
        state::{State, maps::Maps},
        sys,
    },
    model::{
        attachment::Attachment,
        event_level::EventLevel,
        instance::InstanceMeta,
        programs::{IDENTITY, TcHook},
    },
    scope::Scope,
};

/// An instance, or the place for one, with the lock held.
pub(crate) struct Writer {
    scope: Scope,
    dir: PinDir,
    /// What programs may use; `None` where none are to be loaded.
    features: Option<Features>,
    /// Its maps, once they were needed.
    state: Option<State>,
    /// The object and the level of events it was loaded with, once it was needed.
    loaded: Option<(EventLevel, Ebpf)>,
    /// The program that steers is attached, and the link not pinned.
    steering: Option<FdLink>,
    lock: Lock,
}

impl Writer {
    /// Takes the lock, to change the namespace's instance. bpffs is mounted.
    ///
    /// # Errors
    /// When the lock cannot be taken.
    pub(crate) fn begin(scope: &Scope, features: Option<Features>) -> anyhow::Result<Self> {
        Ok(Self { features, ..Self::begin_in(scope, PinDir::of(scope))? })
    }

    /// Takes the lock, to remove what is in a directory.
    pub(super) fn begin_in(scope: &Scope, dir: PinDir) -> anyhow::Result<Self> {
        let lock = Lock::take(scope)?;
        let scope = scope.clone();
        Ok(Self { scope, dir, features: None, state: None, loaded: None, steering: None, lock })
    }

    /// Makes the directory, loads the programs for an instance with this level of events, and pins their maps.
    ///
    /// # Errors
    /// When bpffs or the kernel refuses.
    pub(crate) fn create(&mut self, level: EventLevel) -> anyhow::Result<()> {
        self.dir.create(&self.lock)?;
        let made = self.create_maps(level);
        if made.is_err() {
            self.remove_instance().context("failed to remove what was made of an instance")?;
        }
        made
    }

    fn create_maps(&mut self, level: EventLevel) -> anyhow::Result<()> {
        let features = self.features()?;
        let path = self.dir.path();
        self.loaded = Some((level, object::load(features, level, Some(&path))?));
        let maps = Maps::open(&path)?;
        self.state = Some(State::new(maps, features.ingress_ifindex));
        Ok(())
    }

    /// Removes the directory and every pin in it.
    ///
    /// # Errors
    /// When a pin cannot be removed; the others still are.
    pub(crate) fn remove_instance(&mut self) -> anyhow::Result<()> {
        self.state = None;
        self.loaded = None;
        self.dir.remove(&self.lock)
    }

    /// Attaches a program to its hook. Without a pin it is attached until [`Writer::publish`], or ends with this
    /// writer.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn attach_program(&mut self, program: &'static str, pin: Option<&Path>) -> anyhow::Result<()> {
        let Scope { namespace, roots } = self.scope.clone();
        let Some(pin) = pin else {
            let attached = object::attach_steer(self.loaded()?, &namespace);
            self.steering =
                Some(attached.with_context(|| format!("failed to attach program {}", names::PROG_STEER))?);
            return Ok(());
        };
        let cgroup = roots.open_cgroup()?;
        let ebpf = self.loaded()?;
        let link = if IDENTITY.contains(&program) {
            identity::attach(ebpf, program, &cgroup)?
        } else {
            object::attach_to_cgroup(ebpf, program, &cgroup)?
        };
        sys::obj_pin(link.as_fd(), pin).with_context(|| format!("failed to pin {}", pin.display()))
    }

    /// Detaches a program.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn detach_program(&mut self, pin: Option<&Path>) -> anyhow::Result<()> {
        match pin {
            Some(pin) => detach_and_remove(pin),
            None => {
                self.steering = None;
                Ok(())
            }
        }
    }

    /// Replaces attached programs by this build's with a level of events, and says so in `META` last: what is cut short
    /// is done again.
    ///
    /// # Errors
    /// When the kernel refuses; some may be replaced then.
    pub(crate) fn replace_programs(
        &mut self,
        programs: &[&'static str],
        interfaces: &[u32],
        level: EventLevel,
    ) -> anyhow::Result<()> {
        self.load(level)?;
        let namespace = self.scope.namespace.clone();
        let path = self.dir.path();
        for program in programs {
            let ebpf = self.loaded()?;
            if IDENTITY.contains(program) {
                identity::load(ebpf, program)?;
            }
            let pin = path.join(link_name(program));
            let link = sys::obj_get(&pin).with_context(|| format!("failed to open {}", pin.display()))?;
            sys::link_update(link.as_fd(), object::program_fd(ebpf, program)?.as_fd())
                .with_context(|| format!("failed to replace program {program}"))?;
        }
        for &ifindex in interfaces {
            tc::replace(&namespace, &path, self.loaded()?, ifindex)?;
        }
        meta::replaced(&mut self.state()?.maps, level)
    }

    /// Writes what the instance says of itself; `is_new`: it says nothing yet.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub(crate) fn write_meta(&mut self, says: InstanceMeta, is_new: bool) -> anyhow::Result<()> {
        let namespace = self.scope.namespace.clone();
        let maps = &mut self.state()?.maps;
        if is_new { meta::write(maps, &namespace, says) } else { meta::rewrite(maps, says) }
    }

    /// Removes map entries that no attachment refers to.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub(crate) fn remove_leftovers(&mut self) -> anyhow::Result<()> {
        let namespace = self.scope.namespace.clone();
        self.state()?.remove_leftovers(&namespace)
    }

    /// As [`tc::attach`].
    pub(crate) fn attach_tc(&mut self, ifindex: u32, hook: TcHook) -> anyhow::Result<()> {
        let namespace = self.scope.namespace.clone();
        tc::attach(&namespace, &self.dir.path(), self.loaded()?, ifindex, hook)
    }

    /// As [`tc::remove`].
    pub(crate) fn detach_tc(&self, ifindex: u32) -> anyhow::Result<()> {
        tc::remove(&self.scope.namespace, &self.dir.path(), ifindex)
    }

    /// As [`State::track`].
    pub(crate) fn track(&mut self, targets: &[(SocketAddr, bool)]) -> anyhow::Result<()> {
        let namespace = self.scope.namespace.clone();
        self.state()?.track(targets, &namespace)
    }

    /// As [`State::untrack`].
    pub(crate) fn untrack(&mut self, target: SocketAddr) -> anyhow::Result<()> {
        let namespace = self.scope.namespace.clone();
        self.state()?.untrack(target, &namespace)
    }

    /// As [`State::release`].
    pub(crate) fn release(&mut self) -> anyhow::Result<()> {
        let namespace = self.scope.namespace.clone();
        self.state()?.release(&namespace)
    }

    /// As [`State::put`].
    pub(crate) fn put(&mut self, id: u32, new: &Attachment, old: Option<&Attachment>) -> anyhow::Result<()> {
        self.state()?.put(id, new, old)
    }

    /// As [`State::remove`].
    pub(crate) fn remove(&mut self, id: u32, state: &Attachment) -> anyhow::Result<()> {
        self.state()?.remove(id, state)
    }

    /// Pins the link of the program that steers, in one step.
    ///
    /// # Errors
    /// When the pin fails.
    pub(crate) fn publish(&mut self, pin: &Path) -> anyhow::Result<()> {
        let failed = || format!("failed to pin {}", pin.display());
        let steering = self.steering.take().context("program steer is not attached").with_context(failed)?;
        steering.pin(pin).with_context(failed)?;
        Ok(())
    }

    /// As [`PinDir::withdraw`].
    pub(crate) fn withdraw(&self) -> anyhow::Result<()> {
        self.dir.withdraw(&self.lock)
    }

    fn features(&self) -> anyhow::Result<Features> {
        self.features.context("failed to load programs: what the kernel can do was not asked")
    }

    fn state(&mut self) -> anyhow::Result<&mut State> {
        match &mut self.state {
            Some(state) => Ok(state),
            none => {
                let mut state = State::open(&self.dir.path())?;
                if let Some(features) = self.features {
                    state.match_ifindex = features.ingress_ifindex;
                }
                Ok(none.insert(state))
            }
        }
    }

    /// Loads the object with a level of events, unless that is what is loaded.
    fn load(&mut self, level: EventLevel) -> anyhow::Result<()> {
        if self.loaded.as_ref().is_none_or(|(loaded, _)| *loaded != level) {
            self.loaded = Some((level, object::load(self.features()?, level, Some(&self.dir.path()))?));
        }
        Ok(())
    }

    /// The object, with the level of events that the instance has.
    fn loaded(&mut self) -> anyhow::Result<&mut Ebpf> {
        if self.loaded.is_none() {
            let says = meta::read(&self.state()?.meta()?);
            self.load(says.event_level)?;
        }
        let (_, ebpf) = self.loaded.as_mut().context("failed to load programs")?;
        Ok(ebpf)
    }
}
