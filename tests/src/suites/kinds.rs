//! `kinds::*`: which datapath serves which kind of listener on this kernel, noted for docs/kernels.md.
//!
//! Invariants: what is noted is what the attachment's counters prove and what the service saw of its client, not what
//! was asked for; a kind that cannot be tried is noted with the reason and not left out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};

use super::Test;
use crate::harness::cli::expect_refusal;
use crate::harness::client::many_rounds;
use crate::harness::facts::served;
use crate::harness::foreground::Foreground;
use crate::harness::kernel::{has_mptcp, sockmap_is_trusted};
use crate::harness::redis::{Redis, ping};
use crate::harness::relay::{Datapath, NAME, counters, gateway, start, unless_repeated};
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::Service;
use crate::harness::sys::mptcp_listener;
use crate::harness::topology::{GATEWAY_A6, at6, local};

pub(super) const TESTS: &[Test] = &[
    Test::new("kinds::ipv4", ipv4).in_kernels(),
    Test::new("kinds::ipv6", ipv6).in_kernels(),
    Test::new("kinds::dual_stack", dual_stack).in_kernels(),
    Test::new("kinds::reuseport", reuseport).in_kernels(),
    Test::new("kinds::mptcp_ipv4", mptcp_ipv4).in_kernels(),
    Test::new("kinds::mptcp_ipv6", mptcp_ipv6).in_kernels(),
    Test::new("kinds::unix", unix).in_kernels(),
];

/// What a kernel that is not trusted with the relay by sockmap is noted with.
const KNOWN_BUGS: &str = "known bugs";
/// What can be asked for with a TCP listener. Steering by name is `auto` without the way out.
const REQUESTS: [&str; 3] = ["auto", "splice", "sockmap"];

fn ipv4() -> Result<()> {
    try_all("ipv4", "7001", gateway(), |rig| Ok(vec![Service::start(&rig.net.host, local(7001))?]))
}

fn ipv6() -> Result<()> {
    let listen = |rig: &Rig| Ok(vec![Service::start(&rig.net.host, at6(Ipv6Addr::LOCALHOST, 7001))?]);
    try_all("ipv6", "7001:[::1]:7001", gateway6(), listen)
}

/// On another port than the gateway's: on the same one it would be on the gateway too, and attach refuses that.
fn dual_stack() -> Result<()> {
    let listen = |rig: &Rig| Ok(vec![Service::start(&rig.net.host, at6(Ipv6Addr::UNSPECIFIED, 7002))?]);
    try_all("dual-stack", "7001:7002", gateway(), listen)
}

fn reuseport() -> Result<()> {
    let member = |rig: &Rig| Service::start_shared(&rig.net.host, local(7001));
    try_all("reuseport", "7001", gateway(), |rig| Ok(vec![member(rig)?, member(rig)?]))
}

fn mptcp_ipv4() -> Result<()> {
    try_mptcp("mptcp-ipv4", "7001", gateway(), Ipv4Addr::LOCALHOST.into())
}

fn mptcp_ipv6() -> Result<()> {
    try_mptcp("mptcp-ipv6", "7001:[::1]:7001", gateway6(), Ipv6Addr::LOCALHOST.into())
}

/// There is no other way to a UNIX socket than the one `auto` takes.
fn unix() -> Result<()> {
    let rig = Rig::new()?;
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("redis.sock");
    let path = socket.to_str().context("an odd temporary directory")?;
    let _redis = Redis::start(&rig.net.host, 6379, &["--unixsocket", path])?;
    let datapath = auto(&rig, &format!("7001:unix:{path}"), || ping(&rig.net.a1, gateway()))?;
    served("unix", "auto", &datapath);
    Ok(())
}

fn gateway6() -> SocketAddr {
    at6(GATEWAY_A6, 7001)
}

/// A kernel without MPTCP has no such listeners.
fn try_mptcp(kind: &str, spec: &str, to: SocketAddr, address: IpAddr) -> Result<()> {
    if !has_mptcp() {
        REQUESTS.iter().for_each(|requested| served(kind, requested, "no MPTCP"));
        return Ok(());
    }
    try_all(kind, spec, to, |rig| {
        rig.net.host.sysctl("net/mptcp/enabled", "1")?;
        let listener = rig.net.host.run(|| mptcp_listener(SocketAddr::new(address, 7001)))?;
        Ok(vec![Service::serve(listener)?])
    })
}

