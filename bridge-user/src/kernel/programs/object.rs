//! The embedded eBPF object: loading it, with maps new or taken from pins.

use std::{
    fs::File,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, bail};
use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupSock, CgroupSockAddr, ProgramError, SchedClassifier, SkLookup, SockOps, links::FdLink},
};
use aya_obj::generated::bpf_attach_type;
use bridge_common::{
    maps::{MAX_PENDING_LRU, MAX_SOCKET_NETNS, MAX_TICKETS},
    names,
};
use rustix::fs::{Mode, OFlags, open};

use crate::{
    kernel::{features::Features, sys},
    model::{event_level::EventLevel, programs},
    net::namespace::Namespace,
};

/// The object `cargo xtask build` made.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bridge-ebpf"));
/// First 16 bytes of the object's SHA-256.
pub const BUILD_ID: [u8; 16] = *include_bytes!(concat!(env!("OUT_DIR"), "/build-id"));

/// A loader that pins nothing. Making one reads and parses the kernel's BTF, of which we have no use (aya before 0.15):
/// 20 ms of an attach, which loads the object once to try it and once to keep it.
static SPARE: Mutex<Option<EbpfLoader<'static>>> = Mutex::new(None);

fn spare() -> MutexGuard<'static, Option<EbpfLoader<'static>>> {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Frees what a process that goes on for long, and loads nothing more, would hold.
pub fn done_loading() {
    spare().take();
}

/// Loads the object. With `pins`, each map is taken from `pins/NAME` if it is there, otherwise made and pinned
/// there.
///
/// # Errors
/// When the kernel refuses the object; the chain holds the verifier's words.
pub fn load(features: Features, level: EventLevel, pins: Option<&Path>) -> anyhow::Result<Ebpf> {
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
    let mut loader = spare().take().unwrap_or_default();
    loader
        .override_global(names::HAVE_INGRESS_IFINDEX, flag(features.ingress_ifindex), true)
        .override_global(names::HAVE_NETNS_COOKIE, flag(features.netns_cookie), true)
        .override_global(names::HAVE_MPTCP_HELPER, flag(features.mptcp_helper), true)
        .override_global(aya_log::LEVEL, level.as_static(), true)
        .map_max_entries(names::PENDING_LRU, lru_entries(MAX_PENDING_LRU, cpus))
        .map_max_entries(names::TICKETS, lru_entries(MAX_TICKETS, cpus))
        // Nobody writes it where the kernel tells a socket's namespace itself.
        .map_max_entries(names::SOCKET_NETNS, if features.netns_cookie { 1 } else { MAX_SOCKET_NETNS });
    if let Some(dir) = pins {
        for name in names::ALL_MAPS {
            loader.map_pin_path(name, dir.join(name));
        }
    }
    let mut ebpf = loader.load(OBJECT).context("failed to load the eBPF object")?;
    if pins.is_none() {
        *spare() = Some(loader);
    }
    load_programs(&mut ebpf, features)?;
    Ok(ebpf)
}

/// The object with the maps of a pinned instance. Nothing is made: a pin that is missing, or is removed meanwhile, is
/// not made again, as aya would by its path.
///
/// # Errors
/// When a pin is missing, or the caller may not open it.
pub(crate) fn open_pinned(dir: &Path) -> anyhow::Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    let mut pins = Vec::new();
    for name in names::ALL_MAPS {
        let path = dir.join(name);
        let pin = open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .with_context(|| format!("failed to open {}", path.display()))?;
        loader.map_pin_path(name, PathBuf::from(format!("/proc/self/fd/{}", pin.as_raw_fd())));
        pins.push(pin);
    }
    loader.load(OBJECT).context("failed to open the pinned maps")
}

const fn flag(on: bool) -> &'static u8 {
    if on { &1 } else { &0 }
}

