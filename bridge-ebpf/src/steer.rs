//! `sk_lookup`: puts a connection that arrives at (bridge, gateway, port) onto the loopback listener.
//!
//! One guard, one rule lookup, one allow-list lookup, then the first live listener. Never drops what no rule
//! covers.

use core::ptr::{addr_of, null_mut};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_SK_LOOKUP_F_REPLACE, BPF_TCP_LISTEN, bpf_sk_lookup, bpf_sock,
        sk_action::{SK_DROP, SK_PASS},
    },
    helpers::{bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release},
    macros::sk_lookup,
    programs::SkLookupContext,
};
use bridge_common::{
    Ip,
    maps::{LEFT_KNOWN, LEFT_UNPREPARED, LISTENER_SLOTS, ListenerKey, RuleKey, Stage, Stats, TargetKey},
    steer::{self, Outcome, SourceClass},
};

use crate::{
    context::words,
    events, handoff,
    lookup::{self, AttachmentFields, Packet},
    maps, stages, switches, tickets,
};

/// `IPPROTO_TCP`.
const IPPROTO_TCP: u32 = 6;

/// Entry point.
#[sk_lookup]
pub(crate) fn steer(ctx: SkLookupContext) -> u32 {
    match try_steer(&ctx) {
        Some(outcome) if !outcome.passes() => SK_DROP,
        _ => SK_PASS,
    }
}

/// `None`: no rule of ours covers this packet.
#[inline(always)]
fn try_steer(ctx: &SkLookupContext) -> Option<Outcome> {
    let sk = ctx.lookup;
    // SAFETY: the kernel passes a valid context; each field is read once, at its own width.
    if unsafe { addr_of!((*sk).protocol).read_volatile() } != IPPROTO_TCP {
        return None;
    }
    let packet = read_packet(sk);
    let handoff = handoff::this_cpu()?;
    let left = handoff::left(handoff, &packet);
    handoff::clear(handoff, &packet);
    let ifindex = match switches::HAVE_INGRESS_IFINDEX.load() {
        0 => 0,
        // SAFETY: as above; the verifier never reaches this where the field does not exist.
        _ => unsafe { addr_of!((*sk).ingress_ifindex).read_volatile() },
    };
    let rule = RuleKey { gateway: packet.gateway, ifindex, port: packet.port, pad: 0 };
    // SAFETY: the value is a plain integer.
    let Some(&id) = (unsafe { maps::RULES.get(&rule) }) else { return other_address(&rule, &packet) };
    // This is a lookup by `steer_tc`, not a packet that needs a listener.
    if handoff.lookup.is(&packet.connection()) {
        return None;
    }
    let attachment = lookup::attachment(id)?;
    let stats = stages::of(id)?;
    let outcome = match lookup::source_class(&attachment, &packet) {
        SourceClass::Allowed if left == LEFT_UNPREPARED => Outcome::NoListener,
        SourceClass::Allowed => serve(ctx, &attachment, stats),
        SourceClass::Host => return None,
        SourceClass::Unlisted => Outcome::Denied,
    };
    if outcome == Outcome::Steered {
        handoff::record(handoff, &packet, &attachment, false);
    } else {
        // The kernel answers with a reset, after which the client does not repeat its SYN.
        tickets::end(&packet.connection());
    }
    if outcome == Outcome::NoListener && left == LEFT_KNOWN {
        return None;
    }
    events::record(ctx, stats, id, outcome, &packet);
    Some(outcome)
}

/// Counts a connection to an address of this host that no rule names, at a port that is attached on its interface. One
/// from the address itself is the host's own, and to a loopback address none arrives: `steer_tc` looks for one.
#[inline(always)]
fn other_address(rule: &RuleKey, packet: &Packet) -> Option<Outcome> {
    // SAFETY: the value is a plain integer.
    let id = *unsafe { maps::RULES.get(&rule.of_others()) }?;
    if packet.source != packet.gateway && !packet.gateway.is_loopback() {
        stages::reached(id, Stage::WrongGateway);
    }
    None
}

