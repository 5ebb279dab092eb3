//! tc ingress on a bridge: puts a connection that arrives for (gateway, port) onto the loopback listener if that is an
//! MPTCP one. A socket map cannot hold such a listener, so `steer` cannot assign it.
//!
//! Runs before netfilter and before the listener lookup, for every packet of the bridge. It is done with a packet that
//! is no SYN, unless there are SYN cookies (`syn_cookies`), and with the first lookup that finds nothing. It changes
//! nothing but which listener a packet gets, never drops one, and never decides for other filters: the next one always
//! runs, and so does netfilter. `steer` sees every packet that this program leaves alone; it decides who is refused,
//! and counts it.
//!
//! nf_nat takes a listener away again from a packet that conntrack knows, unless the listener is transparent
//! (`nf_nat_ipv4_local_in`). Userspace makes it so (`state::transparent` in `bridge-user`) and says so in
//! `MPTCP_PREPARED`; other listeners are left alone.

use core::{mem::MaybeUninit, ptr::addr_of};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_F_CURRENT_NETNS, BPF_TCP_LISTEN, TC_ACT_UNSPEC, bpf_sock, bpf_sock_tuple,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
    },
    helpers::{bpf_sk_assign, bpf_sk_release, bpf_skc_lookup_tcp, bpf_skc_to_mptcp_sock},
    macros::classifier,
    programs::TcContext,
};
use bridge_common::{
    Ip,
    maps::{LEFT_KNOWN, LEFT_UNPREPARED, RuleKey, Stage, TargetKey},
    steer::{Outcome, SourceClass},
};

use crate::{
    context::words,
    events, handoff,
    lookup::{self, AttachmentFields, Packet},
    maps, stages, switches, syn_cookies,
};

/// Length of an Ethernet header, which tc ingress of a bridge shows in front of the packet.
const ETH_LEN: usize = 14;
const IPV6_LEN: usize = 40;
/// `ETH_P_IP` and `ETH_P_IPV6` in the context's byte order.
const ETH_P_IP: u32 = (0x0800_u16).to_be() as u32;
const ETH_P_IPV6: u32 = (0x86dd_u16).to_be() as u32;
const IPPROTO_TCP: u8 = 6;
/// `PACKET_HOST`: the frame is for this interface.
const PACKET_HOST: u32 = 0;
/// Flags of byte 13 of a TCP header.
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// A TCP packet for some address.
struct Segment {
    packet: Packet,
    flags: u8,
}

impl Segment {
    /// A SYN that a listener answers: it drops one with FIN (`tcp_rcv_state_process`).
    const fn is_syn(&self) -> bool {
        self.flags & (FIN | SYN | RST | ACK) == SYN
    }

    /// What may be the answer to a SYN cookie.
    const fn is_ack(&self) -> bool {
        self.flags & (SYN | RST | ACK) == ACK
    }
}

/// Entry point.
#[classifier]
pub(crate) fn steer_tc(ctx: TcContext) -> i32 {
    let _ = try_steer(&ctx);
    TC_ACT_UNSPEC
}

/// `None`: nothing for this program to do.
#[inline(always)]
fn try_steer(ctx: &TcContext) -> Option<()> {
    let segment = read_segment(ctx)?;
    if !segment.is_syn() && !(segment.is_ack() && syn_cookies::may_be_in_use()) {
        return None;
    }
    let packet = &segment.packet;
    let ifindex = match switches::HAVE_INGRESS_IFINDEX.load() {
        0 => 0,
        // SAFETY: the kernel passes a valid context.
        _ => unsafe { addr_of!((*ctx.skb.skb).ifindex).read_volatile() },
    };
    let rule = RuleKey { gateway: packet.gateway, ifindex, port: packet.port, pad: 0 };
    // SAFETY: the value is a plain integer.
    let id = *unsafe { maps::RULES.get(&rule) }?;
    if segment.is_syn() {
        stages::reached(id, Stage::Arrived);
    }
    let attachment = lookup::attachment(id)?;
    if !lookup::may_have_mptcp_listener(&attachment)
        || lookup::source_class(&attachment, packet) != SourceClass::Allowed
    {
        return None;
    }
    if is_known(ctx, packet) {
        handoff::leave(packet, LEFT_KNOWN);
        return None;
    }
    let outcome = assign(ctx, packet, &attachment)?;
    if outcome == Outcome::Steered {
        handoff::record(handoff::this_cpu()?, packet, &attachment, segment.is_syn());
    }
    // The ACK that ends a handshake with a SYN cookie belongs to a connection that is counted already.
    if segment.is_syn() {
        events::record(ctx, stages::of(id)?, id, outcome, packet);
    }
    Some(())
}

