//! The tc program on bridges: attaching it, finding out where it is, taking it off.
//!
//! Invariants: what is attached to an interface is named by a pin in the instance's directory, made before and
//! removed after it, so that whoever removes the directory knows what to undo: `link_steer_tc_<ifindex>` is a TCX
//! link (Linux 6.6), `filter_steer_tc_<ifindex>` stands for a clsact filter, `qdisc_<ifindex>` for a clsact qdisc
//! that was not there before. Other programs' filters and qdiscs are never touched. Only what is attached to an
//! existing interface is undone; the kernel removes the rest with the interface. Interfaces are those of the namespace
//! that is passed, and everything that names one works in it.

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::FdLink,
        tc::{
            self, NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcError, TcHandle,
        },
    },
};
use bridge_common::names;

use super::{object, qdisc};
use crate::{
    kernel::sys,
    model::programs::{self, TcHook, qdisc_mark},
    net::{
        NetError,
        links::{self, Link},
        namespace::Namespace,
    },
};

/// Priority and handle of the clsact filter. It decides nothing for others, so it can be first.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0xb7d9, 1);
const INGRESS: TcAttachType = TcAttachType::Ingress;

fn pin(dir: &Path, hook: TcHook, ifindex: u32) -> PathBuf {
    dir.join(programs::tc_pin(hook, ifindex))
}

/// A process that was killed may have left the mark without what it stands for.
fn set_mark(program: &mut SchedClassifier, mark: &Path) -> anyhow::Result<()> {
    if mark.exists() {
        return Ok(());
    }
    program.pin(mark).with_context(|| format!("failed to pin {}", mark.display()))
}

/// Takes the program off every interface.
///
/// # Errors
/// When something cannot be undone; the rest still is.
pub fn sweep(namespace: &Namespace, dir: &Path) -> anyhow::Result<()> {
    let there = attached(dir).with_context(|| format!("failed to read {}", dir.display()))?;
    let outcomes: Vec<_> = there.into_iter().map(|ifindex| remove(namespace, dir, ifindex)).collect();
    outcomes.into_iter().collect()
}

/// Attaches the loaded program to an interface.
///
/// # Errors
/// When the kernel refuses; nothing is left attached then.
pub fn attach(
    namespace: &Namespace,
    dir: &Path,
    ebpf: &mut Ebpf,
    ifindex: u32,
    hook: TcHook,
) -> anyhow::Result<()> {
    let link = links::link_by_index(namespace, ifindex)?.with_context(|| {
        format!("failed to attach program steer_tc to interface {ifindex}: it is gone: attach again")
    })?;
    let failed = || format!("failed to attach program {} to {}", names::PROG_STEER_TC, link.name);
    let program: &mut SchedClassifier = object::program(ebpf, names::PROG_STEER_TC)?;
    match hook {
        TcHook::Tcx => {
            let id = namespace.run(|| attach_tcx(program, &link.name))?.with_context(failed)?;
            let fd: FdLink = program.take_link(id)?.try_into()?;
            fd.pin(pin(dir, hook, ifindex)).with_context(failed)?;
            Ok(())
        }
        TcHook::Clsact => attach_filter(namespace, dir, program, &link)
            .inspect_err(|_| drop(remove(namespace, dir, ifindex)))
            .with_context(failed),
    }
}

/// Attaches the loaded program to an interface of a namespace that will not be there for long, and leaves no pin. A
/// filter goes with its namespace: nothing is to take it off from a thread that may be elsewhere by then.
///
/// # Errors
/// When the kernel refuses.
pub fn attach_for_now(
    namespace: &Namespace,
    ebpf: &mut Ebpf,
    interface: &str,
    hook: TcHook,
) -> anyhow::Result<()> {
    let program: &mut SchedClassifier = object::program(ebpf, names::PROG_STEER_TC)?;
    match hook {
        TcHook::Tcx => namespace.run(|| attach_tcx(program, interface))?.map(drop)?,
        TcHook::Clsact => {
            namespace.run(|| tc::qdisc_add_clsact(interface))??;
            let id = namespace.run(|| attach_clsact(program, interface))??;
            keep_filter(program, id)?;
        }
    }
    Ok(())
}

fn attach_tcx(program: &mut SchedClassifier, interface: &str) -> Result<SchedClassifierLinkId, ProgramError> {
    program.attach_with_options(interface, INGRESS, TcAttachOptions::TcxOrder(LinkOrder::default()))
}

fn attach_clsact(
    program: &mut SchedClassifier,
    interface: &str,
) -> Result<SchedClassifierLinkId, ProgramError> {
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    program.attach_with_options(interface, INGRESS, TcAttachOptions::Netlink(options))
}

fn attach_filter(
    namespace: &Namespace,
    dir: &Path,
    program: &mut SchedClassifier,
    link: &Link,
) -> anyhow::Result<()> {
    if !qdisc::has_clsact(namespace, link.index)? {
        set_mark(program, &dir.join(qdisc_mark(link.index)))?;
        namespace.run(|| tc::qdisc_add_clsact(&link.name))??;
    }
    set_mark(program, &pin(dir, TcHook::Clsact, link.index))?;
    let id = namespace.run(|| attach_clsact(program, &link.name))??;
    keep_filter(program, id)
}

