//! `relay::*`: a UNIX target is the service's socket and no other, and who connects to it has no root.
//!
//! Invariant: the service, or who took its place, itself says who came, and whether anybody did.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;

use super::Test;
use crate::harness::client::{connect, dial_from};
use crate::harness::endings::{expect_reset, expect_turned_away};
use crate::harness::foreground::Foreground;
use crate::harness::relay::{Datapath, NAME, PORT, counters, final_counters, gateway, start};
use crate::harness::rig::Rig;
use crate::harness::topology::{A1, GATEWAY_A};
use crate::harness::wait::{patience, until};

pub(super) const TESTS: &[Test] = &[
    Test::new("relay::splice::unix_target_that_became_a_link_is_refused", link),
    Test::new("relay::splice::unix_target_of_another_user_is_refused", another_user),
    Test::new("relay::splice::unix_target_that_restarts_is_served", restart),
    Test::new("relay::splice::unix_target_is_reached_without_root", no_root),
    Test::new("relay::splice::unix_target_of_a_group_is_reached_as_nobody", group),
    Test::new("relay::splice::an_address_that_the_host_got_later_is_refused", later_address),
];

const SERVICE: u32 = 4242;
const OTHER: u32 = 4243;
const NOBODY: u32 = 65534;
/// An address that the bridge gets while the relay runs.
const LATER: Ipv4Addr = Ipv4Addr::new(172, 30, 1, 77);

/// A directory of the service's user, which others may search.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        chown(directory.path(), Some(SERVICE), Some(SERVICE))?;
        Ok(Self(directory))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// A stream socket of a user that accepts without waiting.
fn service(path: &Path, owner: u32, mode: u32) -> Result<UnixListener> {
    drop(fs::remove_file(path));
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    chown(path, Some(owner), Some(owner))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

fn relay(rig: &Rig, path: &Path) -> Result<Foreground> {
    start(&rig.cli(), &format!("7001:unix:{}", path.display()), Datapath::Splice, &[])
}

/// The next connection, and whose process it comes from.
fn accept(listener: &UnixListener) -> Result<(UnixStream, u32)> {
    let (stream, _) = until("the service gets a connection", patience(10), || match listener.accept() {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
        accepted => Ok(Some(accepted?)),
    })?;
    let peer = getsockopt(&stream, PeerCredentials)?.uid();
    Ok((stream, peer))
}

/// A client gets to the service; returns whose process it was for the service.
fn served(rig: &Rig, listener: &UnixListener) -> Result<u32> {
    let client = connect(&rig.net.a1, gateway())?;
    let (_stream, peer) = accept(listener)?;
    drop(client);
    Ok(peer)
}

/// A client is reset, that is counted and said, and whoever is there now saw nobody.
fn refused(rig: &Rig, relay: &Foreground, stranger: &UnixListener, why: &str) -> Result<()> {
    let before = counters(&rig.cli(), NAME, Datapath::Splice)?;
    expect_turned_away(&rig.net.a1, gateway())?;
    let now = final_counters(&rig.cli(), NAME, Datapath::Splice)?;
    let counted = (now.no_listener - before.no_listener, now.foreign_target - before.foreign_target);
    ensure!(counted == (1, 1), "the counters went from {before:?} to {now:?}");
    let waiting = stranger.accept();
    ensure!(
        waiting.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock),
        "who took the service's place got {waiting:?}"
    );
    relay.says(&[why, "find out who changed it"])?;
    let shown = rig.cli().attachment(NAME)?;
    ensure!(shown.state == "failed", "status says {}", shown.state);
    shown.expect_finding("target-foreign")
}

/// The socket's owner, who may write to its directory, makes it a link to a socket of root's.
fn link() -> Result<()> {
    let (rig, home) = (Rig::new()?, Home::new()?);
    let (path, secret) = (home.path("s"), home.path("secret"));
    let listener = service(&path, SERVICE, 0o666)?;
    let relay = relay(&rig, &path)?;
    served(&rig, &listener)?;
    let stranger = service(&secret, 0, 0o666)?;
    fs::remove_file(&path)?;
    symlink(&secret, &path)?;
    refused(&rig, &relay, &stranger, "symbolic link")
}

fn another_user() -> Result<()> {
    let (rig, home) = (Rig::new()?, Home::new()?);
    let path = home.path("s");
    let listener = service(&path, SERVICE, 0o666)?;
    let relay = relay(&rig, &path)?;
    served(&rig, &listener)?;
    let stranger = service(&path, OTHER, 0o666)?;
    refused(&rig, &relay, &stranger, "user 4243's now, expected user 4242's")?;
    // A socket may be there before its owner does: the directory's user is whom to expect.
    let again = service(&path, SERVICE, 0o666)?;
    served(&rig, &again)?;
    let shown = rig.cli().attachment(NAME)?;
    ensure!(shown.state == "ready", "status says {}", shown.state);
    Ok(())
}

