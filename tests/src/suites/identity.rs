//! `identity::*`: whom a service sees of a steered connection.
//!
//! Invariants: what accept(2), getpeername(2) and getsockname(2) say is compared with the client's own socket (the test
//! service requires that the first two agree), and the counters prove that the connection was steered and not relayed.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, ensure};
use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, sendto, socket};

use super::Test;
use crate::harness::cli::Finding;
use crate::harness::client::{answers, connect, ended_by_service, hold, round, with_deadlines};
use crate::harness::postgres::{self, Postgres};
use crate::harness::redis::{Redis, Session};
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::{Peer, Port, Service, listener};
use crate::harness::sys::{mptcp_connect, mptcp_listener};
use crate::harness::topology::{A1, GATEWAY_A, GATEWAY_A6, at, at6, local};

pub(super) const TESTS: &[Test] = &[
    Test::new("identity::steered_client_looks_local_and_sees_the_truth_itself", plain).in_kernels(),
    Test::new("identity::ipv6_and_dual_stack_services", ipv6).in_kernels(),
    Test::with_mptcp("identity::mptcp_service_with_plain_and_mptcp_clients", mptcp).in_kernels(),
    Test::new("identity::handshake_with_syn_cookies", syn_cookies).in_kernels(),
    Test::new("identity::request_in_the_first_packet", fast_open).in_kernels(),
    Test::new("identity::each_connection_keeps_its_identity", keeps_its_identity),
    Test::new("identity::redis_in_protected_mode_accepts", redis),
    Test::on_host("identity::postgres_with_its_stock_rules_accepts", postgres_accepts),
    Test::on_host("identity::attach_warns_and_status_shows_it", warning),
];

const NAME: &str = "br-a-tcp-7001";
const LOOPBACK: &[&str] = &["--identity", "loopback"];

fn gateway() -> SocketAddr {
    at(GATEWAY_A, 7001)
}

fn localhost(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}

/// One connection from a1 to the attachment on the gateway's 7001.
fn served(rig: &Rig) -> Result<SocketAddr> {
    rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))
}

/// Another port on the gateway than the service's own, which must not show either.
fn plain() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    rig.attach_with("7005:7001", LOOPBACK)?;
    let to = at(GATEWAY_A, 7005);
    let remote = rig.expect("br-a-tcp-7005", Moved::accepted(1), || {
        let stream = connect(&rig.net.a1, to)?;
        ensure!(stream.peer_addr()? == to, "the client sees {}", stream.peer_addr()?);
        Ok(stream.local_addr()?)
    })?;
    ensure!(remote.ip() == A1, "the client's own address is {remote}");
    rig.expect("br-a-tcp-7005", Moved::accepted(1), || answers(&rig.net.a1, to))?;
    let seen = service.peers()[0];
    ensure!(seen == Peer { remote: localhost(remote.port()), local: local(7001) }, "it saw {seen:?}");
    // A service that restarts sees the same, with no userspace running.
    service.stop();
    let service = Service::start(&rig.net.host, local(7001))?;
    rig.expect("br-a-tcp-7005", Moved::accepted(1), || answers(&rig.net.a1, to))?;
    ensure!(service.peers()[0].remote.ip() == Ipv4Addr::LOCALHOST, "it saw {:?}", service.peers());
    Ok(())
}

fn ipv6() -> Result<()> {
    let rig = Rig::new()?;
    let own = at6(Ipv6Addr::LOCALHOST, 7001);
    let service = Service::start(&rig.net.host, own)?;
    rig.attach_with("7001:[::1]:7001", LOOPBACK)?;
    let from = rig.expect(NAME, Moved::accepted(1), || answers(&rig.net.a1, at6(GATEWAY_A6, 7001)))?;
    let remote = at6(Ipv6Addr::LOCALHOST, from.port());
    ensure!(service.peers() == [Peer { remote, local: own }], "the service saw {:?}", service.peers());
    service.stop();
    rig.cli().ok(&["detach", "--all"])?;
    rig.attach_with("7001", LOOPBACK)?;
    let dual_stack = Service::start(&rig.net.host, at6(Ipv6Addr::UNSPECIFIED, 7001))?;
    served(&rig)?;
    let Peer { remote, local: own } = dual_stack.peers()[0];
    let mapped = IpAddr::from(Ipv4Addr::LOCALHOST.to_ipv6_mapped());
    ensure!((remote.ip(), own.ip()) == (mapped, mapped), "the service saw {remote} at {own}");
    // It also listens on the gateway, where the host's own programs reach it without us.
    rig.expect(NAME, Moved::NOTHING, || rig.net.host.run(|| round(gateway())))?;
    let host = dual_stack.peers()[1].remote.ip().to_canonical();
    ensure!(host == GATEWAY_A, "of a client on the host it saw {host}");
    Ok(())
}

