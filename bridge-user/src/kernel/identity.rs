//! The programs of the loopback identity: on the root cgroup, attached when the first attachment wants them.
//!
//! Invariants: once attached they stay as long as the instance, whatever becomes of the attachments, so that a
//! connection's service is told the same to the end. The program that notes connections comes last: what is noted is
//! always told.

use std::{fs::File, os::fd::AsFd as _, path::Path};

use anyhow::Context as _;
use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSockAddr, SockOps, links::FdLink},
};
use bridge_common::names;

use super::{object, pins::link_name, sys};

/// Every program, in the order they are attached.
pub const PROGRAMS: [&str; 5] =
    [names::PROG_PEER4, names::PROG_PEER6, names::PROG_OWN4, names::PROG_OWN6, names::PROG_NOTE_LOCAL];

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
            attach(ebpf, program, cgroup)?
                .pin(&pin)
                .with_context(|| format!("failed to pin {}", pin.display()))?;
        }
    }
    Ok(())
}

/// Attaches all of them, for as long as the links are held.
///
/// # Errors
/// When the kernel refuses one.
pub fn attach_for_now(ebpf: &mut Ebpf, cgroup: &File) -> anyhow::Result<Vec<FdLink>> {
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

fn attach(ebpf: &mut Ebpf, program: &'static str, cgroup: &File) -> anyhow::Result<FdLink> {
    load(ebpf, program)?;
    let failed = || format!("failed to attach program {program}");
    let mode = CgroupAttachMode::Single;
    if program == names::PROG_NOTE_LOCAL {
        let note: &mut SockOps = object::program(ebpf, program)?;
        let id = note.attach(cgroup, mode).with_context(failed)?;
        return Ok(note.take_link(id)?.try_into()?);
    }
    let tell: &mut CgroupSockAddr = object::program(ebpf, program)?;
    let id = tell.attach(cgroup, mode).with_context(failed)?;
    Ok(tell.take_link(id)?.try_into()?)
}

fn load(ebpf: &mut Ebpf, program: &'static str) -> anyhow::Result<()> {
    let loaded = if program == names::PROG_NOTE_LOCAL {
        object::program::<SockOps>(ebpf, program)?.load()
    } else {
        object::program::<CgroupSockAddr>(ebpf, program)?.load()
    };
    loaded.map_err(|error| object::refusal(program, error))
}
