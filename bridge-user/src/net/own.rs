//! Whether an address is one of the host's own, as the kernel sees it at this moment.
//!
//! Invariant: nothing is remembered, so an address that was added just now is known, and so are those that no interface
//! shows (`ip route add local`). The answer is the type of the route there.

use std::{io, net::IpAddr};

use netlink_sys::Socket;

use super::{
    namespace::Namespace,
    netlink::{ask, open, push_attribute},
};

/// Length of `struct rtmsg`, in bytes, and where the type is in it.
const RTMSG_LEN: usize = 12;
const TYPE_AT: usize = 7;

/// One socket to ask a namespace's routes with. Needs no privilege.
pub struct OwnAddresses(Socket);

impl OwnAddresses {
    /// Those of a namespace.
    ///
    /// # Errors
    /// When it cannot be entered, or there is no socket to be had.
    pub fn of(namespace: &Namespace) -> io::Result<Self> {
        Ok(Self(open(namespace, netlink_sys::protocols::NETLINK_ROUTE)?))
    }

    /// Whether packets to the address go to the host itself.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn contain(&self, address: IpAddr) -> io::Result<bool> {
        let mut body = vec![0; RTMSG_LEN];
        let (family, octets): (_, &[u8]) = match &address {
            IpAddr::V4(v4) => (libc::AF_INET, &v4.octets()),
            IpAddr::V6(v6) => (libc::AF_INET6, &v6.octets()),
        };
        body[0] = family as u8;
        body[1] = if address.is_ipv4() { 32 } else { 128 };
        push_attribute(&mut body, libc::RTA_DST, octets);
        match ask(&self.0, libc::RTM_GETROUTE, &body) {
            Ok(routes) => Ok(routes.iter().any(|route| route.get(TYPE_AT) == Some(&libc::RTN_LOCAL))),
            Err(error) if leads_nowhere(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// What the kernel says of addresses without a route, or with one that forbids or drops.
fn leads_nowhere(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_the_hosts_and_a_documentation_address_is_not() {
        let own = OwnAddresses::of(&Namespace::current().unwrap()).unwrap();
        for (address, expected) in
            [("127.0.0.1", true), ("127.9.9.9", true), ("192.0.2.7", false), ("2001:db8::7", false)]
        {
            assert_eq!(own.contain(address.parse().unwrap()).unwrap(), expected, "{address}");
        }
    }
}
