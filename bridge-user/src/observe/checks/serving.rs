//! Findings about an attachment: what keeps it from serving, and what carries it.
//!
//! Invariant: the subject is the attachment's name.

use crate::{
    model::{
        attachment::Attachment, codes, escape::quoted, finding::Finding, identity::Identity,
        source::NamedContainer,
    },
    net::listeners::Listener,
    plan,
};

/// Nothing listens on the target.
pub fn no_listener(state: &Attachment) -> Finding {
    codes::NO_LISTENER.finding(
        state.name(),
        format!("nothing listens on {}", state.target),
        "start the service, or attach where it listens",
    )
}

/// Nothing listens on the target, and something does on another loopback address, or at the service's usual port.
pub fn listener_elsewhere(state: &Attachment, listener: &Listener) -> Finding {
    let found = listener.addr;
    let is_steered = state.gateways.iter().any(|gateway| gateway.is_ipv4() == found.is_ipv4());
    let how = if is_steered { "" } else { " --foreground" };
    let finding = codes::LISTENER_ELSEWHERE.finding(
        state.name(),
        format!("nothing listens on {}, but there is a listener on {found}", state.target),
        format!("attach {}{how} to mean that", quoted(&format!("{}={}:{found}", state.service, state.port))),
    );
    finding.with_evidence(found.to_string())
}

/// The bridge is gone, or is another one of the same name, or lost its address.
pub fn bridge_gone(state: &Attachment, how_to_attach: &str) -> Finding {
    let gateways = plan::list(&state.gateways);
    codes::BRIDGE_GONE.finding(
        state.name(),
        format!("bridge {} (index {}) with address {gateways} is gone", state.bridge, state.ifindex),
        format!("{how_to_attach} once the network is back"),
    )
}

/// The namespace of the container that it was attached in is gone.
pub fn container_gone(state: &Attachment) -> Finding {
    let container = state.container.as_deref().unwrap_or("?");
    codes::CONTAINER_GONE.finding(
        state.name(),
        format!("container {container} was stopped or restarted"),
        format!(
            "attach again, or keep `attach --container {container} --foreground` running to follow restarts"
        ),
    )
}

/// Something else is bound to the gateway's port.
pub fn port_bound_on_gateway(state: &Attachment, other: &Listener) -> Finding {
    let finding = codes::PORT_BOUND_ON_GATEWAY.finding(
        state.name(),
        format!(
            "{} is bound by another listener: connections over {} go to {} while it listens, otherwise there",
            other.addr, state.bridge, state.target
        ),
        "stop the other listener, or detach and attach at another port",
    );
    finding.with_evidence(format!("listener {}, uid {}, inode {}", other.addr, other.uid, other.inode))
}

/// An MPTCP listener is there, and not what steers to such.
pub fn mptcp_steering_missing(state: &Attachment, listener: &Listener) -> Finding {
    codes::MPTCP_STEERING_MISSING.finding(
        state.name(),
        format!(
            "{} is an MPTCP listener now, and the tc program on {} is missing, which steering to it needs",
            listener.addr, state.bridge
        ),
        "attach again, or start the service with MPTCP off (Go programs: GODEBUG=multipathtcp=0)",
    )
}

/// An MPTCP listener is there that nobody made transparent yet.
pub fn mptcp_not_prepared(state: &Attachment, listener: &Listener) -> Finding {
    let finding = codes::MPTCP_NOT_PREPARED.finding(
        state.name(),
        format!(
            "the service began to listen on {} with MPTCP since the last attach; connections are refused until \
             bridge-user has set IP_TRANSPARENT on that listener, as NAT would take it away from them",
            listener.addr
        ),
        "attach again, or start the service with MPTCP off (Go programs: GODEBUG=multipathtcp=0)",
    );
    finding.with_evidence(format!("socket cookie {}, inode {}", listener.cookie, listener.inode))
}

/// A container in the allow-list has stopped or restarted since.
pub fn named_run_ended(state: &Attachment, container: &NamedContainer) -> Finding {
    let finding = codes::NAMED_RUN_ENDED.finding(
        state.name(),
        format!(
            "container {} was stopped or restarted since it was allowed, and the run that was allowed is over: nobody \
             is admitted in its place",
            container.name
        ),
        "attach again once it runs",
    );
    finding.with_evidence(format!("its address was {}", container.address))
}

/// A listener is there that the kernel was not told of.
pub fn listener_not_registered(state: &Attachment, listener: &Listener) -> Finding {
    let finding = codes::LISTENER_NOT_REGISTERED.finding(
        state.name(),
        format!("the listener on {} is not registered", listener.addr),
        "attach again",
    );
    finding.with_evidence(format!("socket cookie {}, inode {}", listener.cookie, listener.inode))
}

/// What is so of a listener that connections from a bridge cannot reach.
pub fn listens_on_interface(listener: &Listener) -> String {
    format!(
        "the listener on {} is bound to an interface (SO_BINDTODEVICE), so connections from a bridge cannot reach it",
        listener.addr
    )
}

/// A listener is there that connections from a bridge cannot reach.
pub fn listener_bound_to_interface(state: &Attachment, listener: &Listener) -> Finding {
    let finding = codes::LISTENER_BOUND_TO_INTERFACE.finding(
        state.name(),
        listens_on_interface(listener),
        "bind it to the address alone, or detach this and attach it with --datapath auto --foreground",
    );
    finding.with_evidence(format!("interface index {}", listener.device))
}

/// The target is none that can be steered to.
pub fn not_steerable(state: &Attachment) -> Finding {
    codes::NOT_STEERABLE.finding(
        state.name(),
        format!("{} cannot be steered to", state.target),
        "detach it, and attach it with --datapath auto --foreground",
    )
}

/// What is at the path of a UNIX target is not the service's; `what`: why.
pub fn foreign_target(state: &Attachment, what: &str) -> Finding {
    codes::TARGET_FOREIGN.finding(
        state.name(),
        format!("{} is not the service's: {what}", state.target),
        "find out who changed it; if it is the service's, detach, and attach while the service runs",
    )
}

/// As whom a relay connects to a UNIX target.
pub fn unix_client(state: &Attachment, user: &str) -> Finding {
    let cause = format!("connects to {} as {user}, whoever the client is", state.target);
    codes::UNIX_CLIENT.finding(state.name(), cause, "")
}

/// The process's descriptors are too few for all the connections that a relay was to hold.
pub fn few_descriptors(state: &Attachment, wanted: usize, there_are: usize) -> Finding {
    codes::FEW_DESCRIPTORS.finding(
        state.name(),
        format!(
            "few open files: all relays of its process hold at most {there_are} connections, not {wanted}"
        ),
        "for more, raise the hard limit on open files (LimitNOFILE=) and start the relay again",
    )
}

/// What is so on purpose, and good to know: a relay carries it, or the service sees local clients.
pub fn on_purpose(state: &Attachment) -> Option<Finding> {
    if state.datapath.is_relay() {
        return Some(relayed(state));
    }
    match state.identity {
        Identity::Loopback => Some(local_clients(state)),
        Identity::Container => None,
    }
}

fn relayed(state: &Attachment) -> Finding {
    codes::RELAYED.finding(state.name(), format!("relayed with {}: {}", state.datapath, state.reason), "")
}

fn local_clients(state: &Attachment) -> Finding {
    codes::LOCAL_CLIENTS.finding(state.name(), "the service sees local clients (identity loopback)", "")
}
