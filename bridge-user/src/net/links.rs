//! Network interfaces of a namespace, by rtnetlink: which bridge a name means and its addresses.
//!
//! Inside a container the interface with its address takes the place of the bridge.
//!
//! Invariants: a [`Bridge`] returned by [`bridge_by_name`] is a Linux bridge with at least one address that
//! is not link-local; addresses keep the kernel's order, so the first IPv4 address is the primary one.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{
    NetError,
    namespace::Namespace,
    netlink::{attribute, dump, get, push_attribute, u32_at},
};
pub use crate::model::bridge::Bridge;
use crate::model::bridge::{Setting, Uplink};

/// Length of `struct ifinfomsg` and of `struct ifaddrmsg`, in bytes.
pub(super) const IFINFO_LEN: usize = 16;
const IFADDR_LEN: usize = 8;
/// Where `struct ifinfomsg` has the interface's index.
pub(super) const IFINFO_INDEX: usize = 4;
/// Length of `struct rtmsg`.
const RTMSG_LEN: usize = 12;
/// `IFF_UP` of linux/if.h: what the administrator wants, not whether a port has a carrier.
const UP: u32 = 1;
/// The longest interface name, in bytes (`IFNAMSIZ` without its NUL).
const MAX_NAME_LEN: usize = 15;
/// `RTEXT_FILTER_SKIP_STATS`: leave the counters out, they are most of a link's message.
const SKIP_STATS: u32 = 1 << 3;

/// Any network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// The kernel's link kind (`bridge`, `veth`, …); empty for physical and loopback devices.
    pub kind: String,
    /// Index of the bridge, bond or VRF that it is a port of; 0: of none.
    pub master: u32,
    /// The administrator wants it up.
    pub is_up: bool,
}

/// The bridge called `name`, with its addresses.
///
/// # Errors
/// [`NetError::UnknownInterface`] and [`NetError::NotABridge`] list the bridges that exist;
/// [`NetError::NoAddress`] if containers could connect to nothing; [`NetError::Netlink`] otherwise.
pub fn bridge_by_name(namespace: &Namespace, name: &str) -> Result<Bridge, NetError> {
    let Some(link) = link_by_name(namespace, name)? else {
        return Err(NetError::UnknownInterface { name: name.to_owned(), bridges: bridge_names(namespace)? });
    };
    if link.kind != "bridge" {
        return Err(NetError::NotABridge {
            name: link.name,
            kind: link.kind,
            bridges: bridge_names(namespace)?,
        });
    }
    let addrs = addresses(namespace, link.index)?;
    if addrs.is_empty() {
        return Err(NetError::NoAddress { name: link.name });
    }
    let setting = setting(namespace, &link)?;
    Ok(Bridge { index: link.index, name: link.name, addrs, setting })
}

/// The interface with this index as it is now, whatever its kind and also without addresses; `None` if it is gone.
///
/// # Errors
/// [`NetError::Netlink`] if the kernel cannot be asked.
pub fn bridge_by_index(namespace: &Namespace, index: u32) -> Result<Option<Bridge>, NetError> {
    let Some(link) = link_by_index(namespace, index)? else { return Ok(None) };
    let (addrs, setting) = (addresses(namespace, index)?, setting(namespace, &link)?);
    Ok(Some(Bridge { index, name: link.name, addrs, setting }))
}

/// How an interface is set up. Only a bridge has ports, and only a bridge's default route says that it serves others: a
/// container's own goes over its interface.
fn setting(namespace: &Namespace, link: &Link) -> Result<Setting, NetError> {
    let is_bridge = link.kind == "bridge";
    let ports = if is_bridge { ports(namespace, link.index)? } else { Vec::new() };
    let master = if is_bridge { link_by_index(namespace, link.master)? } else { None };
    let vrf = master.filter(|master| master.kind == "vrf");
    let uplink = match ports.iter().find(|port| Uplink::is_kind(&port.kind)) {
        Some(port) => Some(Uplink::Port { name: port.name.clone(), kind: port.kind.clone() }),
        None if is_bridge && has_default_route(namespace, link.index)? => Some(Uplink::DefaultRoute),
        None => None,
    };
    Ok(Setting { is_down: !link.is_up, vrf: vrf.map(|vrf| vrf.name), uplink })
}