#[inline(always)]
fn read_packet(sk: *const bpf_sk_lookup) -> Packet {
    // SAFETY: the kernel passes a valid context; the verifier checks each access.
    unsafe {
        let family = addr_of!((*sk).family).read_volatile();
        let (remote4, remote6) =
            (addr_of!((*sk).remote_ip4).read_volatile(), words(addr_of!((*sk).remote_ip6)));
        let (local4, local6) = (addr_of!((*sk).local_ip4).read_volatile(), words(addr_of!((*sk).local_ip6)));
        Packet {
            source: Ip::from_context(family, remote4, remote6),
            gateway: Ip::from_context(family, local4, local6),
            source_port: u16::from_be(addr_of!((*sk).remote_port).read_volatile()),
            port: addr_of!((*sk).local_port).read_volatile() as u16,
        }
    }
}

/// Tries every listener that may serve, most specific address first.
///
/// A refusal is kept in the map value, not in a variable. The verifier does not track the content of map values, so it
/// walks through the slots in one state, and not in one more for each refusal.
#[inline(always)]
fn serve(ctx: &SkLookupContext, attachment: &AttachmentFields, stats: &mut Stats) -> Outcome {
    let refusals = stats.refusals;
    let [exact, any_v4, any_v6] = steer::candidates(attachment.target, attachment.port);
    if assign_first_live(ctx, &exact, stats)
        || assign_first_live(ctx, &any_v4, stats)
        || assign_first_live(ctx, &any_v6, stats)
    {
        return Outcome::Steered;
    }
    if stats.refusals == refusals { Outcome::NoListener } else { Outcome::AssignFailed }
}

/// Tries the slots of one (address, port). The kernel then picks the member of a `SO_REUSEPORT` group itself, so any
/// live member will do.
///
/// Written out, not a loop: in a loop, older verifiers (seen on 5.10 and 6.1) keep a state to compare with only every
/// 20 jumps, and walk through every combination of what the slots in between may hold.
#[inline(always)]
fn assign_first_live(ctx: &SkLookupContext, candidate: &TargetKey, stats: &mut Stats) -> bool {
    let mut key = candidate.slot(0);
    macro_rules! any_of {
        ($($slot:literal)*) => {{
            const { assert!([$($slot),*].len() == LISTENER_SLOTS as usize) };
            $(
                key.slot = $slot;
                if assign(ctx, &key, stats) {
                    return true;
                }
            )*
            false
        }};
    }
    any_of!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
}

/// Assigns the packet to what the slot holds, if that is a live listener that serves any interface: one bound to an
/// interface would take the SYN, but its connections match that interface only.
///
/// The socket is looked up once, and assigned before it is looked at: there is no branch while it is held. Below Linux
/// 6.3 the verifier finds no state equal to one in which a reference is held (`refsafe`); if it keeps only such states,
/// every slot multiplies the states it walks through. It keeps a state where control flow may meet, after two jumps and
/// eight instructions since the last one.
#[inline(always)]
fn assign(ctx: &SkLookupContext, key: &ListenerKey, stats: &mut Stats) -> bool {
    let Some(sk) = listener(key) else { return false };
    // SAFETY: `sk` is a referenced socket until it is released.
    let (unfit, refused) = unsafe {
        let state = addr_of!((*sk).state).read_volatile();
        let device = addr_of!((*sk).bound_dev_if).read_volatile();
        let refused = bpf_sk_assign(ctx.as_ptr(), sk.cast(), 0) != 0;
        bpf_sk_release(sk.cast());
        ((state ^ BPF_TCP_LISTEN) | device, refused)
    };
    if unfit == 0 {
        stats.refusals += u64::from(refused);
        return !refused;
    }
    if !refused {
        // SAFETY: no socket takes the place of the one that was assigned here.
        unsafe { bpf_sk_assign(ctx.as_ptr(), null_mut(), u64::from(BPF_SK_LOOKUP_F_REPLACE)) };
    }
    false
}

/// The socket in a slot, referenced.
#[inline(always)]
fn listener(key: &ListenerKey) -> Option<*mut bpf_sock> {
    // SAFETY: LISTENERS is a SOCKHASH with this key type.
    let sk = unsafe { bpf_map_lookup_elem(maps::LISTENERS.as_ptr(), core::ptr::from_ref(key).cast()) };
    (!sk.is_null()).then_some(sk.cast())
}
