//! The clsact qdisc of an interface, by rtnetlink: whether it is there, whether it is in use, taking it off.

use netlink_sys::protocols::NETLINK_ROUTE;

use crate::net::{
    NetError,
    namespace::Namespace,
    netlink::{attribute, change, dump, push_attribute, u32_at},
};

/// Length of `struct tcmsg`, in bytes.
const TCMSG_LEN: usize = 20;
/// `TC_H_CLSACT`: the parent of the qdisc itself; its filters hang below `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS`.
const TC_H_CLSACT: u32 = 0xffff_fff1;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
/// `TC_H_INGRESS_MAJ`: the handle every clsact qdisc has.
const HANDLE: u32 = 0xffff_0000;
/// `TCA_KIND` of linux/rtnetlink.h.
const TCA_KIND: u16 = 1;

fn request(ifindex: u32, handle: u32, parent: u32) -> Vec<u8> {
    let mut body = vec![0; TCMSG_LEN];
    body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    body[8..12].copy_from_slice(&handle.to_ne_bytes());
    body[12..16].copy_from_slice(&parent.to_ne_bytes());
    body
}

fn kind_is(payload: &[u8], kind: &[u8]) -> bool {
    let found = payload.get(TCMSG_LEN..).and_then(|attributes| attribute(attributes, TCA_KIND));
    found.is_some_and(|found| found.strip_suffix(&[0]).unwrap_or(found) == kind)
}

/// Whether the interface has a clsact qdisc.
///
/// # Errors
/// [`NetError::Netlink`] if the kernel cannot be asked.
pub fn has_clsact(namespace: &Namespace, ifindex: u32) -> Result<bool, NetError> {
    let all = dump(namespace, NETLINK_ROUTE, libc::RTM_GETQDISC, &request(ifindex, 0, 0))
        .map_err(|cause| NetError::Netlink { action: "list qdiscs", cause })?;
    Ok(all.iter().any(|payload| u32_at(payload, 4) == Some(ifindex) && kind_is(payload, b"clsact")))
}

/// Whether filters hang on the interface's clsact qdisc, in any direction.
///
/// # Errors
/// [`NetError::Netlink`] if the kernel cannot be asked.
pub fn has_filters(namespace: &Namespace, ifindex: u32) -> Result<bool, NetError> {
    for parent in [INGRESS, EGRESS] {
        if !filters(namespace, ifindex, parent)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a filter with this priority and handle hangs on the interface's clsact qdisc at ingress.
///
/// # Errors
/// [`NetError::Netlink`] if the kernel cannot be asked.
pub fn has_ingress_filter(
    namespace: &Namespace,
    ifindex: u32,
    priority: u16,
    handle: u32,
) -> Result<bool, NetError> {
    let is_it = |payload: &Vec<u8>| {
        // `tcm_info` has the priority in its upper half.
        u32_at(payload, 8) == Some(handle)
            && u32_at(payload, 16).map(|info| info >> 16) == Some(priority.into())
    };
    Ok(filters(namespace, ifindex, INGRESS)?.iter().any(is_it))
}

fn filters(namespace: &Namespace, ifindex: u32, parent: u32) -> Result<Vec<Vec<u8>>, NetError> {
    dump(namespace, NETLINK_ROUTE, libc::RTM_GETTFILTER, &request(ifindex, 0, parent))
        .map_err(|cause| NetError::Netlink { action: "list filters", cause })
}

/// Takes the clsact qdisc off, with every filter on it.
///
/// # Errors
/// [`NetError::Netlink`] if there is none or the kernel refuses.
pub fn delete_clsact(namespace: &Namespace, ifindex: u32) -> Result<(), NetError> {
    let mut body = request(ifindex, HANDLE, TC_H_CLSACT);
    push_attribute(&mut body, TCA_KIND, b"clsact\0");
    change(namespace, NETLINK_ROUTE, libc::RTM_DELQDISC, &body)
        .map_err(|cause| NetError::Netlink { action: "remove a clsact qdisc", cause })
}
