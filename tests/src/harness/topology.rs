//! The fixed test network: a "host" with two bridges, containers on them, and an outside machine.
//!
//! ```text
//!  a1 .11 ─┐                                   ┌─ b1 .11
//!  a2 .12 ─┴ br-a 172.30.1.1/24 ─ host ─ br-b 172.30.2.1/24
//!            fd00:30:1::1/64       └ up0 198.51.100.1/24 ─ outside .2
//! ```
//! Invariants: the host forwards and has the NAT rules a Docker engine loads, because nf_nat
//! changes what early demultiplexing may do; every container reached the gateway before
//! [`Topology::new`] returns, so later refusals are answers and not lost packets.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpStream};
use std::time::Duration;

use anyhow::Result;

use super::counts::Strays;
use super::netns::Netns;
use super::wait::{patience, until};

pub(crate) const GATEWAY_A: Ipv4Addr = Ipv4Addr::new(172, 30, 1, 1);
pub(crate) const GATEWAY_B: Ipv4Addr = Ipv4Addr::new(172, 30, 2, 1);
pub(crate) const A1: Ipv4Addr = Ipv4Addr::new(172, 30, 1, 11);
pub(crate) const A2: Ipv4Addr = Ipv4Addr::new(172, 30, 1, 12);
pub(crate) const B1: Ipv4Addr = Ipv4Addr::new(172, 30, 2, 11);
pub(crate) const UPLINK: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
pub(crate) const GATEWAY_A6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x30, 1, 0, 0, 0, 0, 1);
pub(crate) const A1_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x30, 1, 0, 0, 0, 0, 0x11);

/// Shorthand for an IPv4 endpoint.
pub(crate) fn at(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddrV4::new(address, port).into()
}

/// Shorthand for an IPv6 endpoint.
pub(crate) fn at6(address: Ipv6Addr, port: u16) -> SocketAddr {
    SocketAddrV6::new(address, port, 0, 0).into()
}

/// Shorthand for a loopback endpoint.
pub(crate) fn local(port: u16) -> SocketAddr {
    at(Ipv4Addr::LOCALHOST, port)
}

/// What a Docker engine loads: local DNAT, masquerading per subnet, filtered forwarding.
pub(crate) const DOCKER_LIKE_RULES: &str = r#"
table ip nat {
    chain DOCKER {
        iifname != "br-a" tcp dport 8080 counter dnat to 172.30.1.11:80
    }
    chain PREROUTING {
        type nat hook prerouting priority -100; policy accept;
        fib daddr type local counter jump DOCKER
    }
    chain OUTPUT {
        type nat hook output priority -100; policy accept;
        ip daddr != 127.0.0.0/8 fib daddr type local counter jump DOCKER
    }
    chain POSTROUTING {
        type nat hook postrouting priority 100; policy accept;
        oifname != "br-a" ip saddr 172.30.1.0/24 counter masquerade
        oifname != "br-b" ip saddr 172.30.2.0/24 counter masquerade
    }
}
table ip6 nat {
    chain POSTROUTING {
        type nat hook postrouting priority 100; policy accept;
        oifname != "br-a" ip6 saddr fd00:30:1::/64 counter masquerade
    }
}
table ip filter {
    chain FORWARD {
        type filter hook forward priority 0; policy drop;
        oifname { "br-a", "br-b" } ct state established,related counter accept
        iifname "br-a" oifname != "br-b" counter accept
        iifname "br-b" oifname != "br-a" counter accept
    }
}
"#;

/// The namespaces of the test network.
pub(crate) struct Topology {
    pub(crate) host: Netns,
    pub(crate) a1: Netns,
    pub(crate) a2: Netns,
    pub(crate) b1: Netns,
    pub(crate) outside: Netns,
}

impl Topology {
    /// Packets of no connection that any namespace knows of, since they were made.
    pub(crate) fn strays(&self) -> Result<Strays> {
        let others = [&self.a1, &self.a2, &self.b1, &self.outside];
        others.into_iter().try_fold(Strays::of_host(&self.host)?, Strays::and_of)
    }

    /// Builds the network and waits until every namespace reaches the host.
    pub(crate) fn new() -> Result<Self> {
        Self::around(Netns::new()?)
    }

    /// Builds the network around an empty namespace that becomes the host.
    pub(crate) fn around(host: Netns) -> Result<Self> {
        let topology =
            Self { host, a1: Netns::new()?, a2: Netns::new()?, b1: Netns::new()?, outside: Netns::new()? };
        topology.host.ip(&topology.host_links())?;
        topology.host.sysctl("net/ipv4/ip_forward", "1")?;
        topology.host.nft(DOCKER_LIKE_RULES)?;
        for (netns, address, gateway) in [
            (&topology.a1, A1, GATEWAY_A),
            (&topology.a2, A2, GATEWAY_A),
            (&topology.b1, B1, GATEWAY_B),
            (&topology.outside, OUTSIDE, UPLINK),
        ] {
            netns.ip(&container_links(address, gateway))?;
            reaches(netns, at(gateway, 1))?;
        }
        topology.a1.ip(&format!("addr add {A1_6}/64 dev eth0 nodad"))?;
        reaches(&topology.a1, at6(GATEWAY_A6, 1))?;
        Ok(topology)
    }

    fn host_links(&self) -> String {
        let mut batch = String::new();
        for (bridge, mac, gateway) in
            [("br-a", "02:42:ac:1e:01:01", GATEWAY_A), ("br-b", "02:42:ac:1e:02:01", GATEWAY_B)]
        {
            // An address of its own, as engines give it: without one, a port that comes can change it, and neighbours
            // would go on with the old one.
            write_line(&mut batch, format_args!("link add {bridge} address {mac} type bridge"));
            write_line(&mut batch, format_args!("addr add {gateway}/24 dev {bridge}"));
            write_line(&mut batch, format_args!("link set {bridge} up"));
        }
        write_line(&mut batch, format_args!("addr add {GATEWAY_A6}/64 dev br-a nodad"));
        for (link, bridge, netns) in
            [("va1", "br-a", &self.a1), ("va2", "br-a", &self.a2), ("vb1", "br-b", &self.b1)]
        {
            write_line(
                &mut batch,
                format_args!("link add {link} type veth peer name eth0 netns {}", netns.path()),
            );
            write_line(&mut batch, format_args!("link set {link} master {bridge} up"));
        }
        let outside = self.outside.path();
        write_line(&mut batch, format_args!("link add up0 type veth peer name eth0 netns {outside}"));
        write_line(&mut batch, format_args!("addr add {UPLINK}/24 dev up0"));
        write_line(&mut batch, format_args!("link set up0 up"));
        batch
    }
}

fn write_line(batch: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(batch, "{line}").expect("writing to a string works");
}

/// One address, link up, default route. For the outside machine the default route is the route to
/// the containers' subnets through the host that the weak host model attack needs.
fn container_links(address: Ipv4Addr, gateway: Ipv4Addr) -> String {
    format!("addr add {address}/24 dev eth0\nlink set eth0 up\nroute add default via {gateway}\n")
}

/// Waits until a connection attempt is answered with a reset: links, ARP and routes work.
pub(crate) fn reaches(netns: &Netns, to: SocketAddr) -> Result<()> {
    until(&format!("{to} answers"), patience(10), || {
        let outcome = netns.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(300)));
        Ok(outcome.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused).then_some(()))
    })
}
