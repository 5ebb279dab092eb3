//! Tests of the interface lookups: loopback needs no privilege; bridges are made in a namespace of the
//! test's own thread, which needs root.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

use super::*;

/// Runs `body` on a thread in a new network namespace; the machine's own namespace is never touched.
fn in_new_netns(body: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace (needs root)");
        body();
    });
    thread.join().expect("the test body");
}

/// The namespace of the test's thread.
fn here() -> Namespace {
    Namespace::current().expect("/proc")
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip from iproute2");
    assert!(status.success(), "ip {arguments}");
}

#[test]
fn loopback_is_found_by_name_and_index() {
    let lo = link_by_name(&here(), "lo").expect("netlink").expect("lo");
    assert_eq!((lo.name.as_str(), lo.kind.as_str()), ("lo", ""));
    assert_eq!(link_by_index(&here(), lo.index).expect("netlink"), Some(lo.clone()));
    assert!(links(&here()).expect("netlink").contains(&lo));
}

#[test]
fn absent_names_and_indexes_are_none() {
    for name in ["", "no-such-link", "a-name-far-longer-than-15-bytes", "a\0b", "with space", "../.."] {
        assert_eq!(link_by_name(&here(), name).expect("netlink"), None, "{name}");
    }
    for index in [0, 0x7fff_fff0, u32::MAX] {
        assert_eq!(link_by_index(&here(), index).expect("netlink"), None, "{index}");
    }
}

#[test]
fn loopback_is_not_a_bridge() {
    let error = bridge_by_name(&here(), "lo").expect_err("lo is no bridge");
    assert!(matches!(&error, NetError::NotABridge { kind, .. } if kind.is_empty()), "{error}");
    assert!(error.to_string().contains("expected a Linux bridge"), "{error}");
}

#[test]
fn bridges_are_found_with_their_addresses() {
    in_new_netns(|| {
        ip("link add br-b type bridge");
        ip("address add 172.30.0.1/16 dev br-b");
        ip("address add 172.30.0.9/16 dev br-b");
        ip("address add fd00:1::1/64 dev br-b nodad");
        ip("address add fe80::1/64 dev br-b nodad");
        ip("link set br-b up");
        ip("link add br-a type bridge");
        ip("link add veth0 type veth peer name veth1");
        let bridge = bridge_by_name(&here(), "br-b").expect("br-b");
        let addrs: Vec<String> = bridge.addrs.iter().map(ToString::to_string).collect();
        assert_eq!(addrs, ["172.30.0.1/16", "172.30.0.9/16", "fd00:1::1/64"]);
        assert_eq!(
            link_by_index(&here(), bridge.index).expect("netlink").map(|link| link.name),
            Some("br-b".into())
        );

        assert!(matches!(bridge_by_name(&here(), "br-a"), Err(NetError::NoAddress { .. })));
        let error = bridge_by_name(&here(), "veth0").expect_err("a veth").to_string();
        assert!(error.contains("of kind veth") && error.contains("(br-a, br-b)"), "{error}");
        let error = bridge_by_name(&here(), "br-x").expect_err("unknown").to_string();
        assert!(error.contains("(br-a, br-b)"), "{error}");
    });
}

#[test]
fn a_bridge_is_found_among_hundreds_of_links() {
    in_new_netns(|| {
        for index in 0..100 {
            ip(&format!("link add v{index} type veth peer name w{index}"));
        }
        ip("link add br-t type bridge");
        ip("address add 10.9.0.1/24 dev br-t");
        let bridge = bridge_by_name(&here(), "br-t").expect("br-t");
        assert_eq!(bridge.name, "br-t");
        // With the loopback interface.
        assert_eq!(links(&here()).expect("netlink").len(), 202);
    });
}

#[test]
fn cut_messages_are_skipped() {
    for length in 0..24 {
        assert_eq!(parse_address(&vec![2; length], 0x0202_0202), None, "{length}");
        assert_eq!(parse_link(&vec![1; length]), None, "{length}");
    }
}
