//! Objects that are found by id or by where they are attached, whatever mount hides their pins.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use aya_obj::generated::{bpf_cmd, bpf_link_info, bpf_link_type};

use super::{BPF_SK_LOOKUP, bpf, owned_fd, zeroed};

/// `BPF_LINK_TYPE_TCX`: a tc program on an interface (Linux 6.6).
const TCX: u32 = bpf_link_type::BPF_LINK_TYPE_TCX as u32;

const NETNS: u32 = bpf_link_type::BPF_LINK_TYPE_NETNS as u32;

/// A link, whatever it attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkFound {
    /// Its id.
    pub(crate) id: u32,
    /// That of its program.
    pub(crate) program: u32,
    /// It attaches the program to an interface.
    pub(crate) on_interface: bool,
    /// The inode of the network namespace that it attaches the program to; 0 for any other link, and once that is gone.
    pub(crate) netns: u32,
}

/// Ids of the programs that a network namespace runs for sk_lookup, in the order they run. Needs CAP_NET_ADMIN.
pub(crate) fn sk_lookup_programs(namespace: impl AsFd) -> io::Result<Vec<u32>> {
    /// `netns_bpf_max_progs`, kernel/bpf/net_namespace.c.
    const MOST: usize = 64;
    let mut ids = [0u32; MOST];
    let mut attr = zeroed();
    attr.query.__bindgen_anon_1.target_fd = namespace.as_fd().as_raw_fd() as u32;
    attr.query.attach_type = BPF_SK_LOOKUP;
    attr.query.prog_ids = ids.as_mut_ptr() as u64;
    attr.query.__bindgen_anon_2.prog_cnt = MOST as u32;
    bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr)?;
    // SAFETY: both variants of the union are the same integer.
    let count = unsafe { attr.query.__bindgen_anon_2.prog_cnt };
    Ok(ids.into_iter().take(count as usize).collect())
}

/// The id after `id`, 0 for the first; `None` at the end. Needs CAP_SYS_ADMIN, as [`link_by_id`].
pub(crate) fn next_link(id: u32) -> io::Result<Option<u32>> {
    let mut attr = zeroed();
    attr.__bindgen_anon_6.__bindgen_anon_1.start_id = id;
    match bpf(bpf_cmd::BPF_LINK_GET_NEXT_ID, &mut attr) {
        // SAFETY: this variant is the one of the command, and made of integers.
        Ok(_) => Ok(Some(unsafe { attr.__bindgen_anon_6.next_id })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens a link.
pub(crate) fn link_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    attr.__bindgen_anon_6.__bindgen_anon_1.link_id = id;
    bpf(bpf_cmd::BPF_LINK_GET_FD_BY_ID, &mut attr).map(owned_fd)
}

/// What a link is.
pub(crate) fn link_found(link: BorrowedFd<'_>) -> io::Result<LinkFound> {
    // SAFETY: every field of the struct is an integer or a union of integers.
    let mut info: bpf_link_info = unsafe { std::mem::zeroed() };
    let mut attr = zeroed();
    attr.info.bpf_fd = link.as_raw_fd() as u32;
    attr.info.info_len = size_of::<bpf_link_info>() as u32;
    attr.info.info = (&raw mut info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    let netns = match info.type_ {
        // SAFETY: this variant is the one of the type, and made of integers.
        NETNS => unsafe { info.__bindgen_anon_1.netns.netns_ino },
        _ => 0,
    };
    Ok(LinkFound { id: info.id, program: info.prog_id, on_interface: info.type_ == TCX, netns })
}

/// Detaches the program of a link at once (Linux 5.9), whoever holds or pinned it.
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_detach.link_fd = link.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop)
}
