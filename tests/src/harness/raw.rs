//! TCP segments made by hand, as only a container with CAP_NET_RAW sends them.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};

use super::sys::packet_socket;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;

/// The TCP checksum of a segment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checksum {
    Right,
    Wrong,
}

/// The source port of every segment.
pub(crate) const SEGMENT_PORT: u16 = 40_001;

/// Sends one segment without data from `source`, in the calling thread's namespace.
pub(crate) fn send_segment(source: Ipv4Addr, to: SocketAddr, flags: u8, checksum: Checksum) -> Result<()> {
    let SocketAddr::V4(v4) = to else { bail!("{to} is no IPv4 address") };
    let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
        .context("failed to open a raw socket")?;
    // IPPROTO_RAW takes the IP header with the data, and completes its checksum (raw(7)).
    let packet = packet(source, (*v4.ip(), v4.port()), flags, checksum);
    let sent = sendto(socket.as_raw_fd(), &packet, &SockaddrStorage::from(to), MsgFlags::empty())?;
    anyhow::ensure!(sent == packet.len(), "{sent} of {} bytes were sent", packet.len());
    Ok(())
}

/// Sends one SYN in a frame to `mac`, with a VLAN tag or without, over `interface` of the calling thread's namespace.
/// Its checksum is wrong, so that nothing comes of it but what a tc program makes of it.
pub(crate) fn send_syn_frame(
    interface: &str,
    mac: [u8; 6],
    vlan: Option<u8>,
    source: Ipv4Addr,
    to: SocketAddr,
) -> Result<()> {
    let SocketAddr::V4(v4) = to else { bail!("{to} is no IPv4 address") };
    let socket = packet_socket(interface)?;
    let mut frame = mac.to_vec();
    frame.extend([2, 0, 0, 0, 0, 0x11]);
    frame.extend(vlan.into_iter().flat_map(|tag| [0x81, 0, 0, tag]));
    frame.extend([0x08, 0]);
    frame.extend(packet(source, (*v4.ip(), v4.port()), SYN, Checksum::Wrong));
    let sent = nix::unistd::write(&socket, &frame).context("failed to send a frame")?;
    anyhow::ensure!(sent == frame.len(), "{sent} of {} bytes were sent", frame.len());
    Ok(())
}

/// A whole IPv4 packet.
fn packet(source: Ipv4Addr, to: (Ipv4Addr, u16), flags: u8, checksum: Checksum) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
    packet.extend(source.octets());
    packet.extend(to.0.octets());
    let sum = folded(packet.chunks(2).map(word).sum());
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(segment(source, to, flags, checksum));
    packet
}

fn segment(source: Ipv4Addr, (to, port): (Ipv4Addr, u16), flags: u8, checksum: Checksum) -> [u8; 20] {
    let mut segment = [0; 20];
    segment[..2].copy_from_slice(&SEGMENT_PORT.to_be_bytes());
    segment[2..4].copy_from_slice(&port.to_be_bytes());
    segment[4..8].copy_from_slice(&0x5151_5151_u32.to_be_bytes());
    segment[12] = 5 << 4;
    segment[13] = flags;
    segment[14..16].copy_from_slice(&64_000_u16.to_be_bytes());
    let mut sum: u32 =
        [source.octets(), to.octets()].iter().flat_map(|octets| octets.chunks(2)).map(word).sum();
    sum += 6 + 20 + segment.chunks(2).map(word).sum::<u32>();
    let right = folded(sum);
    let sent = if checksum == Checksum::Right { right } else { right ^ 0x0101 };
    segment[16..18].copy_from_slice(&sent.to_be_bytes());
    segment
}

/// The Internet checksum of a sum of words (RFC 1071).
fn folded(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

fn word(pair: &[u8]) -> u32 {
    u32::from(pair[0]) << 8 | u32::from(pair[1])
}
