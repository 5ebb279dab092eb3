//! The bpf(2) commands and socket options that aya and nix do not offer. All of the kernel module's `unsafe` is
//! here.

pub(crate) mod objects;

use std::{
    ffi::CString,
    io, mem,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya::Pod;
use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_insn, bpf_link_info, bpf_prog_type};

/// `BPF_SK_LOOKUP`, the expected attach type of sk_lookup programs.
const BPF_SK_LOOKUP: u32 = 36;
/// Offset of `ingress_ifindex` in the uapi `struct bpf_sk_lookup`.
const INGRESS_IFINDEX_OFFSET: i16 = 64;

fn bpf(cmd: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: `attr` is a valid, zero-initialised union of the size we pass, and pointers inside it are to live
    // memory of the callers below.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, cmd as libc::c_long, attr, size_of::<bpf_attr>()) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

fn zeroed() -> bpf_attr {
    // SAFETY: every field of the union is an integer, so all zeroes is a valid value.
    unsafe { mem::zeroed() }
}

fn owned_fd(raw: i64) -> OwnedFd {
    // SAFETY: the kernel just returned this descriptor to us and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(raw as i32) }
}

/// Opens a pinned object.
pub(crate) fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    bpf(bpf_cmd::BPF_OBJ_GET, &mut attr).map(owned_fd)
}

/// Pins an object.
pub(crate) fn obj_pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = object.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Attaches a program to a cgroup by a link (Linux 5.7), whatever the kernel calls its version: aya does it another way
/// where it cannot parse that, and release candidates of Debian's are such.
pub(crate) fn link_to_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    hook: bpf_attach_type,
) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.link_create.__bindgen_anon_2.target_fd = cgroup.as_raw_fd() as u32;
    attr.link_create.attach_type = hook as u32;
    bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr).map(owned_fd)
}

/// Replaces the program behind a link in one step (Linux 5.7; for network-namespace links 5.8).
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_update.link_fd = link.as_raw_fd() as u32;
    attr.link_update.__bindgen_anon_1.new_prog_fd = program.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Detaches the program of a pinned link at once (Linux 5.9); the pin stays. Removing the pin alone lets the kernel do
/// it later: after a grace period, and from a work queue. No pin is no error.
pub(crate) fn detach_pinned(path: &Path) -> io::Result<()> {
    let link = match obj_get(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        link => link?,
    };
    objects::detach_link(link.as_fd())
}

/// Facts about a link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkFacts {
    /// Id of the program behind the link.
    pub(crate) program_id: u32,
    /// For a network-namespace link: the namespace's inode, or 0 once it is gone.
    pub(crate) netns_inode: u32,
}

/// Reads what the kernel knows about a link.
pub(crate) fn link_facts(link: BorrowedFd<'_>) -> io::Result<LinkFacts> {
    // SAFETY: every field of the struct is an integer or a union of integers.
    let mut info: bpf_link_info = unsafe { mem::zeroed() };
    let mut attr = zeroed();
    attr.info.bpf_fd = link.as_raw_fd() as u32;
    attr.info.info_len = size_of::<bpf_link_info>() as u32;
    attr.info.info = (&raw mut info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    // SAFETY: the kernel filled the variant of the link's type; any bit pattern is valid for integers.
    let netns_inode = unsafe { info.__bindgen_anon_1.netns.netns_ino };
    Ok(LinkFacts { program_id: info.prog_id, netns_inode })
}

fn element(map: BorrowedFd<'_>) -> bpf_attr {
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr
}

/// Inserts a socket into a SOCKHASH with 8-byte values. `flags` as for `BPF_MAP_UPDATE_ELEM`.
pub(crate) fn sockhash_insert<K: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    socket: BorrowedFd<'_>,
    flags: u64,
) -> io::Result<()> {
    let value = socket.as_raw_fd() as u64;
    let mut attr = element(map);
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = (&raw const value) as u64;
    attr.__bindgen_anon_2.flags = flags;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// The cookie of the socket under `key` in a SOCKHASH with 8-byte values (Linux 5.7).
pub(crate) fn sockhash_cookie<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<u64> {
    let mut value = 0u64;
    let mut attr = element(map);
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = (&raw mut value) as u64;
    bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr)?;
    Ok(value)
}

/// Writes `value` under `key`. `flags` as for `BPF_MAP_UPDATE_ELEM`. The sizes are the map's, see its definition.
pub(crate) fn map_insert<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
    flags: u64,
) -> io::Result<()> {
    let mut attr = element(map);
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = std::ptr::from_ref(value) as u64;
    attr.__bindgen_anon_2.flags = flags;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// The value under `key`.
pub(crate) fn map_lookup<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<V> {
    // SAFETY: `V` is plain old data, for which all zeroes is valid.
    let mut value: V = unsafe { mem::zeroed() };
    let mut attr = element(map);
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = (&raw mut value) as u64;
    bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr)?;
    Ok(value)
}

/// Removes the entry under `key`.
pub(crate) fn map_delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let mut attr = element(map);
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr).map(drop)
}

