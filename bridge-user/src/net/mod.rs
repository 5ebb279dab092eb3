//! What the kernel says about a network namespace: interfaces, TCP listeners, and who owns a socket.
//!
//! Invariants: read-only. Everything takes the namespace it is about, is synchronous, and opens its sockets there,
//! whatever thread it is called on; nothing is cached, and no runtime is needed (the functions may be called from
//! inside one: each returns within milliseconds). The netlink answers are read attribute by attribute, so an unknown
//! or longer attribute of a newer kernel is skipped, not an error.

pub(crate) mod changes;
pub mod clients;
pub mod links;
pub mod listeners;
pub mod namespace;
pub(crate) mod netlink;
pub mod own;
pub mod proc_fd;
pub mod processes;
pub mod reach;
pub(crate) mod sys;

use thiserror::Error;

/// Why a question about the network namespace has no answer.
///
/// Each message is complete (cause and next step included); there is no further `source()`.
#[derive(Debug, Error)]
pub enum NetError {
    /// No interface has this name.
    #[error("failed to find bridge {name}: no such interface in this network namespace: {}", known_bridges(.bridges))]
    UnknownInterface {
        /// The name asked for.
        name: String,
        /// Names of the bridges that do exist, sorted.
        bridges: Vec<String>,
    },
    /// The interface exists and is not a Linux bridge.
    #[error(
        "failed to use {name} as a bridge: it is {}, expected a Linux bridge, the device containers' interfaces are \
         ports of: {}",
        kind_in_words(.kind), known_bridges(.bridges)
    )]
    NotABridge {
        /// The name asked for.
        name: String,
        /// The kernel's link kind (`veth`, `macvlan`, …), or empty for a physical or loopback device.
        kind: String,
        /// Names of the bridges that do exist, sorted.
        bridges: Vec<String>,
    },
    /// No interface has this address, which the container's engine says it has.
    #[error(
        "failed to find the container's interface: none has address {address}, which Docker says it has (perhaps it \
         was just connected or disconnected): try again"
    )]
    NoInterface {
        /// The address.
        address: std::net::IpAddr,
    },
    /// The bridge has no address that containers could connect to.
    #[error(
        "failed to use bridge {name}: it has no IP address except IPv6 link-local, expected the gateway address of \
         its containers: give it one (ip address add ADDR/PREFIX dev {name}) or choose a network whose host side has \
         an address"
    )]
    NoAddress {
        /// The bridge.
        name: String,
    },
    /// No connection could be tried.
    #[error("failed to try a connection to {target}: {cause}: raise the limit on open files, or try again")]
    Connect {
        /// Where to.
        target: std::net::SocketAddr,
        /// What the kernel answered.
        cause: std::io::Error,
    },
    /// The kernel refused a netlink request, or the exchange failed.
    #[error("failed to {action} over netlink: {cause}: {next}", next = netlink_hint(.cause))]
    Netlink {
        /// What was being done, as a verb and its object.
        action: &'static str,
        /// What the kernel answered.
        cause: std::io::Error,
    },
}

/// What to say where no descriptor was free.
pub(crate) const OUT_OF_DESCRIPTORS: &str = "failed to try what this kernel can do: no more files can be opened: raise \
                                             the limit (`ulimit -n 1024`, LimitNOFILE= in a unit), or close some";

/// Whether something failed because the process or the system has no descriptor left.
pub(crate) fn is_out_of_descriptors(error: &anyhow::Error) -> bool {
    let number = |cause: &(dyn std::error::Error + 'static)| {
        if let Some(NetError::Netlink { cause, .. }) = cause.downcast_ref() {
            return cause.raw_os_error();
        }
        if let Some(errno) = cause.downcast_ref::<nix::errno::Errno>() {
            return Some(*errno as i32);
        }
        cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error)
    };
    error.chain().any(|cause| matches!(number(cause), Some(libc::EMFILE | libc::ENFILE)))
}

fn known_bridges(bridges: &[String]) -> String {
    if bridges.is_empty() {
        "there is no bridge here at all, start Docker or create one (ip link add NAME type bridge)".to_owned()
    } else {
        format!("choose one of the bridges here ({})", bridges.join(", "))
    }
}

fn kind_in_words(kind: &str) -> String {
    if kind.is_empty() { "a physical or loopback device".to_owned() } else { format!("of kind {kind}") }
}

fn netlink_hint(cause: &std::io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::EPROTONOSUPPORT | libc::ENOENT) => {
            "the kernel lacks this netlink family, load it (modprobe inet_diag tcp_diag) or use a kernel that has it"
        }
        Some(libc::EPERM | libc::EACCES) => "run as root, outside a sandbox that filters AF_NETLINK",
        Some(libc::EAFNOSUPPORT) => "allow AF_NETLINK sockets (RestrictAddressFamilies= of the systemd unit)",
        _ => "try again, and report it with the kernel version if it stays",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_descriptors_is_told_from_a_lack_of_features() {
        let io = |number| std::io::Error::from_raw_os_error(number);
        let netlink = NetError::Netlink { action: "list links", cause: io(libc::EMFILE) };
        for error in [
            anyhow::Error::new(io(libc::ENFILE)).context("failed to load"),
            anyhow::Error::new(netlink).context("failed to make a scratch bridge"),
            anyhow::Error::new(nix::errno::Errno::EMFILE).context("failed to enter"),
        ] {
            assert!(is_out_of_descriptors(&error), "{error:#}");
        }
        assert!(!is_out_of_descriptors(&anyhow::Error::new(io(libc::EINVAL))));
    }

    #[test]
    fn messages_name_value_expectation_and_next_step() {
        let bridges = vec!["br-1".to_owned(), "docker0".to_owned()];
        let unknown = NetError::UnknownInterface { name: "br-x".into(), bridges: bridges.clone() };
        assert_eq!(
            unknown.to_string(),
            "failed to find bridge br-x: no such interface in this network namespace: choose one of the bridges here \
             (br-1, docker0)"
        );
        let physical = NetError::NotABridge { name: "eth0".into(), kind: String::new(), bridges };
        assert!(physical.to_string().contains("a physical or loopback device, expected a Linux bridge"));
        let none = NetError::UnknownInterface { name: "x".into(), bridges: Vec::new() };
        assert!(none.to_string().contains("no bridge here at all"));
        let refused = NetError::Netlink {
            action: "list TCP listeners",
            cause: std::io::Error::from_raw_os_error(libc::ENOENT),
        };
        assert!(refused.to_string().contains("modprobe inet_diag tcp_diag"));
    }
}