/// A service that was down at first, comes, goes with its directory, and comes again.
fn restart() -> Result<()> {
    let (rig, home) = (Rig::new()?, Home::new()?);
    let path = home.path("run/s");
    let _relay = relay(&rig, &path)?;
    for _ in 0..2 {
        fs::create_dir(home.path("run"))?;
        chown(home.path("run"), Some(SERVICE), Some(SERVICE))?;
        for _ in 0..2 {
            let listener = service(&path, SERVICE, 0o666)?;
            served(&rig, &listener)?;
        }
        fs::remove_dir_all(home.path("run"))?;
        expect_turned_away(&rig.net.a1, gateway())?;
    }
    let now = final_counters(&rig.cli(), NAME, Datapath::Splice)?;
    ensure!((now.accepted, now.no_listener, now.foreign_target) == (4, 2, 0), "the counters are {now:?}");
    Ok(())
}

/// Everything of the process that runs, by the kernel's word: user, group and capabilities of each thread.
fn identities(relay: &Foreground) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for thread in fs::read_dir(format!("/proc/{}/task", relay.pid()))? {
        // One that answered a question may have ended.
        let Ok(status) = fs::read_to_string(thread?.path().join("status")) else { continue };
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).context("an odd status")
        };
        found.push(format!(
            "{}, {}, {}, {} {} {}",
            of("Uid")?,
            of("Gid")?,
            of("Groups")?,
            of("CapPrm")?,
            of("CapEff")?,
            of("NoNewPrivs")?
        ));
    }
    found.sort();
    found.dedup();
    Ok(found)
}

fn expect_identity(relay: &Foreground, uid: u32, gid: u32) -> Result<()> {
    let four = |id: u32| [id.to_string(), id.to_string(), id.to_string(), id.to_string()].join(" ");
    let none = "0000000000000000";
    let expected = format!("{}, {}, {gid}, {none} {none} 1", four(uid), four(gid));
    // The process gives up what it had after it has told of itself.
    until("every thread has given up root", patience(10), || {
        Ok((identities(relay)? == [expected.clone()]).then_some(()))
    })
    .with_context(|| format!("the threads are {:?}, expected {expected}", identities(relay)))
}

/// What `attach` and `status` say of whom the service sees.
fn expect_said(rig: &Rig, relay: &Foreground, uid: u32) -> Result<()> {
    let shown = rig.cli().attachment(NAME)?;
    for findings in [&relay.report()["attachments"][0]["findings"], &shown.raw["findings"]] {
        let list = findings.as_array().context("no findings")?;
        let said = list.iter().find(|finding| finding["code"] == "unix-client").context("it is not said")?;
        let cause = said["cause"].as_str().unwrap_or_default();
        ensure!(cause.contains(&uid.to_string()), "it says {cause}");
    }
    Ok(())
}

/// Open to all: nobody. Only for its owner: the owner.
fn no_root() -> Result<()> {
    for (mode, expected) in [(0o666, NOBODY), (0o600, SERVICE)] {
        let (rig, home) = (Rig::new()?, Home::new()?);
        let path = home.path("s");
        let listener = service(&path, SERVICE, mode)?;
        let relay = relay(&rig, &path)?;
        let peer = served(&rig, &listener)?;
        ensure!(peer == expected, "with mode {mode:o} the service saw user {peer} instead of {expected}");
        expect_identity(&relay, expected, expected)?;
        expect_said(&rig, &relay, expected)?;
        rig.cli().ok(&["detach", NAME])?;
    }
    Ok(())
}

/// As Docker's: root's, and a group's.
fn group() -> Result<()> {
    let (rig, home) = (Rig::new()?, Home::new()?);
    let path = home.path("s");
    let listener = service(&path, 0, 0o660)?;
    chown(&path, Some(0), Some(SERVICE))?;
    let relay = relay(&rig, &path)?;
    ensure!(served(&rig, &listener)? == NOBODY, "the service saw another user than nobody");
    expect_identity(&relay, NOBODY, SERVICE)?;
    expect_said(&rig, &relay, NOBODY)
}

/// A local user may not get to a socket by way of the relay, from whatever address of the host.
fn later_address() -> Result<()> {
    let (rig, home) = (Rig::new()?, Home::new()?);
    let path = home.path("s");
    let listener = service(&path, SERVICE, 0o666)?;
    let relay = relay(&rig, &path)?;
    let host = &rig.net.host;
    host.ip(&format!("addr add {LATER}/24 dev br-a"))?;
    for source in [GATEWAY_A, LATER] {
        let stream = host.run(|| dial_from(source, SocketAddrV4::new(GATEWAY_A, PORT)))?;
        ensure!(expect_reset(&stream)? == 0, "{source} was answered");
    }
    let now = final_counters(&rig.cli(), NAME, Datapath::Splice)?;
    ensure!((now.accepted, now.denied) == (0, 2), "the counters are {now:?}");
    relay.says(&["the host itself"])?;
    ensure!(served(&rig, &listener)? == NOBODY, "{A1} is not served");
    Ok(())
}
