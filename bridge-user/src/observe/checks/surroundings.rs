//! Findings about an attachment that come of what is around it: NAT rules, listeners that only hold a port, and how the
//! bridge is set up.
//!
//! Invariant: the subject is the attachment's name.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::SHOWN;
use crate::{
    model::{
        attachment::Attachment,
        bridge::{Bridge, Uplink},
        codes,
        finding::Finding,
        source::Source,
    },
    net::listeners::Listener,
    netfilter::nat::Redirection,
    observe::surroundings::Placeholder,
    plan,
};

/// The allow-list has sources that no container on the bridge can have. Others are routed over the bridge where it
/// leads to machines, and into a container from anywhere.
pub fn allowed_outside(state: &Attachment, bridge: &Bridge) -> Option<Finding> {
    let subnets: Vec<IpNet> = bridge.addrs.iter().map(IpNet::trunc).collect();
    let is_outside = |net: &&IpNet| {
        let link_local = matches!(net.addr(), IpAddr::V6(address) if address.is_unicast_link_local());
        !link_local && !subnets.iter().any(|own| own.contains(*net) || net.contains(own))
    };
    let outside: Vec<&IpNet> = state.allow.iter().filter_map(Source::net).filter(is_outside).collect();
    if outside.is_empty() || state.container.is_some() || bridge.setting.uplink.is_some() {
        return None;
    }
    let cause =
        format!("no container on {} has an address of {}", bridge.name, plan::few(&outside, ", ", SHOWN));
    let cure = format!(
        "use --allow with {} or what is in it, or --network with the network of those sources",
        plan::list(&subnets)
    );
    Some(codes::ALLOW_OUTSIDE.finding(state.name(), cause, cure))
}

/// What is so of a listener that only holds its port.
pub fn held(target: SocketAddr, placeholder: &Placeholder) -> String {
    let Placeholder { address, holder, container, .. } = placeholder;
    let whose =
        container.as_ref().map_or_else(|| "a container".to_owned(), |name| format!("container {name}"));
    format!("what listens on {address} is {holder}, which holds {target} for {whose} and accepts nothing")
}

/// The target's listener only holds the port.
pub fn placeholder_listener(state: &Attachment, target: SocketAddr, placeholder: &Placeholder) -> Finding {
    let cure = "connect the containers to a network of that container, or detach this and attach it with --datapath \
                auto --foreground";
    let finding = codes::PLACEHOLDER_LISTENER.finding(state.name(), held(target, placeholder), cure);
    match &placeholder.rule {
        Some(rule) => finding.with_evidence(rule.to_string()),
        None => finding,
    }
}

/// What is so of a target without a listener that something answers at.
pub fn answered(target: SocketAddr, rule: Option<&Redirection>) -> String {
    let by = rule.map_or_else(String::new, |rule| format!(" ({rule} carries connections elsewhere)"));
    format!("no socket listens on {target} here, and something answers there all the same{by}")
}

/// Nothing listens on the target, and a rule carries connections to it elsewhere.
pub fn answered_elsewhere(state: &Attachment, target: SocketAddr, rule: &Redirection) -> Finding {
    codes::ANSWERED_ELSEWHERE.finding(
        state.name(),
        format!("no socket listens on {target} here, and {rule} carries this host's connections elsewhere"),
        "detach this and attach it with --datapath auto --foreground, or start the service",
    )
}

/// `rule … takes connections from docker0 to 172.17.0.1:6379 first`.
pub fn in_front(state: &Attachment, gateway: IpAddr, rule: &Redirection) -> String {
    let takes = if rule.is_certain { "takes" } else { "may take" };
    let to = SocketAddr::new(gateway, state.port.get());
    format!("{rule} {takes} connections over {} to {to}, before the allow-list and the service", state.bridge)
}

/// A NAT rule takes the connections.
pub fn nat_rule_in_front(state: &Attachment, gateway: IpAddr, rule: &Redirection) -> Finding {
    codes::NAT_RULE_IN_FRONT.finding(
        state.name(),
        in_front(state, gateway, rule),
        "delete the rule or unpublish the port, or detach and attach at another port",
    )
}

/// The NAT rules could not be read.
pub fn nat_unread(state: &Attachment, unread: &[String]) -> Finding {
    codes::NAT_UNREAD.finding(
        state.name(),
        format!("the NAT rules could not be read: {}", unread.join("; ")),
        "install nftables or iptables, whichever has the rules, and run as root",
    )
}

/// The bridge was taken down.
pub fn bridge_down(state: &Attachment) -> Finding {
    codes::BRIDGE_DOWN.finding(
        state.name(),
        format!("bridge {} is down, so nothing arrives on it", state.bridge),
        format!("ip link set {} up", state.bridge),
    )
}

/// The bridge was put into a VRF.
pub fn bridge_in_vrf(state: &Attachment, cause: String) -> Finding {
    codes::BRIDGE_IN_VRF.finding(
        state.name(),
        format!("{cause}, so nothing is steered"),
        "take the bridge out of it, or detach this and attach it with --datapath auto --foreground",
    )
}

/// The bridge has another name now.
pub fn bridge_renamed(state: &Attachment, bridge: &Bridge) -> Finding {
    codes::BRIDGE_RENAMED.finding(
        state.name(),
        format!("bridge {} is called {} now, and served as before", state.bridge, bridge.name),
        "detach, and attach with its present name",
    )
}

/// The bridge lost some of its addresses.
pub fn gateway_removed(state: &Attachment, gone: &[IpAddr]) -> Finding {
    codes::GATEWAY_REMOVED.finding(
        state.name(),
        format!("{} has {} no more, so nobody connects there", state.bridge, plan::list(gone)),
        "attach again, or give the bridge the address back",
    )
}

/// The bridge got addresses.
pub fn gateway_added(state: &Attachment, new: &[IpAddr]) -> Finding {
    codes::GATEWAY_ADDED.finding(
        state.name(),
        format!("{} has {} too by now, where nothing is attached", state.bridge, plan::list(new)),
        "attach again to serve it as well",
    )
}

/// The bridge leads to other machines, and a whole subnet is let in.
pub fn bridge_has_uplink(state: &Attachment, uplink: &Uplink) -> Finding {
    codes::BRIDGE_HAS_UPLINK.finding(
        state.name(),
        format!(
            "bridge {} leads to other machines ({uplink}), and the allow-list lets in all of {}",
            state.bridge,
            plan::list(&state.allow)
        ),
        "attach again with --allow and the addresses of the containers alone",
    )
}

/// The service listens on every address, so that it is reached without this attachment.
pub fn listener_on_every_address(state: &Attachment, listener: &Listener) -> Finding {
    codes::LISTENER_ON_EVERY_ADDRESS.finding(
        state.name(),
        format!(
            "the service listens on {}, every address of this host: whoever reaches the host reaches it without this \
             attachment, whose allow-list is for {} alone",
            listener.addr, state.bridge
        ),
        format!(
            "bind it to {}; if it answers only local clients, attach it with --identity loopback, which containers \
             need then",
            state.target
        ),
    )
}
