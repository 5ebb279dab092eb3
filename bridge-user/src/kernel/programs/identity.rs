//! The programs of the loopback identity: on the root cgroup, attached before the first attachment that wants them.
//!
//! Invariant: once attached they stay as long as the instance, whatever becomes of the attachments, so that a
//! connection's identity never changes.

use std::{
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use anyhow::Context as _;
use aya::{
    Ebpf,
    programs::{CgroupSock, CgroupSockAddr},
};
use bridge_common::names;

use super::{link_name, object};
use crate::kernel::sys;

/// Every program, in attach order: entries of closed sockets are removed from the start.
pub const PROGRAMS: [&str; 5] = [
    names::PROG_SOCK_RELEASE,
    names::PROG_GETPEERNAME4,
    names::PROG_GETPEERNAME6,
    names::PROG_GETSOCKNAME4,
    names::PROG_GETSOCKNAME6,
];

/// Whether all of them are attached to the instance in `dir`.
pub fn is_attached(dir: &Path) -> bool {
    PROGRAMS.iter().all(|program| dir.join(link_name(program)).exists())
}

/// Attaches those that are missing.
///
/// # Errors
/// When the kernel refuses one; those attached before stay, and do nothing without an attachment that wants them.
pub fn ensure(dir: &Path, ebpf: &mut Ebpf, cgroup: &File) -> anyhow::Result<()> {
    for program in PROGRAMS {
        let pin = dir.join(link_name(program));
        if !pin.exists() {
            let link = attach(ebpf, program, cgroup)?;
            sys::obj_pin(link.as_fd(), &pin).with_context(|| format!("failed to pin {}", pin.display()))?;
        }
    }
    Ok(())
}

/// Attaches all of them, for as long as the links are held.
///
/// # Errors
/// When the kernel refuses one.
pub fn attach_for_now(ebpf: &mut Ebpf, cgroup: &File) -> anyhow::Result<Vec<OwnedFd>> {
    PROGRAMS.iter().map(|program| attach(ebpf, program, cgroup)).collect()
}

/// Replaces those that are attached by the loaded object's.
///
/// # Errors
/// When the kernel refuses.
pub fn upgrade(dir: &Path, ebpf: &mut Ebpf) -> anyhow::Result<()> {
    for program in PROGRAMS {
        let pin = dir.join(link_name(program));
        if pin.exists() {
            load(ebpf, program)?;
            let link = sys::obj_get(&pin).with_context(|| format!("failed to open {}", pin.display()))?;
            sys::link_update(link.as_fd(), object::program_fd(ebpf, program)?.as_fd())
                .with_context(|| format!("failed to replace program {program}"))?;
        }
    }
    Ok(())
}

fn attach(ebpf: &mut Ebpf, program: &'static str, cgroup: &File) -> anyhow::Result<OwnedFd> {
    load(ebpf, program)?;
    object::attach_to_cgroup(ebpf, program, cgroup)
}

fn load(ebpf: &mut Ebpf, program: &'static str) -> anyhow::Result<()> {
    let loaded = match program {
        names::PROG_SOCK_RELEASE => object::program::<CgroupSock>(ebpf, program)?.load(),
        _ => object::program::<CgroupSockAddr>(ebpf, program)?.load(),
    };
    loaded.map_err(|error| object::refusal(program, error))
}
