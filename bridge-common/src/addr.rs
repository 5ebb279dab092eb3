//! [`Ip`]: one 16-byte form for IPv4 and IPv6 addresses, so that every map needs one key type.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP address as four 32-bit words in network byte order; IPv4 is kept v4-mapped (`::ffff:a.b.c.d`, RFC 4291
/// section 2.5.5.2), so an IPv6 socket bound to a v4-mapped address and an IPv4 socket compare equal.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ip {
    /// The address words; each word's bytes are in network order in memory.
    pub words: [u32; 4],
}

const _: () = assert!(size_of::<Ip>() == 16);

/// The third word of every v4-mapped address.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();

impl Ip {
    /// `0.0.0.0`, the IPv4 wildcard a listener may be bound to.
    pub const ANY_V4: Self = Self::from_v4_word(0);
    /// `::`, the IPv6 (and, unless `IPV6_V6ONLY`, dual-stack) wildcard.
    pub const ANY_V6: Self = Self { words: [0; 4] };
    /// `127.0.0.1`.
    pub const LOCALHOST_V4: Self = Self::from_v4_word(0x7f00_0001_u32.to_be());
    /// `::1`.
    pub const LOCALHOST_V6: Self = Self { words: [0, 0, 0, 1_u32.to_be()] };

    /// From an IPv4 address word in network byte order, as `bpf_sk_lookup.remote_ip4` holds it.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self { words: [0, 0, MAPPED, word] }
    }

    /// From both families' words of an eBPF context, in network byte order; the other family's are ignored.
    ///
    /// `AF_INET` is 2 and `AF_INET6` is 10, so bit 3 tells them apart. Masks, not branches, and hidden from an
    /// optimiser that would turn them into branches: each branch doubles the states the verifier walks through all that
    /// follows.
    #[inline(always)]
    pub fn from_context(family: u32, v4: u32, v6: [u32; 4]) -> Self {
        let is_v6 = core::hint::black_box(0u32.wrapping_sub((family >> 3) & 1));
        let is_v4 = !is_v6;
        Self {
            words: [v6[0] & is_v6, v6[1] & is_v6, v6[2] & is_v6 | MAPPED & is_v4, v6[3] & is_v6 | v4 & is_v4],
        }
    }

    /// True for an IPv4 (v4-mapped) address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED
    }

    /// True for 127.0.0.0/8 and `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        let [a, b, c, d] = self.words;
        a | b == 0
            && (c == MAPPED && u32::from_be(d) >> 24 == 127 || c == 0 && d == Self::LOCALHOST_V6.words[3])
    }

    /// The 16 bytes, in network order.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 16] {
        let [a, b, c, d] = [
            self.words[0].to_ne_bytes(),
            self.words[1].to_ne_bytes(),
            self.words[2].to_ne_bytes(),
            self.words[3].to_ne_bytes(),
        ];
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
    }

    /// The offset of the first address bit in this form: 96 for IPv4, 0 for IPv6. A prefix length plus this is
    /// the prefix length in the 128-bit form.
    pub const fn prefix_base(&self) -> u32 {
        if self.is_v4() { 96 } else { 0 }
    }
}

impl From<IpAddr> for Ip {
    fn from(addr: IpAddr) -> Self {
        let octets = match addr {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let word = |i: usize| u32::from_ne_bytes([octets[i], octets[i + 1], octets[i + 2], octets[i + 3]]);
        Self { words: [word(0), word(4), word(8), word(12)] }
    }
}

impl From<Ip> for IpAddr {
    fn from(ip: Ip) -> Self {
        let v6 = Ipv6Addr::from(ip.octets());
        match v6.to_ipv4_mapped() {
            Some(v4) => Self::V4(v4),
            None => Self::V6(v6),
        }
    }
}

impl From<Ipv4Addr> for Ip {
    fn from(addr: Ipv4Addr) -> Self {
        IpAddr::V4(addr).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn v4_is_mapped() {
        let ip: Ip = Ipv4Addr::new(127, 0, 0, 1).into();
        assert!(ip.is_v4());
        assert_eq!(ip, Ip::from_v4_word(u32::from_ne_bytes([127, 0, 0, 1])));
        assert_eq!(ip.prefix_base(), 96);
    }

    #[test]
    fn context_words_of_the_other_family_are_ignored() {
        let v4: Ip = Ipv4Addr::new(172, 17, 0, 2).into();
        let garbage = [1, 2, 3, 4];
        assert_eq!(Ip::from_context(2, v4.words[3], garbage), v4);
        assert_eq!(Ip::from_context(10, v4.words[3], garbage), Ip { words: garbage });
    }

    #[test]
    fn wildcards_differ_by_family() {
        assert_ne!(Ip::ANY_V4, Ip::ANY_V6);
        assert!(!Ip::ANY_V6.is_v4());
        assert_eq!(IpAddr::from(Ip::ANY_V6), IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        assert_eq!(IpAddr::from(Ip::ANY_V4), IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    }

    #[test]
    fn loopback_is_told_in_both_families() {
        for (addr, expected) in [
            ("127.0.0.1", true),
            ("127.255.0.9", true),
            ("128.0.0.1", false),
            ("::1", true),
            ("::127.0.0.1", false),
            ("::", false),
            ("172.17.0.1", false),
            ("fd00::1", false),
        ] {
            assert_eq!(Ip::from(addr.parse::<IpAddr>().unwrap()).is_loopback(), expected, "{addr}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(addr: IpAddr) {
            let canonical = match addr {
                IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(addr, IpAddr::V4),
                v4 => v4,
            };
            prop_assert_eq!(IpAddr::from(Ip::from(addr)), canonical);
        }
    }
}
