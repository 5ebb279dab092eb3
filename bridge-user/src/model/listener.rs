//! One listening TCP socket, as the kernel tells of it. Pure data; `net::listeners` finds them.

use std::net::SocketAddr;

use bridge_common::maps::TargetKey;

/// One listening TCP socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Where it is bound. An IPv6 socket bound to an IPv4-mapped address (`::ffff:127.0.0.1`, as Java does)
    /// keeps that form here: see [`Listener::serves`].
    pub addr: SocketAddr,
    /// Inode number of the socket file, as in /proc/PID/fd; for MPTCP that of the application's socket.
    pub inode: u64,
    /// The kernel's socket cookie (SO_COOKIE); for MPTCP that of the subflow, not of the application's socket.
    pub cookie: u64,
    /// IPV6_V6ONLY for IPv6 sockets, `None` for IPv4: `Some(false)` on `::` serves IPv4 as well.
    pub v6only: Option<bool>,
    /// An MPTCP listener, which a SOCKMAP refuses. Known for certain with CAP_NET_ADMIN; without it kernels
    /// before 6.15 do not tell, and this is false.
    pub mptcp: bool,
    /// Index of the interface the listener is bound to (SO_BINDTODEVICE); 0 for none.
    pub device: u32,
    /// User id of the socket's owner, in the caller's user namespace.
    pub uid: u32,
    /// More connections wait to be accepted than listen(2) allowed (`sk_acceptq_is_full`): the kernel takes no other.
    pub is_full: bool,
}

impl Listener {
    /// Whether a connection to `target` on the host would reach this listener: same port, and bound to that
    /// address or to one that includes it (0.0.0.0, `::`, the IPv4-mapped forms). The kernel prefers the most
    /// specific of several such listeners.
    pub fn serves(&self, target: SocketAddr) -> bool {
        if self.addr.port() != target.port() {
            return false;
        }
        let (bound, wanted) = (self.addr.ip(), target.ip());
        let dual_stack = self.v6only == Some(false);
        let same_family = bound.is_ipv4() == wanted.is_ipv4();
        if same_family {
            return bound == wanted || bound.is_unspecified();
        }
        dual_stack && wanted.is_ipv4() && (self.is_on_every_address() || bound.to_canonical() == wanted)
    }

    /// How the kernel prefers it among those that serve `target`: the exact address before every one, and the target's
    /// own family before the other (`compute_score`, net/ipv4/inet_hashtables.c).
    pub fn specificity(&self, target: SocketAddr) -> (bool, bool) {
        (!self.is_on_every_address(), self.addr.is_ipv4() == target.is_ipv4())
    }

    /// Whether it is bound to 0.0.0.0, also in its IPv4-mapped form (as .NET does), or to `::`.
    pub fn is_on_every_address(&self) -> bool {
        self.addr.ip().to_canonical().is_unspecified()
    }

    /// Whether connections to `target` that arrive on a bridge can be steered to this listener. One bound to an
    /// interface (`lo`, say) would take the SYN and then lose the rest: its connections match that interface only.
    pub fn can_serve(&self, target: SocketAddr) -> bool {
        self.device == 0 && self.serves(target)
    }

    /// Its key in the maps of listeners and targets.
    pub fn key(&self) -> TargetKey {
        TargetKey::new(self.addr.ip().into(), self.addr.port())
    }
}