/// The kernel gives the service a plain TCP socket, or an MPTCP one, as the client asked.
fn mptcp() -> Result<()> {
    let rig = Rig::new()?;
    for netns in [&rig.net.host, &rig.net.a1] {
        netns.sysctl("net/mptcp/enabled", "1")?;
    }
    let service = Service::serve(rig.net.host.run(|| mptcp_listener(local(7001)))?)?;
    rig.attach_with("7001", LOOPBACK)?;
    let plain = rig.expect_tc(NAME, Moved::accepted(1), || answers(&rig.net.a1, gateway()))?;
    let multipath = rig.expect_tc(NAME, Moved::accepted(1), || {
        let mut stream = rig.net.a1.run(|| mptcp_connect(gateway()))?;
        let own = stream.local_addr()?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut end = Vec::new();
        stream.read_to_end(&mut end)?;
        Ok(own)
    })?;
    let expected = |from: SocketAddr| Peer { remote: localhost(from.port()), local: local(7001) };
    ensure!(
        service.peers() == [expected(plain), expected(multipath)],
        "the service saw {:?}",
        service.peers()
    );
    Ok(())
}

fn syn_cookies() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    rig.attach_with("7001", LOOPBACK)?;
    rig.net.host.sysctl("net/ipv4/tcp_syncookies", "2")?;
    let held = hold(&rig.net.a1, gateway())?;
    let seen = service.peers()[0].remote.ip();
    ensure!(seen == Ipv4Addr::LOCALHOST, "the service saw {seen}");
    ended_by_service(service, vec![held])
}

/// With TCP Fast Open the kernel makes no request, but a connection at once.
fn fast_open() -> Result<()> {
    /// `net.ipv4.tcp_fastopen`: send and take data without a cookie, for every listener.
    const WITHOUT_COOKIES: &str = "1543";
    let rig = Rig::new()?;
    for netns in [&rig.net.host, &rig.net.a1] {
        netns.sysctl("net/ipv4/tcp_fastopen", WITHOUT_COOKIES)?;
    }
    let service = Service::start(&rig.net.host, local(7001))?;
    rig.attach_with("7001", LOOPBACK)?;
    let remote = rig.expect(NAME, Moved::accepted(1), || {
        rig.net.a1.run(|| {
            let mut stream = fast_open_with(b"ping", gateway())?;
            let own = stream.local_addr()?;
            let mut answer = [0; 4];
            stream.read_exact(&mut answer)?;
            ensure!(answer == *b"ping", "the answer is {answer:?}");
            Ok(own)
        })
    })?;
    let opened = rig.net.host.tcp_counter("TCPFastOpenPassive")?;
    ensure!(opened == 1, "{opened} connections were opened by their first packet");
    let expected = Peer { remote: localhost(remote.port()), local: local(7001) };
    ensure!(service.peers() == [expected], "the service saw {:?}", service.peers());
    Ok(())
}

/// A connection whose first packet carries `text`, from the calling thread's namespace.
fn fast_open_with(text: &[u8], to: SocketAddr) -> Result<TcpStream> {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let fast_open = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
    let sent = sendto(socket.as_raw_fd(), text, &SockaddrStorage::from(to), fast_open)?;
    ensure!(sent == text.len(), "{sent} bytes were sent");
    Ok(with_deadlines(TcpStream::from(socket))?)
}

/// One accepted connection and its client's end.
struct Held {
    server: TcpStream,
    _client: TcpStream,
}

impl Held {
    fn open(rig: &Rig, service: &TcpListener) -> Result<Self> {
        let _client = rig.expect(NAME, Moved::accepted(1), || connect(&rig.net.a1, gateway()))?;
        Ok(Self { server: service.accept()?.0, _client })
    }