/// The key after `key`, or the first; `None` at the end.
pub(crate) fn map_next_key<K: Pod>(map: BorrowedFd<'_>, key: Option<&K>) -> io::Result<Option<K>> {
    // SAFETY: `K` is plain old data, for which all zeroes is valid.
    let mut next: K = unsafe { mem::zeroed() };
    let mut attr = element(map);
    attr.__bindgen_anon_2.key = key.map_or(0, |k| std::ptr::from_ref(k) as u64);
    attr.__bindgen_anon_2.__bindgen_anon_1.next_key = (&raw mut next) as u64;
    match bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) {
        Ok(_) => Ok(Some(next)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets an integer option of a socket.
pub(crate) fn set_int_option(
    socket: impl AsFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel reads `len` bytes from `value`.
    let ret = unsafe { libc::setsockopt(fd, level, option, (&raw const value).cast(), len) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What `TCP_INFO` says of a socket (the counters: Linux 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TcpFacts {
    /// `tcpi_bytes_acked`: bytes the peer has acknowledged; the SYN counts as one.
    pub(crate) acknowledged: u64,
    /// `tcpi_bytes_received`: bytes that came from the peer, each once; the FIN counts as one.
    pub(crate) received: u64,
    /// The peer's FIN has come, or may have.
    pub(crate) fin: bool,
    /// The connection is over, after FIN or a reset: TCP does not tell which.
    pub(crate) closed: bool,
}

/// Reads what TCP knows of a socket, under its lock.
pub(crate) fn tcp_facts(socket: impl AsFd) -> io::Result<TcpFacts> {
    /// Offsets in `struct tcp_info`, in words.
    const BYTES_ACKED: usize = 120 / 8;
    const BYTES_RECEIVED: usize = 128 / 8;
    /// `TCP_TIME_WAIT`, `TCP_CLOSE`, `TCP_CLOSE_WAIT`, `TCP_LAST_ACK`, `TCP_CLOSING`.
    const AFTER_FIN: [u8; 5] = [6, CLOSE, 8, 9, 11];
    const CLOSE: u8 = 7;
    let mut info = [0u64; BYTES_RECEIVED + 1];
    let mut len = size_of_val(&info) as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `len` bytes to `info`.
    let ret = unsafe {
        libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut len)
    };
    if ret != 0 {
        return Err(io::Error::last_os_error());
    }
    let [state, ..] = info[0].to_ne_bytes();
    Ok(TcpFacts {
        acknowledged: info[BYTES_ACKED],
        received: info[BYTES_RECEIVED],
        fin: AFTER_FIN.contains(&state),
        closed: state == CLOSE,
    })
}

fn int_ioctl(socket: impl AsFd, request: libc::Ioctl) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: both requests below write one int.
    let ret = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), request, &raw mut bytes) };
    if ret == 0 { Ok(u64::try_from(bytes).unwrap_or(0)) } else { Err(io::Error::last_os_error()) }
}

/// How many bytes wait to be read from a TCP socket that is in no socket map (`SIOCINQ`).
pub(crate) fn tcp_unread(socket: impl AsFd) -> io::Result<u64> {
    int_ioctl(socket, libc::FIONREAD)
}

/// How many bytes of a TCP socket's send queue are not acknowledged (`SIOCOUTQ`).
pub(crate) fn tcp_unacknowledged(socket: impl AsFd) -> io::Result<u64> {
    int_ioctl(socket, libc::TIOCOUTQ)
}

/// Whether the verifier lets an sk_lookup program read `ingress_ifindex`.
pub(crate) fn sk_lookup_has_ingress_ifindex() -> io::Result<bool> {
    const LDX_MEM_W: u8 = 0x61;
    let mut load = insn(LDX_MEM_W, 0, INGRESS_IFINDEX_OFFSET, 0);
    load.set_src_reg(1);
    let program = [load, insn(MOV_IMM, 0, 0, 1), insn(EXIT, 0, 0, 0)];
    match load_program(bpf_prog_type::BPF_PROG_TYPE_SK_LOOKUP, BPF_SK_LOOKUP, &program) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EINVAL)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether tc programs can be attached by a link: a kernel that knows the kind of link looks for the interface next,
/// and there is none with this index.
pub(crate) fn has_tcx() -> io::Result<bool> {
    /// `BPF_TCX_INGRESS`.
    const TCX_INGRESS: u32 = 46;
    const NO_INTERFACE: u32 = i32::MAX as u32;
    let program = load_program(
        bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS,
        0,
        &[insn(MOV_IMM, 0, 0, 0), insn(EXIT, 0, 0, 0)],
    )?;
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.link_create.__bindgen_anon_2.target_ifindex = NO_INTERFACE;
    attr.link_create.attach_type = TCX_INGRESS;
    match bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr).map(owned_fd) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => Ok(false),
        Err(error) => Err(error),
    }
}

const MOV_IMM: u8 = 0xb7;
const EXIT: u8 = 0x95;

fn load_program(kind: bpf_prog_type, attach: u32, program: &[bpf_insn]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let mut attr = zeroed();
    // SAFETY: writing union fields of `Copy` integers.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = kind as u32;
    load.expected_attach_type = attach;
    load.insns = program.as_ptr() as u64;
    load.insn_cnt = program.len() as u32;
    load.license = license.as_ptr() as u64;
    bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr).map(owned_fd)
}

fn insn(code: u8, dst: u8, off: i16, imm: i32) -> bpf_insn {
    // SAFETY: every field is an integer.
    let mut insn: bpf_insn = unsafe { mem::zeroed() };
    insn.code = code;
    insn.off = off;
    insn.imm = imm;
    insn.set_dst_reg(dst);
    insn
}
