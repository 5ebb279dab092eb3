//! tc ingress on a bridge: puts a connection that arrives for (gateway, port) onto the loopback listener if that is an
//! MPTCP one. A socket map cannot hold such a listener, so `steer` cannot assign it.
//!
//! Runs before netfilter and before the listener lookup, for every packet of the bridge. It is done with a packet that
//! is no SYN, unless there are SYN cookies (`syn_cookies`), and with the first lookup that finds nothing. It never
//! drops a packet, and never decides for other filters: the next one always runs. `steer` sees every packet that this
//! program leaves alone; it decides who is refused, and counts it.

use core::{mem::MaybeUninit, ptr::addr_of};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_F_CURRENT_NETNS, BPF_F_INGRESS, BPF_TCP_LISTEN, TC_ACT_UNSPEC, bpf_sock, bpf_sock_tuple,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
    },
    helpers::{bpf_redirect, bpf_sk_assign, bpf_sk_release, bpf_skc_lookup_tcp},
    macros::classifier,
    maps::lpm_trie::Key,
    programs::TcContext,
};
use bridge_common::{
    Ip,
    maps::{ALLOW_KEY_BITS, AllowKey, RuleKey, Stats},
    steer::{ASSIGNED_MARK, Outcome, SourceClass},
};

use crate::{
    events, handoff,
    lookup::{self, AttachmentFields, Packet},
    maps, switches, syn_cookies,
};

/// Length of an Ethernet header, which tc ingress of a bridge shows in front of the packet.
const ETH_LEN: usize = 14;
const IPV6_LEN: usize = 40;
/// `ETH_P_IP` and `ETH_P_IPV6` in the context's byte order.
const ETH_P_IP: u32 = (0x0800_u16).to_be() as u32;
const ETH_P_IPV6: u32 = (0x86dd_u16).to_be() as u32;
const IPPROTO_TCP: u8 = 6;
/// Flags of byte 13 of a TCP header.
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// A TCP packet for some address.
struct Segment {
    packet: Packet,
    flags: u8,
}

impl Segment {
    const fn is_syn(&self) -> bool {
        self.flags & (SYN | ACK) == SYN
    }
}

/// Entry point.
#[classifier]
pub(crate) fn steer_tc(ctx: TcContext) -> i32 {
    try_steer(&ctx).unwrap_or(TC_ACT_UNSPEC)
}

/// `None`: nothing for this program to do.
#[inline(always)]
fn try_steer(ctx: &TcContext) -> Option<i32> {
    let segment = read_segment(ctx)?;
    if segment.flags & RST != 0 || !segment.is_syn() && !syn_cookies::may_be_in_use() {
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
    let attachment = lookup::attachment(id)?;
    if !lookup::is_mptcp_target(&attachment) {
        return None;
    }
    // SAFETY: the kernel passes a valid context.
    let arrives_again = unsafe { addr_of!((*ctx.skb.skb).mark).read_volatile() } == ASSIGNED_MARK;
    // The kernel's tables were searched when the packet arrived first, a moment ago.
    if !arrives_again && is_known(ctx, packet) {
        return None;
    }
    let source = Key::new(ALLOW_KEY_BITS, AllowKey { set: attachment.allow_set, addr: packet.source });
    if SourceClass::from_entry(maps::ALLOW.get(&source).copied()) != SourceClass::Allowed {
        return None;
    }
    if !arrives_again {
        return Some(arrive_again(ctx));
    }
    let stats = maps::STATS.get_ptr_mut(&id)?;
    // SAFETY: a per-CPU value, and nothing else runs this program on this CPU meanwhile.
    let stats: &mut Stats = unsafe { &mut *stats };
    let outcome = assign(ctx, packet, &attachment);
    if outcome == Outcome::Accepted {
        handoff::record(handoff::this_cpu()?, packet, &attachment, segment.is_syn());
    }
    // The ACK that ends a handshake with a SYN cookie belongs to a connection that is counted already.
    if segment.is_syn() {
        events::record(ctx, stats, outcome, packet);
    }
    None
}

/// Marks the packet and redirects it to the bridge's ingress, where it arrives again. The redirect removes what
/// connection tracking has attached to it (`skb_scrub_packet`). With br_netfilter, netfilter's PREROUTING has seen the
/// packet before this program; now it sees the packet again, with the mark.
#[inline(always)]
fn arrive_again(ctx: &TcContext) -> i32 {
    // SAFETY: the kernel passes a valid context, and lets tc programs write the mark.
    unsafe {
        (*ctx.skb.skb).mark = ASSIGNED_MARK;
        bpf_redirect((*ctx.skb.skb).ifindex, u64::from(BPF_F_INGRESS)) as i32
    }
}

/// IPv4 without fragments, IPv6 without extension headers: the usual TCP handshake. Other packets are left alone.
#[inline(always)]
fn read_segment(ctx: &TcContext) -> Option<Segment> {
    // SAFETY: the kernel passes a valid context.
    let protocol = unsafe { addr_of!((*ctx.skb.skb).protocol).read_volatile() };
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
    let found = find_socket(ctx, packet.source, packet.source_port, packet.gateway, packet.port);
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

/// Assigns the packet to the listener on the target.
#[inline(always)]
fn assign(ctx: &TcContext, packet: &Packet, attachment: &AttachmentFields) -> Outcome {
    let Some(sk) = find_socket(ctx, packet.source, packet.source_port, attachment.target, attachment.port)
    else {
        return Outcome::NoListener;
    };
    // SAFETY: `sk` is referenced until it is released, on every path.
    let (state, device) =
        unsafe { (addr_of!((*sk).state).read_volatile(), addr_of!((*sk).bound_dev_if).read_volatile()) };
    let mut outcome = Outcome::NoListener;
    if state == BPF_TCP_LISTEN && device == 0 {
        // SAFETY: as above.
        let refused = unsafe { bpf_sk_assign(ctx.as_ptr(), sk.cast(), 0) } != 0;
        outcome = if refused { Outcome::AssignFailed } else { Outcome::Accepted };
    }
    release(sk);
    outcome
}

/// The socket of this network namespace that a packet from `source` to `to` would reach. It is referenced.
#[inline(always)]
fn find_socket(ctx: &TcContext, source: Ip, source_port: u16, to: Ip, port: u16) -> Option<*mut bpf_sock> {
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
