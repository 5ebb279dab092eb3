//! Tests against real listeners of this process. MPTCP detection needs root (CAP_NET_ADMIN) before 6.15.

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, getsockname, listen,
    setsockopt, socket, sockopt,
};

use super::super::proc_fd::testing::mptcp_socket;
use super::*;

fn cookie_of(socket: impl AsFd) -> u64 {
    rustix::net::sockopt::socket_cookie(socket).expect("SO_COOKIE")
}

fn found(port: u16) -> Vec<Listener> {
    tcp_listeners(&Namespace::current().expect("/proc"))
        .expect("sock_diag")
        .into_iter()
        .filter(|listener| listener.addr.port() == port)
        .collect()
}

fn inode(fd: impl AsFd) -> u64 {
    nix::sys::stat::fstat(fd).expect("fstat").st_ino
}

#[test]
fn a_socket_file_is_not_a_socket() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("socket");
    assert!(!is_bound(&path), "nothing is there");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("bind");
    assert!(is_bound(&path));
    drop(listener);
    assert!(path.exists() && !is_bound(&path), "the file is a leftover");
}

#[test]
fn a_listener_is_found_with_inode_cookie_and_owner() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let addr = listener.local_addr().expect("address");
    let all = found(addr.port());
    let expected = Listener {
        addr,
        inode: inode(&listener),
        cookie: cookie_of(&listener),
        v6only: None,
        mptcp: false,
        device: 0,
        uid: nix::unistd::geteuid().as_raw(),
        is_full: false,
    };
    assert!(all.contains(&expected), "{expected:?} in {all:?}");
}

#[test]
fn connections_and_closed_listeners_are_not_listeners() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
    let addr = listener.local_addr().expect("address");
    let _client = std::net::TcpStream::connect(addr).expect("connect");
    let _server = listener.accept().expect("accept");
    assert_eq!(found(addr.port()).len(), 1);
    drop(listener);
    // Another test's fork may hold a copy until its exec, so the last reference can go a little later.
    let gone = (0..200).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        found(addr.port()).is_empty()
    });
    assert!(gone, "{:?}", found(addr.port()));
}

#[test]
fn ipv6_listeners_say_whether_they_serve_ipv4() {
    for v6only in [true, false] {
        let fd =
            socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("socket");
        setsockopt(&fd, sockopt::Ipv6V6Only, &v6only).expect("IPV6_V6ONLY");
        bind(fd.as_raw_fd(), &SockaddrIn6::from("[::]:0".parse::<std::net::SocketAddrV6>().expect("addr")))
            .expect("bind");
        listen(&fd, Backlog::new(1).expect("backlog")).expect("listen");
        let port = getsockname::<SockaddrIn6>(fd.as_raw_fd()).expect("address").port();
        let listener = found(port).into_iter().find(|one| one.inode == inode(&fd)).expect("the listener");
        assert_eq!(listener.v6only, Some(v6only));
        assert_eq!(listener.serves(SocketAddr::from((Ipv4Addr::LOCALHOST, port))), !v6only);
        assert!(listener.serves(SocketAddr::from((Ipv6Addr::LOCALHOST, port))));
    }
}

#[test]
fn every_member_of_a_reuseport_group_is_listed() {
    let group: Vec<OwnedFd> = (0..3)
        .scan(0, |port, _| {
            let fd = reuseport_listener(*port);
            *port = getsockname::<SockaddrIn>(fd.as_raw_fd()).expect("address").port();
            Some(fd)
        })
        .collect();
    let port = getsockname::<SockaddrIn>(group[0].as_raw_fd()).expect("address").port();
    let mut cookies: Vec<u64> = found(port).iter().map(|listener| listener.cookie).collect();
    let mut expected: Vec<u64> = group.iter().map(cookie_of).collect();
    cookies.sort_unstable();
    expected.sort_unstable();
    assert_eq!(cookies, expected);
}

fn reuseport_listener(port: u16) -> OwnedFd {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("socket");
    setsockopt(&fd, sockopt::ReusePort, &true).expect("SO_REUSEPORT");
    listen_on_loopback(fd, port)
}

fn listen_on_loopback(fd: OwnedFd, port: u16) -> OwnedFd {
    bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port)).expect("bind");
    listen(&fd, Backlog::new(8).expect("backlog")).expect("listen");
    fd
}

#[test]
fn an_mptcp_listener_is_flagged_and_its_inode_is_the_applications() {
    if !Path::new("/proc/sys/net/mptcp").exists() {
        // A kernel built without MPTCP (Debian's 5.10) has no such listener; prove that instead of skipping.
        let error = mptcp_socket().expect_err("no MPTCP in this kernel");
        assert_eq!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT));
        return;
    }
    let fd = listen_on_loopback(mptcp_socket().expect("an MPTCP socket"), 0);
    let port = getsockname::<SockaddrIn>(fd.as_raw_fd()).expect("address").port();
    let listener = found(port).into_iter().find(|one| one.inode == inode(&fd)).expect("the listener");
    assert!(listener.mptcp, "{listener:?} (needs CAP_NET_ADMIN before 6.15)");
    assert_ne!(listener.cookie, cookie_of(&fd), "the dump shows the subflow's cookie");
    let plain = listen_on_loopback(
        socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("socket"),
        0,
    );
    let port = getsockname::<SockaddrIn>(plain.as_raw_fd()).expect("address").port();
    assert!(found(port).iter().all(|one| !one.mptcp), "plain TCP is not flagged");
}

#[test]
fn serves_compares_port_family_and_address() {
    let listener = |addr: &str, v6only| Listener {
        addr: addr.parse().expect("address"),
        inode: 1,
        cookie: 1,
        v6only,
        mptcp: false,
        device: 0,
        uid: 0,
        is_full: false,
    };
    for (bound, v6only, target, expected) in [
        ("127.0.0.1:80", None, "127.0.0.1:80", true),
        ("127.0.0.1:80", None, "127.0.0.1:81", false),
        ("127.0.0.2:80", None, "127.0.0.1:80", false),
        ("0.0.0.0:80", None, "127.0.0.1:80", true),
        ("0.0.0.0:80", None, "[::1]:80", false),
        ("[::1]:80", Some(false), "[::1]:80", true),
        ("[::1]:80", Some(false), "127.0.0.1:80", false),
        ("[::]:80", Some(false), "127.0.0.1:80", true),
        ("[::]:80", Some(true), "127.0.0.1:80", false),
        ("[::ffff:127.0.0.1]:80", Some(false), "127.0.0.1:80", true),
        ("[::ffff:127.0.0.2]:80", Some(false), "127.0.0.1:80", false),
        ("[::ffff:0.0.0.0]:80", Some(false), "127.0.0.1:80", true),
        ("[::ffff:0.0.0.0]:80", Some(false), "[::1]:80", false),
    ] {
        let target = target.parse().expect("target");
        assert_eq!(listener(bound, v6only).serves(target), expected, "{bound} {target}");
    }
}
