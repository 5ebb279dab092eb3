//! What `steer` and `steer_tc` look up alike on the way from a packet to its listener.
//!
//! Both look up the rule, its attachment, and the class of the source, in this order.
//!
//! Invariant: nothing here decides or counts.

use core::ptr::addr_of;

use aya_ebpf::maps::lpm_trie::Key;
use bridge_common::{
    Ip,
    maps::{ALLOW_KEY_BITS, AllowKey, ConnectionKey, TargetKey},
    steer::{self, SourceClass},
};

use crate::{maps, tickets};

/// The addresses and ports of a packet for some gateway; ports in host byte order.
pub(crate) struct Packet {
    pub(crate) source: Ip,
    pub(crate) gateway: Ip,
    pub(crate) source_port: u16,
    pub(crate) port: u16,
}

/// The fields of an attachment that steering needs.
pub(crate) struct AttachmentFields {
    pub(crate) id: u32,
    pub(crate) allow_set: u32,
    pub(crate) target: Ip,
    pub(crate) port: u16,
    pub(crate) identity: u32,
}

impl Packet {
    /// The connection it belongs to.
    #[inline(always)]
    pub(crate) const fn connection(&self) -> ConnectionKey {
        ConnectionKey {
            source: self.source,
            gateway: self.gateway,
            source_port: self.source_port,
            port: self.port,
        }
    }
}

/// Copies an attachment. The kernel may reuse the element of an attachment that is removed or replaced at this very
/// moment. Each version of an attachment has an allow set of its own, so a copy is whole if it began and ended with the
/// same one. Otherwise the attachment counts as gone: it just was.
#[inline(always)]
pub(crate) fn attachment(id: u32) -> Option<AttachmentFields> {
    let attachment = maps::ATTACHMENTS.get_ptr(&id)?;
    // SAFETY: a map value stays readable for the length of the program.
    unsafe {
        let allow_set = addr_of!((*attachment).allow_set).read_volatile();
        let target = addr_of!((*attachment).target).read_volatile();
        let port = addr_of!((*attachment).target_port).read_volatile();
        let identity = addr_of!((*attachment).identity).read_volatile();
        (addr_of!((*attachment).allow_set).read_volatile() == allow_set).then_some(AttachmentFields {
            id,
            allow_set,
            target,
            port,
            identity,
        })
    }
}

/// What the allow-list says of where a packet comes from: by its address, or by the container it is from.
#[inline(always)]
pub(crate) fn source_class(attachment: &AttachmentFields, packet: &Packet) -> SourceClass {
    let source = Key::new(ALLOW_KEY_BITS, AllowKey { set: attachment.allow_set, addr: packet.source });
    let class = SourceClass::from_entry(maps::ALLOW.get(&source).copied());
    if class == SourceClass::Unlisted && tickets::admits(attachment.allow_set, &packet.connection()) {
        return SourceClass::Allowed;
    }
    class
}

/// Whether an MPTCP listener was noted on an address that may serve the attachment. That need not be the one that does:
/// anybody may listen on `[::]` for IPv6 only.
#[inline(always)]
pub(crate) fn may_have_mptcp_listener(attachment: &AttachmentFields) -> bool {
    let [exact, any_v4, any_v6] = steer::candidates(attachment.target, attachment.port);
    // SAFETY: the values are plain integers.
    unsafe {
        maps::MPTCP_TARGETS.get(&exact).is_some()
            || maps::MPTCP_TARGETS.get(&any_v4).is_some()
            || maps::MPTCP_TARGETS.get(&any_v6).is_some()
    }
}

/// Whether the newest MPTCP listener on an address, which has this cookie, is the one that userspace made transparent.
#[inline(always)]
pub(crate) fn is_prepared(bound: &TargetKey, newest: u64) -> bool {
    // SAFETY: the values are plain integers; torn ones would not be equal.
    let Some(prepared) = (unsafe { maps::MPTCP_PREPARED.get(bound) }) else { return false };
    prepared.ready != 0 && prepared.listener == newest
}
