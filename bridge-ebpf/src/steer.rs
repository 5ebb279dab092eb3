//! `sk_lookup`: puts a connection that arrives at (bridge, gateway, port) onto the loopback listener.
//!
//! One guard, one rule lookup, one allow-list lookup, then the first live listener. Never drops what no rule
//! covers.

use core::ptr::addr_of;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_TCP_LISTEN, bpf_sk_lookup, bpf_sock,
        sk_action::{SK_DROP, SK_PASS},
    },
    helpers::{bpf_ktime_get_ns, bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release},
    macros::sk_lookup,
    maps::lpm_trie::Key,
    programs::SkLookupContext,
};
use bridge_common::{
    Ip,
    maps::{ALLOW_KEY_BITS, AllowKey, ConnectionKey, LISTENER_SLOTS, ListenerKey, RuleKey, Stats, TargetKey},
    steer::{self, Outcome, Source},
};

use crate::{context::words, events, given, maps, switches};

/// `IPPROTO_TCP`.
const IPPROTO_TCP: u32 = 6;

/// The addresses and ports of the connection being looked up; ports in host byte order.
pub(crate) struct Packet {
    pub(crate) source: Ip,
    pub(crate) gateway: Ip,
    pub(crate) source_port: u16,
    pub(crate) port: u16,
}

impl Packet {
    /// The connection it belongs to.
    #[inline(always)]
    pub(crate) const fn connection(&self) -> ConnectionKey {
        ConnectionKey {
            source: self.source,
            gateway: self.gateway,
            source_port: self.source_port,
            port: self.port,
        }
    }
}

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
    let under_way = given::under_way()?;
    given::forget(under_way);
    let ifindex = match switches::HAVE_INGRESS_IFINDEX.load() {
        0 => 0,
        // SAFETY: as above; the verifier never reaches this where the field does not exist.
        _ => unsafe { addr_of!((*sk).ingress_ifindex).read_volatile() },
    };
    let rule = RuleKey { gateway: packet.gateway, ifindex, port: packet.port, pad: 0 };
    // SAFETY: the value is a plain integer.
    let id = *unsafe { maps::RULES.get(&rule) }?;
    // `steer_tc` asks, and no packet is to be given a listener.
    if under_way.asking.is(&packet.connection()) {
        return None;
    }
    let service = read_attachment(id)?;
    let stats = maps::STATS.get_ptr_mut(&id)?;
    // SAFETY: a per-CPU value, and nothing else runs this program on this CPU meanwhile.
    let stats = unsafe { &mut *stats };
    let source = Key::new(ALLOW_KEY_BITS, AllowKey { set: service.allow_set, addr: packet.source });
    let outcome = match Source::from_entry(maps::ALLOW.get(&source).copied()) {
        Source::Allowed => serve(ctx, &service, stats),
        Source::Host => return None,
        Source::Stranger => Outcome::Denied,
    };
    if outcome == Outcome::Accepted {
        given::note(under_way, &packet, &service, false);
    }
    if outcome == Outcome::NoListener && is_mptcp_target(&service) {
        // `steer_tc` has it, and asks for established connections through here.
        return None;
    }
    record(ctx, stats, outcome, &packet);
    Some(outcome)
}

/// What steering needs of an attachment.
pub(crate) struct Service {
    pub(crate) allow_set: u32,
    pub(crate) target: Ip,
    pub(crate) port: u16,
    pub(crate) identity: u32,
}

/// Whether the newest listener that may serve it is an MPTCP one.
#[inline(always)]
pub(crate) fn is_mptcp_target(service: &Service) -> bool {
    let [exact, any_v4, any_v6] = steer::candidates(service.target, service.port);
    // SAFETY: the values are plain integers.
    unsafe {
        maps::MPTCP.get(&exact).is_some()
            || maps::MPTCP.get(&any_v4).is_some()
            || maps::MPTCP.get(&any_v6).is_some()
    }
}