/// Without its owner the filter stays until it is removed by priority and handle.
fn keep_filter(program: &mut SchedClassifier, id: SchedClassifierLinkId) -> anyhow::Result<()> {
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Replaces the program on an interface by the loaded one. An interface that is gone is no error.
///
/// # Errors
/// When the kernel refuses.
pub fn replace(namespace: &Namespace, dir: &Path, ebpf: &mut Ebpf, ifindex: u32) -> anyhow::Result<()> {
    let Some(link) = links::link_by_index(namespace, ifindex)? else { return Ok(()) };
    let failed = || format!("failed to replace program {} on {}", names::PROG_STEER_TC, link.name);
    let pin = pin(dir, TcHook::Tcx, ifindex);
    if pin.exists() {
        let old = sys::obj_get(&pin).with_context(failed)?;
        return sys::link_update(old.as_fd(), object::program_fd(ebpf, names::PROG_STEER_TC)?.as_fd())
            .with_context(failed);
    }
    let program: &mut SchedClassifier = object::program(ebpf, names::PROG_STEER_TC)?;
    let id = namespace.run(|| replace_filter(program, &link.name))?.with_context(failed)?;
    keep_filter(program, id)
}

fn replace_filter(
    program: &mut SchedClassifier,
    interface: &str,
) -> Result<SchedClassifierLinkId, ProgramError> {
    let old = SchedClassifierLink::attached(interface, INGRESS, PRIORITY, HANDLE, None)?;
    program.attach_to_link(old)
}

/// Takes the program off an interface, and the qdisc if it was made for it. What is not there is no error.
///
/// # Errors
/// When the kernel refuses; the pins stay then, so that it can be tried again.
pub fn remove(namespace: &Namespace, dir: &Path, ifindex: u32) -> anyhow::Result<()> {
    let link = links::link_by_index(namespace, ifindex)?;
    let failed = || format!("failed to take program {} off interface {ifindex}", names::PROG_STEER_TC);
    if let Some(link) = &link {
        sys::detach_pinned(&pin(dir, TcHook::Tcx, ifindex)).with_context(failed)?;
        remove_filter(namespace, dir, link).with_context(failed)?;
        remove_qdisc(namespace, dir, link).with_context(failed)?;
    }
    let pins = TcHook::ALL.map(|hook| pin(dir, hook, ifindex));
    for pin in pins.iter().chain([&dir.join(qdisc_mark(ifindex))]) {
        match fs::remove_file(pin) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).with_context(failed),
            _ => {}
        }
    }
    Ok(())
}

/// Takes the program off every interface of the namespace where it is a filter, whoever put it there.
///
/// # Errors
/// When the kernel refuses; the others are taken off nevertheless.
pub fn remove_everywhere(namespace: &Namespace) -> anyhow::Result<()> {
    let mut first_error = None;
    for link in links::links(namespace)? {
        if let Err(error) = remove_found(namespace, &link) {
            first_error.get_or_insert(error);
        }
    }
    first_error.map_or(Ok(()), Err)
}

fn remove_found(namespace: &Namespace, link: &Link) -> anyhow::Result<()> {
    if !qdisc::has_clsact(namespace, link.index)?
        || !qdisc::has_ingress_filter(namespace, link.index, PRIORITY, HANDLE.into())?
    {
        return Ok(());
    }
    namespace
        .run(|| tc::qdisc_detach_program(&link.name, INGRESS, names::PROG_STEER_TC))?
        .with_context(|| format!("failed to take program {} off {}", names::PROG_STEER_TC, link.name))?;
    Ok(())
}

fn remove_filter(namespace: &Namespace, dir: &Path, link: &Link) -> anyhow::Result<()> {
    if !pin(dir, TcHook::Clsact, link.index).exists() {
        return Ok(());
    }
    match namespace.run(|| tc::qdisc_detach_program(&link.name, INGRESS, names::PROG_STEER_TC))? {
        // A process that was killed made the mark and not the filter.
        Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => Ok(result?),
    }
}

fn remove_qdisc(namespace: &Namespace, dir: &Path, link: &Link) -> anyhow::Result<()> {
    if dir.join(qdisc_mark(link.index)).exists()
        && qdisc::has_clsact(namespace, link.index)?
        && !qdisc::has_filters(namespace, link.index)?
    {
        qdisc::delete_clsact(namespace, link.index)?;
    }
    Ok(())
}

/// Whether the program is attached to an interface. A filter, unlike a link, anybody can take off.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn is_attached(namespace: &Namespace, dir: &Path, ifindex: u32) -> Result<bool, NetError> {
    if pin(dir, TcHook::Tcx, ifindex).exists() {
        return Ok(true);
    }
    Ok(pin(dir, TcHook::Clsact, ifindex).exists()
        && qdisc::has_ingress_filter(namespace, ifindex, PRIORITY, HANDLE.into())?)
}

/// Whether something outside the directory has to be undone with it.
pub fn has_marks(dir: &Path) -> bool {
    attached(dir).is_ok_and(|all| !all.is_empty())
}

/// How the program is attached to an interface, or was about to be.
pub fn hook(dir: &Path, ifindex: u32) -> TcHook {
    if pin(dir, TcHook::Tcx, ifindex).exists() { TcHook::Tcx } else { TcHook::Clsact }
}

/// The interfaces the program is attached to, or was about to be.
///
/// # Errors
/// When the directory cannot be read.
pub fn attached(dir: &Path) -> io::Result<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let is_mark =
            ["link_steer_tc_", "filter_steer_tc_", "qdisc_"].iter().any(|start| name.starts_with(start));
        let index = name.rsplit('_').next().and_then(|index| index.parse::<u32>().ok());
        found.extend(index.filter(|_| is_mark));
    }
    Ok(found)
}