/// IPv4 without fragments, IPv6 without extension headers: the usual TCP handshake. Other packets are left alone. So
/// are frames for somebody else, and those with a VLAN tag: they are for another interface on top of this one.
#[inline(always)]
fn read_segment(ctx: &TcContext) -> Option<Segment> {
    // SAFETY: the kernel passes a valid context.
    let (protocol, kind, vlan) = unsafe {
        (
            addr_of!((*ctx.skb.skb).protocol).read_volatile(),
            addr_of!((*ctx.skb.skb).pkt_type).read_volatile(),
            addr_of!((*ctx.skb.skb).vlan_present).read_volatile(),
        )
    };
    if kind != PACKET_HOST || vlan != 0 {
        return None;
    }
    let (source, gateway, transport) = match protocol {
        ETH_P_IP => read_ipv4(ctx)?,
        ETH_P_IPV6 => read_ipv6(ctx)?,
        _ => return None,
    };
    let tcp: [u8; 14] = ctx.load(transport).ok()?;
    let packet = Packet {
        source,
        gateway,
        source_port: u16::from_be_bytes([tcp[0], tcp[1]]),
        port: u16::from_be_bytes([tcp[2], tcp[3]]),
    };
    Some(Segment { packet, flags: tcp[13] })
}

#[inline(always)]
fn read_ipv4(ctx: &TcContext) -> Option<(Ip, Ip, usize)> {
    let ip: [u32; 5] = ctx.load(ETH_LEN).ok()?;
    let header = u32::from_be(ip[0]) >> 24;
    let fragment = u32::from_be(ip[1]) & 0x3fff;
    let protocol = (u32::from_be(ip[2]) >> 16) as u8;
    if header >> 4 != 4 || header & 0xf < 5 || fragment != 0 || protocol != IPPROTO_TCP {
        return None;
    }
    let transport = ETH_LEN + 4 * (header & 0xf) as usize;
    Some((Ip::from_v4_word(ip[3]), Ip::from_v4_word(ip[4]), transport))
}

#[inline(always)]
fn read_ipv6(ctx: &TcContext) -> Option<(Ip, Ip, usize)> {
    let ip: [u32; 10] = ctx.load(ETH_LEN).ok()?;
    let next_header = (u32::from_be(ip[1]) >> 8) as u8;
    if next_header != IPPROTO_TCP {
        return None;
    }
    let source = Ip { words: [ip[2], ip[3], ip[4], ip[5]] };
    let gateway = Ip { words: [ip[6], ip[7], ip[8], ip[9]] };
    Some((source, gateway, ETH_LEN + IPV6_LEN))
}

/// Whether the kernel has a connection with these addresses, in any state: then the packet belongs to it.
///
/// A lookup that finds no connection goes on to listeners, and so through `steer`, which would try all its slots. The
/// hand-off tells `steer` to leave this lookup alone.
#[inline(always)]
fn is_known(ctx: &TcContext, packet: &Packet) -> bool {
    let Some(handoff) = handoff::this_cpu() else { return true };
    handoff.lookup = packet.connection();
    let found = find(ctx, packet, packet.gateway, packet.port);
    handoff.lookup.port = 0;
    match found {
        None => false,
        Some(sk) => {
            // SAFETY: `sk` is referenced until it is released.
            let listens = unsafe { addr_of!((*sk).state).read_volatile() } == BPF_TCP_LISTEN;
            release(sk);
            !listens
        }
    }
}

