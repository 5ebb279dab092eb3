//! PROXY protocol headers, version 1 and 2, as HAProxy's proxy-protocol.txt defines them.
//!
//! Invariants: pure; source is the client, destination the gateway address it connected to, both of one
//! family.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::config::ProxyProtocol;

/// The 12 bytes every version 2 header starts with.
const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const V2_PROXY: u8 = 0x21;
/// TCP over IPv4.
const V2_TCP4: u8 = 0x11;
/// TCP over IPv6.
const V2_TCP6: u8 = 0x21;

/// The header that announces a connection from `source` to `destination`.
pub(super) fn encode(version: ProxyProtocol, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    match version {
        ProxyProtocol::V1 => version_1(source, destination),
        ProxyProtocol::V2 => version_2(source, destination),
    }
}

fn version_1(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let family = if source.is_ipv4() && destination.is_ipv4() { "TCP4" } else { "TCP6" };
    let text = |ip: IpAddr| match ip {
        IpAddr::V4(v4) if family == "TCP6" => v4.to_ipv6_mapped().to_string(),
        ip => ip.to_string(),
    };
    let (from, to) = (text(source.ip()), text(destination.ip()));
    format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
}

fn version_2(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut addresses = Vec::with_capacity(36);
    let family = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            addresses.extend(from.octets());
            addresses.extend(to.octets());
            V2_TCP4
        }
        (from, to) => {
            addresses.extend(as_ipv6(from).octets());
            addresses.extend(as_ipv6(to).octets());
            V2_TCP6
        }
    };
    addresses.extend(source.port().to_be_bytes());
    addresses.extend(destination.port().to_be_bytes());
    let mut header = Vec::with_capacity(52);
    header.extend(V2_SIGNATURE);
    header.extend([V2_PROXY, family]);
    // 12 or 36: always fits.
    header.extend((addresses.len() as u16).to_be_bytes());
    header.extend(addresses);
    header
}

fn as_ipv6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
#[path = "proxy_header_tests.rs"]
mod tests;
