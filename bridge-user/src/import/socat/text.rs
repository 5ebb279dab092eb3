//! The texts inside addresses: lists with brackets and quotes, hosts, ports and ranges.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::address::Family;
use crate::model::target::Port;

/// Cuts at `at`, but not inside brackets and quotes.
pub(super) fn cut(text: &str, at: char) -> Result<Vec<&str>, String> {
    let (mut parts, mut start, mut depth, mut quote) = (Vec::new(), 0, 0_u32, None);
    for (index, c) in text.char_indices() {
        match (c, quote) {
            ('"' | '\'', None) => quote = Some(c),
            (c, Some(q)) if c == q => quote = None,
            ('[' | '(' | '{', None) => depth += 1,
            (']' | ')' | '}', None) => depth = depth.saturating_sub(1),
            (c, None) if c == at && depth == 0 => {
                parts.push(&text[start..index]);
                start = index + c.len_utf8();
            }
            _ => {}
        }
    }
    if depth > 0 || quote.is_some() {
        return Err(format!("a bracket or quote is not closed in {text}, which socat refuses"));
    }
    parts.push(&text[start..]);
    Ok(parts)
}

/// An address as socat takes it.
pub(super) fn host(text: &str, family: Family) -> Option<IpAddr> {
    let text = text.trim_matches(['"', '\'']);
    let text = text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(text);
    let address = match text {
        "localhost" if family == Family::V6 => Ipv6Addr::LOCALHOST.into(),
        "localhost" | "localhost4" => Ipv4Addr::LOCALHOST.into(),
        "localhost6" | "ip6-localhost" | "ip6-loopback" => Ipv6Addr::LOCALHOST.into(),
        // An empty host is every address, for a listener.
        "" if family == Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        "" => Ipv4Addr::UNSPECIFIED.into(),
        _ => text.parse().ok()?,
    };
    Some(address)
}

pub(super) fn loopback(text: &str, family: Family) -> Option<IpAddr> {
    // 0.0.0.0 as a target is this host, by way of loopback.
    match host(text, family)? {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) if !text.is_empty() => Some(Ipv4Addr::LOCALHOST.into()),
        address => Some(address.to_canonical()).filter(IpAddr::is_loopback),
    }
}

pub(super) fn parse_port(text: &str) -> Result<Port, String> {
    text.parse().map_err(|_| format!("its port is {text}, expected a number from 1 to 65535"))
}

/// `172.17.0.0/16`, `172.17.0.0:255.255.0.0`, `[fd00::]/8`, or one address.
pub(super) fn range(text: &str) -> Result<IpNet, String> {
    let wrong = || format!("its range is {text}, expected a subnet");
    let plain = text.replace(['[', ']'], "");
    if let Ok(net) = plain.parse::<IpNet>() {
        return Ok(net);
    }
    if let Ok(address) = plain.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let (address, mask) = plain.split_once(':').ok_or_else(wrong)?;
    let (address, mask) = (address.parse().map_err(|_| wrong())?, mask.parse().map_err(|_| wrong())?);
    IpNet::with_netmask(address, mask).map_err(|_| wrong())
}