/// Asks for each datapath in turn, each time with services that `listen` has just started.
fn try_all(
    kind: &str,
    spec: &str,
    to: SocketAddr,
    listen: impl Fn(&Rig) -> Result<Vec<Service>>,
) -> Result<()> {
    let rig = Rig::new()?;
    for requested in REQUESTS {
        let attempt = || -> Result<String> {
            let services = listen(&rig)?;
            let connect = || rig.net.a1.run(|| many_rounds(to));
            let datapath = match requested {
                "auto" => auto(&rig, spec, connect)?,
                "splice" => relay(&rig, spec, Datapath::Splice, connect)?,
                _ => sockmap(&rig, spec, connect)?,
            };
            the_service_saw(&services, &datapath)?;
            Ok(datapath)
        };
        let datapath =
            attempt().with_context(|| format!("a listener of kind {kind}, asking for {requested}"))?;
        served(kind, requested, &datapath);
    }
    Ok(())
}

/// The service agrees: with steering its client is the container, with a relay this host.
fn the_service_saw(services: &[Service], datapath: &str) -> Result<()> {
    if datapath == KNOWN_BUGS {
        return Ok(());
    }
    let relayed = ["splice", "sockmap"].contains(&datapath);
    let seen: Vec<_> = services.iter().flat_map(Service::peers).map(|peer| peer.remote).collect();
    let as_expected = |remote: &SocketAddr| remote.ip().to_canonical().is_loopback() == relayed;
    ensure!(!seen.is_empty() && seen.iter().all(as_expected), "with {datapath} the service saw {seen:?}");
    Ok(())
}

/// `attach`, and with `--foreground` where it says that this is what it takes.
fn auto(rig: &Rig, spec: &str, connect: impl Fn() -> Result<()>) -> Result<String> {
    let arguments = ["attach", spec, "--bridge", "br-a"];
    let output = rig.cli().run(&arguments)?;
    if output.code != Some(0) {
        expect_refusal(&output, 1, &["relay", "--foreground"])?;
        let _relay = Foreground::start(&rig.cli(), &arguments[1..])?;
        connect()?;
        return relayed(rig, Datapath::Splice);
    }
    let datapath = rig.cli().attachment(NAME)?.datapath;
    match datapath.as_str() {
        "steer" => rig.expect(NAME, Moved::accepted(1), connect)?,
        "steer-tc" => rig.expect_tc(NAME, Moved::accepted(1), connect)?,
        other => bail!("attach without --foreground says {other}"),
    }
    rig.cli().ok(&["detach", "--all"])?;
    Ok(datapath)
}

fn relay(rig: &Rig, spec: &str, datapath: Datapath, connect: impl Fn() -> Result<()>) -> Result<String> {
    let _relay = start(&rig.cli(), spec, datapath, &[])?;
    let outcome = connect();
    // Also when it failed: the counters tell `unless_repeated` why.
    let proven = relayed(rig, datapath);
    outcome.and(proven)
}

/// Unforced: a user is refused on kernels that lose bytes.
fn sockmap(rig: &Rig, spec: &str, connect: impl Fn() -> Result<()>) -> Result<String> {
    if sockmap_is_trusted()? {
        return unless_repeated(|| relay(rig, spec, Datapath::Sockmap, &connect));
    }
    let arguments = ["attach", spec, "--bridge", "br-a", "--datapath", "sockmap", "--foreground"];
    rig.cli().refused(&arguments, 1, &["failed to trust kernel", "--force"])?;
    Ok(KNOWN_BUGS.to_owned())
}

/// What a relay's counters say about the one connection it had.
fn relayed(rig: &Rig, datapath: Datapath) -> Result<String> {
    let now = counters(&rig.cli(), NAME, datapath)?;
    ensure!(now.accepted == 1 && now.bytes_up > 0 && now.bytes_down > 0, "the counters are {now:?}");
    now.prove(datapath)?;
    Ok(datapath.name().to_owned())
}