/// Whether a default route of either family goes over the interface, in whatever table.
fn has_default_route(namespace: &Namespace, index: u32) -> Result<bool, NetError> {
    let payloads =
        dump(namespace, netlink_sys::protocols::NETLINK_ROUTE, libc::RTM_GETROUTE, &[0; RTMSG_LEN])
            .map_err(failed("list routes"))?;
    Ok(payloads.iter().any(|payload| is_default_route(payload, index)))
}

/// A route of several hops has its interfaces in another attribute, one `struct rtnexthop` each.
fn is_default_route(payload: &[u8], index: u32) -> bool {
    let is_unicast = payload.get(7) == Some(&libc::RTN_UNICAST);
    let (true, Some(0), Some(attributes)) = (is_unicast, payload.get(1), payload.get(RTMSG_LEN..)) else {
        return false;
    };
    let out = attribute(attributes, libc::RTA_OIF).and_then(|value| u32_at(value, 0));
    let mut hops = attribute(attributes, libc::RTA_MULTIPATH).unwrap_or_default();
    let mut interfaces = Vec::from_iter(out);
    while let (Some(interface), [low, high, ..]) = (u32_at(hops, 4), hops) {
        interfaces.push(interface);
        let length = usize::from(u16::from_ne_bytes([*low, *high])).max(8);
        hops = hops.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    interfaces.contains(&index)
}

/// The interface that holds `address`, whatever its kind: where a container is on a network.
///
/// # Errors
/// [`NetError::NoInterface`] if no interface has the address; [`NetError::Netlink`] if the kernel cannot be asked.
pub fn interface_with(namespace: &Namespace, address: IpAddr) -> Result<Bridge, NetError> {
    for link in links(namespace)? {
        let addrs = addresses(namespace, link.index)?;
        if addrs.iter().any(|net| net.addr() == address) {
            let setting = setting(namespace, &link)?;
            return Ok(Bridge { index: link.index, name: link.name, addrs, setting });
        }
    }
    Err(NetError::NoInterface { address })
}

/// The interface called `name`, or `None` if there is none (a name the kernel could never accept included).
///
/// # Errors
/// [`NetError::Netlink`] if the kernel cannot be asked.
pub fn link_by_name(namespace: &Namespace, name: &str) -> Result<Option<Link>, NetError> {
    if name.is_empty() || name.len() > MAX_NAME_LEN || name.contains('\0') {
        return Ok(None);
    }
    find_link(namespace, 0, Some(name))
}

/// The interface with this index, or `None` if it is gone. For status: the name behind an index.
///
/// # Errors
/// [`NetError::Netlink`] if the kernel cannot be asked.
pub fn link_by_index(namespace: &Namespace, index: u32) -> Result<Option<Link>, NetError> {
    // The kernel reads the index as a signed int; 0 means "by name".
    if index == 0 || i32::try_from(index).is_err() {
        return Ok(None);
    }
    find_link(namespace, index, None)
}

/// All interfaces of a namespace, in the order of their index.
///
/// # Errors
/// [`NetError::Netlink`] if the kernel cannot be asked.
pub fn links(namespace: &Namespace) -> Result<Vec<Link>, NetError> {
    dump_links(namespace, &link_request(0, None))
}

/// The ports of a bridge.
fn ports(namespace: &Namespace, bridge: u32) -> Result<Vec<Link>, NetError> {
    let mut request = link_request(0, None);
    push_attribute(&mut request, libc::IFLA_MASTER, &bridge.to_ne_bytes());
    // A kernel that does not know the filter tells of all.
    Ok(dump_links(namespace, &request)?.into_iter().filter(|link| link.master == bridge).collect())
}

fn dump_links(namespace: &Namespace, request: &[u8]) -> Result<Vec<Link>, NetError> {
    let payloads = dump(namespace, netlink_sys::protocols::NETLINK_ROUTE, libc::RTM_GETLINK, request)
        .map_err(failed("list network interfaces"))?;
    let mut links: Vec<Link> = payloads.iter().filter_map(|payload| parse_link(payload)).collect();
    links.sort_by_key(|link| link.index);
    links.dedup_by_key(|link| link.index);
    Ok(links)
}

/// The addresses of one interface with their prefix length, in the kernel's order, IPv6 link-local left out.
///
/// # Errors
/// [`NetError::Netlink`] if the kernel cannot be asked.
pub fn addresses(namespace: &Namespace, index: u32) -> Result<Vec<IpNet>, NetError> {
    Ok(address_dump(namespace)?.iter().filter_map(|payload| parse_address(payload, index)).collect())
}

/// Every address that an interface of the namespace has, IPv6 link-local left out.
///
/// # Errors
/// [`NetError::Netlink`] if the kernel cannot be asked.
pub fn own_addresses(namespace: &Namespace) -> Result<BTreeSet<IpAddr>, NetError> {
    let payloads = address_dump(namespace)?;
    let address = |payload: &Vec<u8>| Some(parse_address(payload, u32_at(payload, 4)?)?.addr());
    Ok(payloads.iter().filter_map(address).collect())
}

fn address_dump(namespace: &Namespace) -> Result<Vec<Vec<u8>>, NetError> {
    dump(namespace, netlink_sys::protocols::NETLINK_ROUTE, libc::RTM_GETADDR, &[0; IFADDR_LEN])
        .map_err(failed("list addresses"))
}

/// The names of all bridges, sorted.
///
/// # Errors
/// [`NetError::Netlink`] if the kernel cannot be asked.
pub fn bridge_names(namespace: &Namespace) -> Result<Vec<String>, NetError> {
    let bridges = links(namespace)?.into_iter().filter(|link| link.kind == "bridge");
    let mut names: Vec<String> = bridges.map(|link| link.name).collect();
    names.sort();
    Ok(names)
}

fn find_link(namespace: &Namespace, index: u32, name: Option<&str>) -> Result<Option<Link>, NetError> {
    match get(namespace, netlink_sys::protocols::NETLINK_ROUTE, libc::RTM_GETLINK, &link_request(index, name))
    {
        Ok(payloads) => Ok(payloads.first().and_then(|payload| parse_link(payload))),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(failed("look up a network interface")(error)),
    }
}

fn link_request(index: u32, name: Option<&str>) -> Vec<u8> {
    let mut body = vec![0; IFINFO_LEN];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    push_attribute(&mut body, libc::IFLA_EXT_MASK, &SKIP_STATS.to_ne_bytes());
    if let Some(name) = name {
        push_attribute(&mut body, libc::IFLA_IFNAME, format!("{name}\0").as_bytes());
    }
    body
}

fn parse_link(payload: &[u8]) -> Option<Link> {
    let attributes = payload.get(IFINFO_LEN..)?;
    let kind =
        attribute(attributes, libc::IFLA_LINKINFO).and_then(|info| attribute(info, libc::IFLA_INFO_KIND));
    Some(Link {
        index: u32_at(payload, IFINFO_INDEX)?,
        name: text(attribute(attributes, libc::IFLA_IFNAME)?),
        kind: kind.map(text).unwrap_or_default(),
        master: attribute(attributes, libc::IFLA_MASTER).and_then(|value| u32_at(value, 0)).unwrap_or(0),
        is_up: u32_at(payload, 8)? & UP != 0,
    })
}

fn parse_address(payload: &[u8], index: u32) -> Option<IpNet> {
    let (family, prefix) = (*payload.first()?, *payload.get(1)?);
    if u32_at(payload, 4)? != index {
        return None;
    }
    let attributes = payload.get(IFADDR_LEN..)?;
    // On a point-to-point link IFA_ADDRESS is the peer and IFA_LOCAL the host's own; elsewhere they are equal,
    // and IPv6 sends IFA_ADDRESS alone.
    let value =
        attribute(attributes, libc::IFA_LOCAL).or_else(|| attribute(attributes, libc::IFA_ADDRESS))?;
    let address = match i32::from(family) {
        libc::AF_INET => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?)),
        libc::AF_INET6 => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?)),
        _ => return None,
    };
    let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    if link_local { None } else { IpNet::new(address, prefix).ok() }
}

/// A NUL-terminated kernel string.
fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

fn failed(action: &'static str) -> impl Fn(io::Error) -> NetError {
    move |cause| NetError::Netlink { action, cause }
}

#[cfg(test)]
#[path = "links_tests.rs"]
mod tests;