    fn sees(&self, client: Ipv4Addr, own: SocketAddr) -> Result<()> {
        let (remote, local) = (self.server.peer_addr()?, self.server.local_addr()?);
        ensure!(remote.ip() == client, "the service sees {remote} instead of {client}");
        ensure!(local == own, "the service's own address is {local} instead of {own}");
        Ok(())
    }
}

fn keeps_its_identity() -> Result<()> {
    let rig = Rig::new()?;
    let service = listener(&rig.net.host, local(7001), Port::Exclusive)?;
    rig.attach("7001")?;
    let real = Held::open(&rig, &service)?;
    rig.attach_with("7001", LOOPBACK)?;
    let shown = Held::open(&rig, &service)?;
    let identities = || -> Result<()> {
        real.sees(A1, gateway())?;
        shown.sees(Ipv4Addr::LOCALHOST, local(7001))
    };
    identities()?;
    rig.attach("7001")?;
    identities()?;
    Held::open(&rig, &service)?.sees(A1, gateway())?;
    // Replaces every program.
    rig.attach_with("7001", &["--identity", "loopback", "--event-level", "debug"])?;
    identities()?;
    Held::open(&rig, &service)?.sees(Ipv4Addr::LOCALHOST, local(7001))?;
    rig.attach("other=7002")?;
    rig.cli().ok(&["detach", "7001"])?;
    identities()
}

fn redis() -> Result<()> {
    let rig = Rig::new()?;
    let _redis = Redis::start(&rig.net.host, 6379, &["--protected-mode", "yes"])?;
    rig.attach_with("redis", LOOPBACK)?;
    rig.expect("br-a-redis-6379", Moved::accepted(1), || {
        let mut session = Session::open(&rig.net.a1, at(GATEWAY_A, 6379))?;
        let own = session.local_addr()?;
        ensure!(session.command("SET answer 42")? == "+OK", "SET was refused");
        let clients = session.command("CLIENT LIST")?;
        let expected = format!(" addr=127.0.0.1:{} laddr=127.0.0.1:6379 ", own.port());
        ensure!(clients.contains(&expected), "CLIENT LIST lacks {expected}: {clients}");
        Ok(())
    })
}

fn postgres_accepts() -> Result<()> {
    let rig = Rig::new()?;
    let _postgres = Postgres::start(&rig.net.host, 5432, "")?;
    rig.attach_with("postgres", LOOPBACK)?;
    let statement =
        "select client_addr, inet_server_addr() from pg_stat_activity where pid = pg_backend_pid()";
    let answer = rig.expect("br-a-postgres-5432", Moved::accepted(1), || {
        postgres::query(&rig.net.a1, &GATEWAY_A.to_string(), 5432, statement)
    })?;
    answer.success()?;
    ensure!(answer.stdout.trim() == "127.0.0.1|127.0.0.1", "PostgreSQL says {}", answer.stdout);
    Ok(())
}

fn warning() -> Result<()> {
    let rig = Rig::new()?;
    let attach = ["attach", "redis", "--bridge", "br-a"];
    let said = rig.cli().ok(&attach)?;
    ensure!(said.contains("protected mode") && said.contains("--identity loopback"), "attach said {said}");
    let said = rig.cli().ok(&[&attach[..], LOOPBACK].concat())?;
    let warning = "warning: br-a-redis-6379: the service sees a local client, so rules that trust local clients now \
                   trust these containers\n";
    ensure!(said.contains(warning), "attach said {said}");
    ensure!(!said.contains("note:"), "what remote clients have to know is of no use: {said}");
    let document = rig.cli().json(&[&attach[..], LOOPBACK].concat())?;
    let found = Finding::list(&document["attachments"][0])?;
    let trust = found.iter().find(|finding| finding.code == "loopback-trust");
    let trust = trust.with_context(|| format!("attach does not warn in JSON: {document}"))?;
    ensure!(trust.severity == "warning" && warning.contains(&trust.cause), "the warning is {trust:?}");
    let attachment = rig.cli().attachment("br-a-redis-6379")?;
    let shown = attachment.raw["identity"].clone();
    ensure!(shown == "loopback", "status shows {shown}");
    attachment.expect_finding("no-listener")?;
    let local = attachment.findings.iter().any(|finding| finding.code == "local-clients");
    ensure!(local, "status has not the finding local-clients: {}", attachment.raw);
    let text = rig.cli().ok(&["status"])?;
    ensure!(text.contains("br-a-redis-6379: the service sees local clients"), "status says {text}");
    Ok(())
}
