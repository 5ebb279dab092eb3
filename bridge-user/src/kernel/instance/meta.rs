//! What an instance says of itself, in map `META`: layout, build, event level, namespace, and who attached it from
//! outside.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::Context as _;
use bridge_common::{ABI_VERSION, maps::Meta};
use rustix::net::sockopt::socket_cookie;

use crate::{
    kernel::{
        programs::object::BUILD_ID,
        state::maps::{Maps, owner_of},
    },
    model::{event_level::EventLevel, instance::InstanceMeta},
    net::{namespace::Namespace, proc_fd},
};

/// Writes `META` of a new instance. Until then its namespace cookie is 0 and no listener is accepted.
///
/// # Errors
/// When the namespace's cookie cannot be learnt or the map not written.
pub fn write(maps: &mut Maps, namespace: &Namespace, says: InstanceMeta) -> anyhow::Result<()> {
    let netns_cookie =
        netns_cookie(maps, namespace).context("failed to learn this network namespace's cookie")?;
    let numbers = Meta { next_id: 1, next_allow_set: 1, ..Meta::default() };
    let blank = Meta { abi: ABI_VERSION, netns_cookie, build: BUILD_ID, ..numbers };
    set(maps, says, blank)
}

/// Writes what an instance says from now on; layout, build and namespace stay.
///
/// # Errors
/// When the map cannot be read or written.
pub(super) fn rewrite(maps: &mut Maps, says: InstanceMeta) -> anyhow::Result<()> {
    let meta = maps.meta.get(&0, 0).context("failed to read map META")?;
    set(maps, says, meta)
}

/// Writes which build and event level the attached programs are of.
///
/// # Errors
/// When the map cannot be read or written.
pub(super) fn replaced(maps: &mut Maps, event_level: EventLevel) -> anyhow::Result<()> {
    let meta = maps.meta.get(&0, 0).context("failed to read map META")?;
    let says = InstanceMeta { event_level, ..read(&meta) };
    set(maps, says, Meta { build: BUILD_ID, ..meta })
}

/// What `META` says, as a value.
pub(crate) fn read(meta: &Meta) -> InstanceMeta {
    InstanceMeta {
        event_level: EventLevel::from_u16(meta.event_level),
        probed: meta.probed != 0,
        owner: owner_of(meta.owner, meta.owner_cookie),
    }
}

fn set(maps: &mut Maps, says: InstanceMeta, rest: Meta) -> anyhow::Result<()> {
    let meta = Meta {
        event_level: u16::from(says.event_level.as_u8()),
        probed: u16::from(says.probed),
        owner: says.owner.map_or(0, |owner| owner.inode),
        owner_cookie: says.owner.and_then(|owner| owner.cookie).unwrap_or_default(),
        ..rest
    };
    maps.meta.set(0, meta, 0).context("failed to write map META")
}

/// The cookie of the namespace. Where the kernel does not tell (below Linux 5.14), a socket is bound there and the
/// attached bind hook has noted it.
pub(crate) fn netns_cookie(maps: &Maps, namespace: &Namespace) -> anyhow::Result<u64> {
    let socket = namespace
        .run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?
        .context("failed to bind a socket on 127.0.0.1")?;
    match proc_fd::netns_cookie(&socket) {
        Ok(cookie) => Ok(cookie),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
            let cookie = socket_cookie(&socket)?;
            maps.socket_netns.get(&cookie, 0).context("the bind hook noted nothing")
        }
        Err(error) => Err(error.into()),
    }
}
