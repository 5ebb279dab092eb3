//! The programs of the loopback identity: on the root cgroup, attached before the first attachment that wants them.
//!
//! Invariant: once attached they stay as long as the instance, whatever becomes of the attachments, so that a
//! connection's identity never changes.

use std::{collections::BTreeSet, fs::File, os::fd::OwnedFd, path::Path};

use aya::{
    Ebpf,
    programs::{CgroupSock, CgroupSockAddr},
};
use bridge_common::names;

use super::{link_name, object};
use crate::model::programs::IDENTITY;

/// Whether all of them are attached to the instance in `dir`.
pub fn is_attached(dir: &Path) -> bool {
    IDENTITY.iter().all(|program| dir.join(link_name(program)).exists())
}

/// Those that are attached to the instance in `dir`.
pub fn attached(dir: &Path) -> BTreeSet<&'static str> {
    IDENTITY.into_iter().filter(|program| dir.join(link_name(program)).exists()).collect()
}

/// Attaches all of them, for as long as the links are held.
///
/// # Errors
/// When the kernel refuses one.
pub fn attach_for_now(ebpf: &mut Ebpf, cgroup: &File) -> anyhow::Result<Vec<OwnedFd>> {
    IDENTITY.iter().map(|program| attach(ebpf, program, cgroup)).collect()
}

/// Attaches one, for as long as the link is held or pinned.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn attach(ebpf: &mut Ebpf, program: &'static str, cgroup: &File) -> anyhow::Result<OwnedFd> {
    load(ebpf, program)?;
    object::attach_to_cgroup(ebpf, program, cgroup)
}

/// Loads one, unless it is loaded.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn load(ebpf: &mut Ebpf, program: &'static str) -> anyhow::Result<()> {
    if object::program_fd(ebpf, program).is_ok() {
        return Ok(());
    }
    let loaded = match program {
        names::PROG_SOCK_RELEASE => object::program::<CgroupSock>(ebpf, program)?.load(),
        _ => object::program::<CgroupSockAddr>(ebpf, program)?.load(),
    };
    loaded.map_err(|error| object::refusal(program, error))
}
