//! How an attachment is written as entries of maps, and read from them. Pure.

use std::{
    collections::{BTreeSet, HashSet},
    net::{IpAddr, SocketAddr},
};

use aya::maps::lpm_trie;
use bridge_common::{
    Ip,
    maps::{
        self as abi, ALLOW_SET_BITS, AllowKey, CONTAINER_LEN, IDENTITY_CONTAINER, IDENTITY_LOOPBACK,
        IFNAME_LEN, KEEPER_COMMAND, KEEPER_CONFIG, NETWORK_LEN, NamedKey, REASON_PROBED, REASON_REQUESTED,
        RuleKey, SERVICE_LEN,
    },
    steer::SourceClass,
};
use ipnet::IpNet;

use crate::model::{
    attachment::{Attachment, Keeper},
    datapath::{Datapath, Reason},
    identity::Identity,
    source::{NamedContainer, Source},
    target::{Port, Target},
};

/// The rules of an attachment: one for each gateway, and one that counts what comes for other addresses. Without an
/// interface index this one would count whatever arrives at the host; inside a container no other address is meant.
pub(super) fn rule_keys(state: &Attachment, match_ifindex: bool) -> Vec<RuleKey> {
    let ifindex = if match_ifindex { state.ifindex } else { 0 };
    let rule =
        |&gateway: &IpAddr| RuleKey { gateway: gateway.into(), ifindex, port: state.port.get(), pad: 0 };
    let mut keys: Vec<_> = state.gateways.iter().map(rule).collect();
    if match_ifindex && state.container.is_none() {
        let others: HashSet<_> = keys.iter().map(|key| key.of_others()).collect();
        keys.extend(others);
    }
    keys
}

/// The entries of an allow-list in `ALLOW`: the networks, and the gateways, which are the host itself.
pub(super) fn allow_entries(
    state: &Attachment,
    set: u32,
) -> impl Iterator<Item = (lpm_trie::Key<AllowKey>, u32)> {
    let allowed = state.allow.iter().filter_map(Source::net).map(|net| (*net, SourceClass::ALLOWED));
    let host = state.gateways.iter().map(|&gateway| (IpNet::from(gateway), SourceClass::HOST));
    allowed.chain(host).map(move |(net, class)| (encode_allow(set, &net), class))
}

pub(super) fn encode_allow(set: u32, net: &IpNet) -> lpm_trie::Key<AllowKey> {
    let addr = Ip::from(net.network());
    let bits = ALLOW_SET_BITS + addr.prefix_base() + u32::from(net.prefix_len());
    lpm_trie::Key::new(bits, AllowKey { set, addr })
}

pub(super) fn decode_allow(key: &lpm_trie::Key<AllowKey>) -> (u32, IpNet) {
    let data = key.data();
    let bits = key.prefix_len() - ALLOW_SET_BITS - data.addr.prefix_base();
    let addr = IpAddr::from(data.addr);
    // A length beyond the address cannot be written by `encode_allow`; a host route is the safe reading.
    let net = IpNet::new(addr, bits as u8).unwrap_or_else(|_| IpNet::from(addr));
    (data.set, net)
}

pub(super) fn encode(
    state: &Attachment,
    target: SocketAddr,
    allow_set: u32,
) -> anyhow::Result<abi::Attachment> {
    Ok(abi::Attachment {
        target: target.ip().into(),
        allow_set,
        ifindex: state.ifindex,
        target_port: target.port(),
        port: state.port.get(),
        reason: if state.reason == Reason::ProbePassed { REASON_PROBED } else { REASON_REQUESTED },
        identity: match state.identity {
            Identity::Container => IDENTITY_CONTAINER,
            Identity::Loopback => IDENTITY_LOOPBACK,
        },
        keeper: match state.keeper {
            Keeper::Command => KEEPER_COMMAND,
            Keeper::Config => KEEPER_CONFIG,
        },
        service: padded::<SERVICE_LEN>("service", &state.service)?,
        network: padded::<NETWORK_LEN>("network", &state.network)?,
        bridge: padded::<IFNAME_LEN>("bridge", &state.bridge)?,
        container: padded::<CONTAINER_LEN>("container", state.container.as_deref().unwrap_or_default())?,
    })
}

pub(super) fn decode(
    value: &abi::Attachment,
    gateways: BTreeSet<IpAddr>,
    allow: BTreeSet<Source>,
) -> Option<Attachment> {
    Some(Attachment {
        service: unpadded(&value.service),
        container: Some(unpadded(&value.container)).filter(|name| !name.is_empty()),
        network: unpadded(&value.network),
        bridge: unpadded(&value.bridge),
        ifindex: value.ifindex,
        port: Port::new(value.port)?,
        target: Target::Tcp(SocketAddr::new(value.target.into(), value.target_port)),
        gateways,
        allow,
        datapath: Datapath::Steer,
        identity: if value.identity == IDENTITY_LOOPBACK { Identity::Loopback } else { Identity::Container },
        keeper: if value.keeper == KEEPER_CONFIG { Keeper::Config } else { Keeper::Command },
        reason: if value.reason == REASON_REQUESTED {
            Reason::Requested(Datapath::Steer)
        } else {
            Reason::ProbePassed
        },
    })
}

/// A container of an allow-list, whose namespace has this cookie.
pub(super) fn encode_named(
    set: u32,
    cookie: u64,
    container: &NamedContainer,
) -> anyhow::Result<(NamedKey, abi::NamedContainer)> {
    let value = abi::NamedContainer {
        inode: container.inode,
        addr: container.address.into(),
        name: padded::<CONTAINER_LEN>("container", &container.name)?,
    };
    Ok((NamedKey { netns: cookie, set, pad: 0 }, value))
}

pub(super) fn decode_named(key: &NamedKey, value: &abi::NamedContainer) -> NamedContainer {
    NamedContainer {
        name: unpadded(&value.name),
        address: value.addr.into(),
        inode: value.inode,
        cookie: Some(key.netns),
    }
}

fn padded<const N: usize>(what: &str, text: &str) -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    anyhow::ensure!(
        text.len() <= N,
        "{what} name `{text}` is {} bytes long, at most {N} are possible: use a shorter name",
        text.len()
    );
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    Ok(bytes)
}

fn unpadded(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn allow_entries_round_trip(addr: IpAddr, set: u32, len in 0u8..=128) {
            // v4-mapped addresses are kept as IPv4, so only canonical addresses can come back.
            let addr = IpAddr::from(Ip::from(addr));
            let len = if addr.is_ipv4() { len % 33 } else { len };
            let net = IpNet::new(addr, len).unwrap().trunc();
            // The trunc() of an IPv6 network may be v4-mapped only for the mapped range itself.
            prop_assume!(net.addr().is_ipv4() || !Ip::from(net.addr()).is_v4());
            prop_assert_eq!(decode_allow(&encode_allow(set, &net)), (set, net));
        }

        #[test]
        fn names_round_trip(name in "[a-z0-9._-]{1,32}") {
            prop_assert_eq!(unpadded(&padded::<32>("service", &name).unwrap()), name);
        }
    }

    #[test]
    fn too_long_a_name_is_refused_with_its_length() {
        let error = padded::<4>("service", "abcde").unwrap_err().to_string();
        assert!(
            error.contains("abcde") && error.contains("5 bytes") && error.contains("at most 4"),
            "{error}"
        );
    }
}