/// An LRU map keeps up to 128 entries aside for each CPU (`LOCAL_FREE_TARGET`, kernel/bpf/bpf_lru_list.c), and when
/// that is all of them, it takes entries away that are new.
fn lru_entries(minimum: u32, cpus: usize) -> u32 {
    u32::try_from(256 * cpus).unwrap_or(u32::MAX).max(minimum)
}

fn load_programs(ebpf: &mut Ebpf, features: Features) -> anyhow::Result<()> {
    let refused = |name: &'static str| move |error| refusal(name, error);
    program::<SkLookup>(ebpf, names::PROG_STEER)?.load().map_err(refused(names::PROG_STEER))?;
    program::<SockOps>(ebpf, names::PROG_SOCK_OPS)?.load().map_err(refused(names::PROG_SOCK_OPS))?;
    if features.mptcp_helper {
        program::<SchedClassifier>(ebpf, names::PROG_STEER_TC)?
            .load()
            .map_err(refused(names::PROG_STEER_TC))?;
    }
    if !features.netns_cookie {
        for name in [names::PROG_POST_BIND4, names::PROG_POST_BIND6] {
            program::<CgroupSock>(ebpf, name)?.load().map_err(refused(name))?;
        }
        for name in [names::PROG_CONNECT4, names::PROG_CONNECT6] {
            program::<CgroupSockAddr>(ebpf, name)?.load().map_err(refused(name))?;
        }
    }
    Ok(())
}

/// The kernel's reason, with the last words of the verifier: its whole log can be megabytes.
pub(crate) fn refusal(name: &str, error: ProgramError) -> anyhow::Error {
    const LAST_WORDS: usize = 400;
    let ProgramError::LoadError { io_error, verifier_log } = &error else {
        return anyhow::Error::new(error).context(format!("failed to load program {name}"));
    };
    let log = verifier_log.to_string();
    let start = log.char_indices().rev().nth(LAST_WORDS).map_or(0, |(at, _)| at);
    anyhow::anyhow!(
        "failed to load program {name}: {io_error}; the verifier's last words: {}",
        log[start..].trim()
    )
}

/// A program of the loaded object by name.
///
/// # Errors
/// When the object has no such program, or of another type; both mean a broken build.
pub fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    ebpf.program_mut(name)
        .with_context(|| format!("program {name} is missing from the eBPF object: rebuild bridge-user"))?
        .try_into()
        .with_context(|| format!("program {name} has an unexpected type: rebuild bridge-user"))
}

