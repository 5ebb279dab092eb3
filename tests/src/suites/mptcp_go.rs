//! `mptcp::*`: a real Go HTTP server, whose listener is an MPTCP one because Go 1.24 makes it so, and a client that
//! speaks MPTCP itself.
//!
//! Invariant: nothing in the server asks for MPTCP; what it listens with is Go's choice, or that of `GODEBUG`.

use std::net::{SocketAddr, TcpStream};

use anyhow::{Result, ensure};

use super::Test;
use crate::harness::client::{connect, refused};
use crate::harness::go_server::{GoServer, Http};
use crate::harness::rig::{Moved, Rig};
use crate::harness::sys::mptcp_connect;
use crate::harness::topology::{A1, GATEWAY_A, at, local};
use crate::harness::wait::patience;

pub(super) const TESTS: &[Test] = &[
    Test::with_mptcp("mptcp::go_http_server_is_steered_to", go_http_server).in_kernels(),
    Test::with_mptcp("mptcp::go_http_server_serves_a_client_with_mptcp", client_with_mptcp),
];

const NAME: &str = "br-a-go-7001";

fn gateway() -> SocketAddr {
    at(GATEWAY_A, 7001)
}

fn start(rig: &Rig, variables: &[(&str, &str)]) -> Result<GoServer> {
    rig.net.host.sysctl("net/mptcp/enabled", "1")?;
    GoServer::start(&rig.net.host, local(7001), variables)
}

/// What status says of the attachment.
fn expect_carrier(rig: &Rig, datapath: &str) -> Result<()> {
    let attachment = rig.cli().attachment(NAME)?;
    let found = (attachment.datapath.as_str(), attachment.state.as_str());
    ensure!(found == (datapath, "ready"), "the attachment is {found:?}, not ready by {datapath}");
    Ok(())
}

/// One connection from a1 that carries several requests, one with a large body; `mptcp` is what the server is to say
/// of it.
fn requests(stream: TcpStream, mptcp: bool) -> Result<()> {
    let from = stream.local_addr()?;
    ensure!(from.ip() == A1, "the client's own address is {from}");
    stream.set_read_timeout(Some(patience(20)))?;
    let mut http = Http::new(stream);
    let expected = format!("{from} {} mptcp={mptcp}", gateway());
    let large: Vec<u8> = (0..3 << 20).map(|at: u32| (at % 251) as u8).collect();
    for _ in 0..2 {
        let said = http.get("/peer")?;
        ensure!(said == expected, "the server says {said:?} instead of {expected:?}");
        ensure!(http.post("/echo", &large)? == large, "the large body came back changed");
    }
    Ok(())
}

fn serves(rig: &Rig) -> Result<()> {
    (0..3).try_for_each(|_| requests(connect(&rig.net.a1, gateway())?, false))
}

/// Go's listener is followed from MPTCP to plain TCP with no userspace of ours in between, and back with an attach.
fn go_http_server() -> Result<()> {
    let rig = Rig::new()?;
    let server = start(&rig, &[])?;
    rig.attach("go=7001")?;
    expect_carrier(&rig, "steer-tc")?;
    rig.expect_tc(NAME, Moved::accepted(3), || serves(&rig))?;
    server.stop()?;
    rig.expect(NAME, Moved::no_listener(1), || refused(&rig.net.a1, gateway()))?;
    let server = start(&rig, &[("GODEBUG", "multipathtcp=0")])?;
    rig.expect(NAME, Moved::accepted(3), || serves(&rig))?;
    expect_carrier(&rig, "steer")?;
    server.stop()?;
    let _server = start(&rig, &[])?;
    rig.expect_tc(NAME, Moved::no_listener(1), || refused(&rig.net.a1, gateway()))?;
    rig.attach("go=7001")?;
    rig.expect_tc(NAME, Moved::accepted(3), || serves(&rig))?;
    expect_carrier(&rig, "steer-tc")
}

/// The handshake's MPTCP options reach the listener, too.
fn client_with_mptcp() -> Result<()> {
    let rig = Rig::new()?;
    let _server = start(&rig, &[])?;
    rig.attach("go=7001")?;
    rig.net.a1.sysctl("net/mptcp/enabled", "1")?;
    rig.expect_tc(NAME, Moved::accepted(2), || {
        (0..2).try_for_each(|_| requests(rig.net.a1.run(|| mptcp_connect(gateway()))?, true))
    })
}
