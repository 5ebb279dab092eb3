//! Makes MPTCP listeners transparent, so that NAT leaves the packets alone that the tc program gives to them.
//!
//! nf_nat takes a listener away from a packet that conntrack knows, unless the listener has IP_TRANSPARENT
//! (`nf_nat_ipv4_local_in`, `nf_nat_ipv6_in`). The option lets a socket bind and answer from addresses that are not the
//! host's; a listener that is bound already, and its connections, do neither. It is the same for IPv6 sockets. No eBPF
//! helper sets it.
//!
//! Invariants: a note in `MPTCP_PREPARED` is made before the option is set, and says when it is, so that whoever comes
//! later knows what to take back; an option that the service set itself stays. The duplicate of a service's socket
//! lives only for the system calls on it.

use std::{io, os::fd::AsFd};

use anyhow::Context as _;
use bridge_common::maps::{Prepared, TargetKey};
use nix::{
    errno::Errno,
    sys::socket::{getsockopt, setsockopt, sockopt::IpTransparent},
};

use super::{maps::Maps, register::is_gone, write::unless_gone};
use crate::net::{
    listeners::{Listener, tcp_listeners},
    namespace::Namespace,
    proc_fd,
};

/// Makes these listeners transparent, in this order: the note of an address is that of its last one.
///
/// # Errors
/// When a listener cannot be reached, or the kernel refuses.
pub(super) fn prepare(maps: &mut Maps, listeners: &[Listener]) -> anyhow::Result<()> {
    let owners = proc_fd::owners_of(&listeners.iter().map(|listener| listener.inode).collect());
    for listener in listeners {
        // A listener nobody holds any more is closing.
        let Some(owner) = owners.get(&listener.inode) else { continue };
        prepare_one(maps, listener, owner).with_context(|| {
            format!("failed to make the MPTCP listener of {owner} on {} transparent", listener.addr)
        })?;
    }
    Ok(())
}

fn prepare_one(maps: &mut Maps, listener: &Listener, owner: &proc_fd::Owner) -> anyhow::Result<()> {
    let key = listener.key();
    let socket = match proc_fd::duplicate_mptcp(owner, listener.inode, listener.addr) {
        Err(error) if is_gone(&error) => return Ok(()),
        socket => socket?,
    };
    let earlier = maps.mptcp_prepared.get(&key, 0).ok();
    let was_ours = earlier.is_some_and(|known| known.listener == listener.cookie && known.ours != 0);
    let ours = u32::from(was_ours || !is_transparent(&socket)?);
    let mut note = |ready| {
        let prepared = Prepared { listener: listener.cookie, ready, ours };
        maps.mptcp_prepared.insert(key, prepared, 0).context("failed to write map MPTCP_PREPARED")
    };
    note(0)?;
    setsockopt(&socket, IpTransparent, &true)?;
    note(1)
}

/// Whether the option is set. Below Linux 6.8 the kernel does not tell of MPTCP sockets; none is known that sets it.
fn is_transparent(socket: &impl AsFd) -> io::Result<bool> {
    match getsockopt(socket, IpTransparent) {
        Err(Errno::EOPNOTSUPP | Errno::ENOPROTOOPT) => Ok(false),
        result => Ok(result?),
    }
}

/// Takes back what [`prepare`] did to the listeners on these addresses, and forgets them.
///
/// # Errors
/// When a listener cannot be reached, or the map not be written.
pub(super) fn release(maps: &mut Maps, keys: &[TargetKey], namespace: &Namespace) -> anyhow::Result<()> {
    let mut ours = Vec::new();
    for key in keys {
        if let Ok(prepared) = maps.mptcp_prepared.get(key, 0) {
            ours.push((*key, prepared));
        }
    }
    if ours.is_empty() {
        return Ok(());
    }
    let is_ours = |listener: &Listener| {
        let noted = ours.iter().find(|(key, _)| *key == listener.key());
        listener.mptcp && noted.is_some_and(|(_, prepared)| prepared.ours != 0)
    };
    let mut listeners = tcp_listeners(namespace)?;
    listeners.retain(is_ours);
    let owners = proc_fd::owners_of(&listeners.iter().map(|listener| listener.inode).collect());
    for listener in &listeners {
        let Some(owner) = owners.get(&listener.inode) else { continue };
        let done = proc_fd::duplicate_mptcp(owner, listener.inode, listener.addr)
            .and_then(|socket| Ok(setsockopt(&socket, IpTransparent, &false)?));
        match done {
            Err(error) if !is_gone(&error) => {
                return Err(error).with_context(|| {
                    format!("failed to take IP_TRANSPARENT off the listener of {owner} on {}", listener.addr)
                });
            }
            _ => {}
        }
    }
    for (key, _) in ours {
        unless_gone(maps.mptcp_prepared.remove(&key)).context("failed to clean map MPTCP_PREPARED")?;
    }
    Ok(())
}