/// The attached programs of one instance; dropping one detaches it unless it was pinned.
#[expect(dead_code, reason = "held for their Drop, which detaches the programs")]
pub struct Links {
    /// (program, link) of those that track listeners.
    pub tracking: Vec<(&'static str, OwnedFd)>,
    /// The steering program's.
    pub steering: FdLink,
}

/// Attaches the programs to the namespace and the root cgroup.
///
/// # Errors
/// When the kernel refuses an attachment; those made before are undone by drop.
pub fn attach(
    ebpf: &mut Ebpf,
    features: Features,
    namespace: &Namespace,
    cgroup: &File,
) -> anyhow::Result<Links> {
    let mut tracking = Vec::new();
    for &name in programs::tracking(features) {
        tracking.push((name, attach_to_cgroup(ebpf, name, cgroup)?));
    }
    let steering = attach_steer(ebpf, namespace)
        .with_context(|| format!("failed to attach program {}", names::PROG_STEER))?;
    Ok(Links { tracking, steering })
}

/// Attaches a loaded program to the cgroup hook it is made for, for as long as the link is held or pinned.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn attach_to_cgroup(ebpf: &Ebpf, name: &str, cgroup: &File) -> anyhow::Result<OwnedFd> {
    let hook = match name {
        names::PROG_POST_BIND4 => bpf_attach_type::BPF_CGROUP_INET4_POST_BIND,
        names::PROG_POST_BIND6 => bpf_attach_type::BPF_CGROUP_INET6_POST_BIND,
        names::PROG_CONNECT4 => bpf_attach_type::BPF_CGROUP_INET4_CONNECT,
        names::PROG_CONNECT6 => bpf_attach_type::BPF_CGROUP_INET6_CONNECT,
        names::PROG_GETPEERNAME4 => bpf_attach_type::BPF_CGROUP_INET4_GETPEERNAME,
        names::PROG_GETPEERNAME6 => bpf_attach_type::BPF_CGROUP_INET6_GETPEERNAME,
        names::PROG_GETSOCKNAME4 => bpf_attach_type::BPF_CGROUP_INET4_GETSOCKNAME,
        names::PROG_GETSOCKNAME6 => bpf_attach_type::BPF_CGROUP_INET6_GETSOCKNAME,
        names::PROG_SOCK_RELEASE => bpf_attach_type::BPF_CGROUP_INET_SOCK_RELEASE,
        _ => bpf_attach_type::BPF_CGROUP_SOCK_OPS,
    };
    let link = sys::link_to_cgroup(program_fd(ebpf, name)?.as_fd(), cgroup.as_fd(), hook);
    // BPF_CGROUP_MAX_PROGS, kernel/bpf/cgroup.c.
    if link.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::E2BIG)) {
        bail!(
            "failed to attach program {name}: the kernel takes at most 64 of a kind on one cgroup, and every network \
             namespace with attachments has one there: detach what another one does not need (bridge-user detach --all)"
        );
    }
    link.with_context(|| format!("failed to attach program {name}"))
}

/// Attaches the loaded steering program to one more namespace.
///
/// # Errors
/// When the kernel refuses.
pub fn attach_steer(ebpf: &mut Ebpf, namespace: &Namespace) -> anyhow::Result<FdLink> {
    let steer: &mut SkLookup = program(ebpf, names::PROG_STEER)?;
    let id = steer.attach(namespace.file())?;
    Ok(steer.take_link(id)?.into())
}

/// The descriptor of a loaded program, for `BPF_LINK_UPDATE`.
///
/// # Errors
/// When the program is not loaded.
pub fn program_fd<'a>(ebpf: &'a Ebpf, name: &str) -> anyhow::Result<&'a aya::programs::ProgramFd> {
    ebpf.program(name)
        .with_context(|| format!("program {name} is missing from the eBPF object: rebuild bridge-user"))?
        .fd()
        .with_context(|| format!("program {name} is not loaded"))
}

/// Name, key and value size in bytes of every map an object declares.
#[cfg(test)]
pub(crate) fn declared_maps(object: &[u8]) -> std::collections::BTreeMap<String, (u32, u32)> {
    let object = aya_obj::Object::parse(object).unwrap();
    let maps = object.maps.iter().filter(|(name, _)| !name.starts_with(".rodata"));
    maps.map(|(name, map)| (name.clone(), (map.key_size(), map.value_size()))).collect()
}

/// The same of the maps that `bridge_common` lists.
#[cfg(test)]
pub(crate) fn shared_layout(
    maps: &[bridge_common::registry::MapRow],
) -> std::collections::BTreeMap<String, (u32, u32)> {
    maps.iter().map(|map| (map.name.to_owned(), (map.key_size as u32, map.value_size as u32))).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn object_has_every_program() {
        let object = aya_obj::Object::parse(OBJECT).unwrap();
        let declared: BTreeSet<_> = object.programs.keys().map(String::as_str).collect();
        assert_eq!(declared, names::ALL_PROGRAMS.into());
    }

    #[test]
    fn an_lru_map_has_room_for_every_cpu() {
        assert_eq!([1, 32, 128].map(|cpus| lru_entries(8192, cpus)), [8192, 8192, 32768]);
    }

    #[test]
    fn object_has_every_map_with_the_shared_layout() {
        assert_eq!(declared_maps(OBJECT), shared_layout(&names::MAPS));
    }
}