/// Assigns the packet to the listener that the kernel finds for a packet from there to the target, if that is an MPTCP
/// one that userspace made transparent. `None`: it is none of this program's; `steer` sees the packet.
#[inline(always)]
fn assign(ctx: &TcContext, packet: &Packet, attachment: &AttachmentFields) -> Option<Outcome> {
    let sk = find(ctx, packet, attachment.target, attachment.port)?;
    let outcome = match fitness(sk) {
        Fitness::Ready => give(ctx, sk),
        Fitness::Unprepared => {
            handoff::leave(packet, LEFT_UNPREPARED);
            None
        }
        Fitness::Foreign => None,
    };
    release(sk);
    outcome
}

/// What a socket that was found is to this program.
enum Fitness {
    /// The newest MPTCP listener on its address, and transparent.
    Ready,
    /// That listener, not transparent.
    Unprepared,
    /// Any other socket.
    Foreign,
}

#[inline(always)]
fn fitness(sk: *mut bpf_sock) -> Fitness {
    let Some(bound) = bound_at(sk) else { return Fitness::Foreign };
    // SAFETY: the value is a plain integer, copied at once.
    match unsafe { maps::MPTCP_TARGETS.get(&bound) }.copied() {
        None => Fitness::Foreign,
        Some(newest) if lookup::is_prepared(&bound, newest) => Fitness::Ready,
        Some(_) => Fitness::Unprepared,
    }
}

/// Where a listener for any interface is bound; `None` for any other socket.
#[inline(always)]
fn bound_at(sk: *mut bpf_sock) -> Option<TargetKey> {
    // SAFETY: `sk` is referenced until it is released.
    let (state, device, family, v4, v6, port) = unsafe {
        (
            addr_of!((*sk).state).read_volatile(),
            addr_of!((*sk).bound_dev_if).read_volatile(),
            addr_of!((*sk).family).read_volatile(),
            addr_of!((*sk).src_ip4).read_volatile(),
            words(addr_of!((*sk).src_ip6)),
            addr_of!((*sk).src_port).read_volatile() as u16,
        )
    };
    let is_listener = (state ^ BPF_TCP_LISTEN) | device == 0;
    is_listener.then(|| TargetKey::new(Ip::from_context(family, v4, v6), port))
}

/// Assigns the packet to a listener if it is an MPTCP one: beside it a plain one may share its port.
#[inline(always)]
fn give(ctx: &TcContext, sk: *mut bpf_sock) -> Option<Outcome> {
    // SAFETY: `sk` is referenced until it is released.
    unsafe {
        if bpf_skc_to_mptcp_sock(sk.cast()).is_null() {
            return None;
        }
        let refused = bpf_sk_assign(ctx.as_ptr(), sk.cast(), 0) != 0;
        Some(if refused { Outcome::AssignFailed } else { Outcome::Steered })
    }
}

/// The socket of this network namespace that a packet from there to `to` would reach. It is referenced.
#[inline(always)]
fn find(ctx: &TcContext, packet: &Packet, to: Ip, port: u16) -> Option<*mut bpf_sock> {
    let (source, source_port) = (packet.source, packet.source_port);
    // Not zeroed: that would be a function call, with which older verifiers walk through far more states.
    let mut tuple = MaybeUninit::<bpf_sock_tuple>::uninit();
    let parts = tuple.as_mut_ptr();
    // SAFETY: every field of one family is written, none is read, and the size says which family it is.
    let sk = unsafe {
        let size = if to.is_v4() {
            let v4 = &raw mut (*parts).__bindgen_anon_1.ipv4;
            ((*v4).saddr, (*v4).daddr) = (source.words[3], to.words[3]);
            ((*v4).sport, (*v4).dport) = (source_port.to_be(), port.to_be());
            size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>()
        } else {
            let v6 = &raw mut (*parts).__bindgen_anon_1.ipv6;
            ((*v6).saddr, (*v6).daddr) = (source.words, to.words);
            ((*v6).sport, (*v6).dport) = (source_port.to_be(), port.to_be());
            size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2>()
        };
        bpf_skc_lookup_tcp(ctx.as_ptr(), parts, size as u32, BPF_F_CURRENT_NETNS as u64, 0)
    };
    (!sk.is_null()).then_some(sk)
}

#[inline(always)]
fn release(sk: *mut bpf_sock) {
    // SAFETY: `sk` came out of a lookup and is not used afterwards.
    unsafe { bpf_sk_release(sk.cast()) };
}