/// Copies an attachment. The kernel may reuse the element of an attachment that is removed or replaced at this very
/// moment; every version there is has its own allow set, so a copy that began and ended with the same one is whole.
/// Otherwise the packet is treated as if the attachment were gone: it just was.
#[inline(always)]
pub(crate) fn read_attachment(id: u32) -> Option<Service> {
    let attachment = maps::ATTACHMENTS.get_ptr(&id)?;
    // SAFETY: a map value stays readable for the length of the program.
    unsafe {
        let allow_set = addr_of!((*attachment).allow_set).read_volatile();
        let target = addr_of!((*attachment).target).read_volatile();
        let port = addr_of!((*attachment).target_port).read_volatile();
        let identity = addr_of!((*attachment).identity).read_volatile();
        (addr_of!((*attachment).allow_set).read_volatile() == allow_set).then_some(Service {
            allow_set,
            target,
            port,
            identity,
        })
    }
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
/// That a listener was refused is remembered in the map value, not in a variable: the verifier knows nothing of a map
/// value's content, so there is one state to walk through the loops and not one for each thing that may have happened.
#[inline(always)]
fn serve(ctx: &SkLookupContext, service: &Service, stats: &mut Stats) -> Outcome {
    let refusals = stats.refusals;
    let [exact, any_v4, any_v6] = steer::candidates(service.target, service.port);
    if assign_first_live(ctx, &exact, stats)
        || assign_first_live(ctx, &any_v4, stats)
        || assign_first_live(ctx, &any_v6, stats)
    {
        return Outcome::Accepted;
    }
    if stats.refusals == refusals { Outcome::NoListener } else { Outcome::AssignFailed }
}

/// Tries the slots of one (address, port). The kernel then picks the member of a `SO_REUSEPORT` group itself, so any
/// live member will do.
///
/// Written out, not a loop: in a loop, older verifiers (seen on 5.10 and 6.1) keep a state to compare with only every 20
/// jumps, and walk through every combination of what the slots in between may hold.
#[inline(always)]
fn assign_first_live(ctx: &SkLookupContext, candidate: &TargetKey, stats: &mut Stats) -> bool {
    let mut key = candidate.slot(0);
    macro_rules! any_of {
        ($($slot:literal)*) => {{
            const { assert!([$($slot),*].len() == LISTENER_SLOTS as usize) };
            $(
                key.slot = $slot;
                if may_serve(&key) && assign(ctx, &key, stats) {
                    return true;
                }
            )*
            false
        }};
    }
    any_of!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
}

/// Whether the slot holds a live listener that serves any interface: one bound to an interface would take the SYN, but
/// its connections match that interface only.
///
/// A question of its own, and without a branch while it holds the socket: below Linux 6.3 the verifier does not recognise a
/// state in which a reference is held (`refsafe`), and where it keeps those only, every slot multiplies what it walks
/// through. It keeps a state where control flow may meet, when it has passed two jumps and eight instructions since the last.
#[inline(always)]
fn may_serve(key: &ListenerKey) -> bool {
    let Some(sk) = listener(key) else { return false };
    // SAFETY: `sk` is a referenced socket until it is released.
    unsafe {
        let state = addr_of!((*sk).state).read_volatile();
        let device = addr_of!((*sk).bound_dev_if).read_volatile();
        bpf_sk_release(sk.cast());
        (state ^ BPF_TCP_LISTEN) | device == 0
    }
}

#[inline(always)]
fn assign(ctx: &SkLookupContext, key: &ListenerKey, stats: &mut Stats) -> bool {
    let Some(sk) = listener(key) else { return false };
    // SAFETY: `sk` is a referenced socket until it is released.
    let refused = unsafe {
        let refused = bpf_sk_assign(ctx.as_ptr(), sk.cast(), 0) != 0;
        bpf_sk_release(sk.cast());
        refused
    };
    stats.refusals += u64::from(refused);
    !refused
}

/// The socket in a slot, referenced.
#[inline(always)]
fn listener(key: &ListenerKey) -> Option<*mut bpf_sock> {
    // SAFETY: LISTENERS is a SOCKHASH with this key type.
    let sk = unsafe { bpf_map_lookup_elem(maps::LISTENERS.as_ptr(), core::ptr::from_ref(key).cast()) };
    (!sk.is_null()).then_some(sk.cast())
}

/// Counts the outcome, and writes an event when one is due.
#[inline(always)]
pub(crate) fn record<C>(ctx: &C, stats: &mut Stats, outcome: Outcome, packet: &Packet) {
    outcome.count(stats);
    if outcome == Outcome::Accepted {
        events::write(ctx, outcome, packet, 0);
        return;
    }
    // SAFETY: a helper without preconditions.
    if let Some(suppressed) = steer::admit_event(stats, unsafe { bpf_ktime_get_ns() }) {
        events::write(ctx, outcome, packet, suppressed);
    }
}
