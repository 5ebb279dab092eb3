use proptest::prelude::*;

use super::*;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn version_1_is_one_line_of_text() {
    let v4 = encode(ProxyProtocol::V1, address("172.17.0.5:40000"), address("172.17.0.1:5432"));
    assert_eq!(v4, b"PROXY TCP4 172.17.0.5 172.17.0.1 40000 5432\r\n");
    let v6 = encode(ProxyProtocol::V1, address("[fd00::5]:1"), address("[fd00::1]:65535"));
    assert_eq!(v6, b"PROXY TCP6 fd00::5 fd00::1 1 65535\r\n");
}

#[test]
fn version_2_is_these_bytes() {
    let v4 = encode(ProxyProtocol::V2, address("172.17.0.5:40000"), address("172.17.0.1:5432"));
    let mut expected = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21\x11\x00\x0c".to_vec();
    expected.extend([172, 17, 0, 5, 172, 17, 0, 1, 0x9c, 0x40, 0x15, 0x38]);
    assert_eq!(v4, expected);
    let v6 = encode(ProxyProtocol::V2, address("[fd00::5]:1"), address("[fd00::1]:65535"));
    assert_eq!(v6[12..16], [0x21, 0x21, 0, 36]);
    assert_eq!((v6.len(), v6[16], v6[31], v6[47]), (52, 0xfd, 5, 1));
    assert_eq!(v6[48..], [0, 1, 255, 255]);
}

/// Decodes by the specification's text alone.
fn decode_2(bytes: &[u8]) -> (SocketAddr, SocketAddr) {
    assert_eq!(&bytes[..12], b"\r\n\r\n\0\r\nQUIT\n");
    assert_eq!(bytes[12], 0x21);
    let size = match bytes[13] {
        0x11 => 4,
        0x21 => 16,
        other => panic!("family {other:#x}"),
    };
    let body = &bytes[16..];
    assert_eq!(usize::from(u16::from_be_bytes([bytes[14], bytes[15]])), body.len());
    assert_eq!(body.len(), 2 * size + 4);
    let ip = |at: usize| match size {
        4 => IpAddr::from(<[u8; 4]>::try_from(&body[at..at + 4]).unwrap()),
        _ => IpAddr::from(<[u8; 16]>::try_from(&body[at..at + 16]).unwrap()),
    };
    let port = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    (SocketAddr::new(ip(0), port(2 * size)), SocketAddr::new(ip(size), port(2 * size + 2)))
}

fn decode_1(bytes: &[u8]) -> (SocketAddr, SocketAddr) {
    assert!(bytes.len() <= 107, "the specification's maximum");
    let text = std::str::from_utf8(bytes).unwrap().strip_suffix("\r\n").unwrap();
    let words: Vec<_> = text.split(' ').collect();
    let ["PROXY", family, from, to, source_port, destination_port] = words[..] else { panic!("{text}") };
    let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
    assert_eq!(family, if from.is_ipv4() { "TCP4" } else { "TCP6" });
    (
        SocketAddr::new(from, source_port.parse().unwrap()),
        SocketAddr::new(to, destination_port.parse().unwrap()),
    )
}

fn two_of_a_family() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
    let v4 = any::<([u8; 4], u16, [u8; 4], u16)>()
        .prop_map(|(a, p, b, q)| (SocketAddr::from((a, p)), SocketAddr::from((b, q))));
    let v6 = any::<([u8; 16], u16, [u8; 16], u16)>()
        .prop_map(|(a, p, b, q)| (SocketAddr::from((a, p)), SocketAddr::from((b, q))));
    prop_oneof![v4, v6]
}

proptest! {
    #[test]
    fn what_is_encoded_can_be_decoded((source, destination) in two_of_a_family()) {
        let first = decode_1(&encode(ProxyProtocol::V1, source, destination));
        let decoded = (first, decode_2(&encode(ProxyProtocol::V2, source, destination)));
        prop_assert_eq!(decoded, ((source, destination), (source, destination)));
    }

    #[test]
    fn mixed_families_become_ipv6(a in any::<[u8; 4]>(), b in any::<[u8; 16]>(), port in any::<u16>()) {
        let (source, destination) = (SocketAddr::from((a, port)), SocketAddr::from((b, port)));
        let mapped = SocketAddr::new(as_ipv6(source.ip()).into(), port);
        prop_assert_eq!(decode_2(&encode(ProxyProtocol::V2, source, destination)), (mapped, destination));
    }
}
