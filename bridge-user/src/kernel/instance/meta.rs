//! What an instance says of itself, in map `META`: layout, build, event level, namespace, and who attached it from
//! outside.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::Context as _;
use bridge_common::{ABI_VERSION, maps::Meta};
use rustix::net::sockopt::socket_cookie;

use crate::{
    kernel::{
        programs::object::BUILD_ID,
        state::{State, maps::Maps},
    },
    model::event_level::EventLevel,
    net::{namespace::Namespace, proc_fd},
};

/// Writes `META` of a new instance. Until then its namespace cookie is 0 and no listener is accepted.
///
/// # Errors
/// When the namespace's cookie cannot be learnt or the map not written.
pub fn write(
    maps: &mut Maps,
    namespace: &Namespace,
    level: EventLevel,
    probed: bool,
    owner: Option<u64>,
) -> anyhow::Result<()> {
    let netns_cookie =
        netns_cookie(maps, namespace).context("failed to learn this network namespace's cookie")?;
    let meta = Meta {
        abi: ABI_VERSION,
        event_level: u16::from(level.as_u8()),
        probed: u16::from(probed),
        netns_cookie,
        owner: owner.unwrap_or_default(),
        build: BUILD_ID,
    };
    maps.meta.set(0, meta, 0).context("failed to write map META")
}

/// Whoever attached from outside last is the owner, also of what was attached there before.
pub(super) fn remember(state: &mut State, probed: bool, owner: Option<u64>) -> anyhow::Result<()> {
    let meta = state.meta()?;
    let owner = owner.unwrap_or(meta.owner);
    let probed = meta.probed.max(u16::from(probed));
    if (meta.probed, meta.owner) == (probed, owner) {
        return Ok(());
    }
    state.maps.meta.set(0, Meta { probed, owner, ..meta }, 0).context("failed to write map META")
}

/// The cookie of the namespace. Where the kernel does not tell (below Linux 5.14), a socket is bound there and the
/// attached bind hook has noted it.
fn netns_cookie(maps: &Maps, namespace: &Namespace) -> anyhow::Result<u64> {
    let socket = namespace
        .run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?
        .context("failed to bind a socket on 127.0.0.1")?;
    match proc_fd::netns_cookie(&socket) {
        Ok(cookie) => Ok(cookie),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
            let cookie = socket_cookie(&socket)?;
            maps.bound_netns.get(&cookie, 0).context("the bind hook noted nothing")
        }
        Err(error) => Err(error.into()),
    }
}
