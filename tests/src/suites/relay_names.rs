//! `relay::*`: what others put where relay processes are looked for disturbs nobody.
//!
//! Invariants: relays start, are shown and are detached whatever is there; what is steered is closed before anybody is
//! asked; who is named as a relay process is one, and a killed one leaves nothing for long.

use std::fs;
use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;

use super::Test;
use crate::harness::cli::{Finding, document};
use crate::harness::client::{answers, refused};
use crate::harness::mounts::leave_mounts;
use crate::harness::netns::Netns;
use crate::harness::relay::{Datapath, NAME, Stage, gateway, start};
use crate::harness::rig::Rig;
use crate::harness::service::{Port, Service, listener};
use crate::harness::topology::{GATEWAY_A, at, local};

pub(super) const TESTS: &[Test] = &[
    Test::new("relay::names_that_anybody_can_take_disturb_nobody", squatted_names),
    Test::new("relay::what_else_is_in_the_directory_disturbs_nobody", odd_files),
    Test::new("relay::detach_closes_what_is_steered_before_it_asks", steered_first),
    Test::new("relay::a_killed_relays_socket_disturbs_nobody_and_goes_away", killed),
    Test::new("relay::a_directory_that_another_user_made_is_not_believed", foreign_directory),
    Test::new("relay::with_a_run_of_its_own_it_serves_and_is_not_found", own_run),
];

const DIRECTORY: &str = "/run/bridge-user/relay";
const STEERED: &str = "br-a-tcp-7002";

/// Where a process of the namespace would have its socket.
fn socket_of(netns: &Netns, process: u32) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{}-{process}", netns.inode()))
}

/// Files in the directory, removed when dropped.
struct Put(Vec<PathBuf>);

impl Drop for Put {
    fn drop(&mut self) {
        // One may have been removed as a leftover.
        self.0.iter().for_each(|path| drop(fs::remove_file(path)));
    }
}

/// Names as an earlier version had them, of coming processes too, and such as are no text.
fn squatted_names() -> Result<()> {
    const NAMES: u32 = 3000;
    let rig = Rig::new()?;
    let me = std::process::id();
    let numbers = (me..me + NAMES).map(|number| format!("bridge-user/relay/{number}").into_bytes());
    let odd = [b"bridge-user/relay/\xff\xfe".to_vec(), b"\xc3\x28 bridge-user/relay/1 @".to_vec()];
    let bind = |name: Vec<u8>| Ok(UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?);
    let _squatted: Vec<UnixListener> =
        rig.net.host.run(|| numbers.chain(odd).map(bind).collect::<Result<_>>())?;
    let target = listener(&rig.net.host, local(7001), Port::Exclusive)?;
    let mut stage = Stage::around(rig, target, Datapath::Splice, &[])?;
    stage.rig.attach("7002")?;
    drop(stage.warm_pair()?);
    stage.all_ended_well(1)?;
    stage.rig.cli().ok(&["detach", "7002"])?;
    stage.rig.net.host.nothing_pinned()?;
    stage.rig.cli().ok(&["detach", NAME])?;
    stage.relay.end()?;
    refused(&stage.rig.net.a1, gateway())
}

/// A socket that answers something else, one that nobody listens on, a name of no relay, and a file.
fn odd_files() -> Result<()> {
    let stage = Stage::new(Datapath::Splice)?;
    let host = &stage.rig.net.host;
    let paths = [1, 2].map(|process| socket_of(host, process));
    let [hostile, dead] = &paths;
    let odd = Path::new(DIRECTORY).join(format!("{}-x", host.inode()));
    let file = socket_of(host, 3);
    let _put = Put(vec![hostile.clone(), dead.clone(), odd.clone(), file.clone()]);
    let listener = UnixListener::bind(hostile)?;
    drop(UnixListener::bind(dead)?);
    drop(UnixListener::bind(&odd)?);
    fs::write(&file, "no socket")?;
    stage.rig.attach("7002")?;
    let cli = stage.rig.cli();
    let (status, detach) = while_answering(&listener, || {
        Ok((cli.run(&["status", "--output", "json"])?, cli.run(&["detach", "--all"])?))
    })?;
    for name in [NAME, STEERED] {
        ensure!(status.stdout.contains(name), "status does not show {name}: {}", status.stdout);
    }
    let findings = Finding::list(&document(&status.stdout)?)?;
    let path = hostile.display().to_string();
    let named = findings.iter().any(|one| one.code == "relay-silent" && one.cause.contains(&path));
    ensure!(status.code == Some(1) && named && findings.len() == 1, "status has the findings {findings:?}");
    ensure!(detach.code == Some(1) && detach.stderr.contains(&path), "detach says {detach:?}");
    stage.rig.net.host.nothing_pinned()?;
    refused(&stage.rig.net.a1, gateway())?;
    ensure!(!dead.exists() && hostile.exists() && odd.exists() && file.exists(), "the wrong files are gone");
    Ok(())
}

/// Answers whoever connects with what is no answer, until `body` is done.
fn while_answering<T: Send>(listener: &UnixListener, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let running = scope.spawn(body);
        listener.set_nonblocking(true)?;
        while !running.is_finished() {
            match listener.accept() {
                Ok((mut stream, _)) => drop(stream.write_all(b"HTTP/1.1 200 OK\r\n\xff\xfe\x1b[2J")),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        running.join().map_err(|_| anyhow!("it panicked"))?
    })
}

/// Whoever is asked sees that nothing is steered any more.
fn steered_first() -> Result<()> {
    let stage = Stage::new(Datapath::Splice)?;
    let host = &stage.rig.net.host;
    let path = socket_of(host, 1);
    let _put = Put(vec![path.clone()]);
    let listener = UnixListener::bind(&path)?;
    for what in [STEERED, "--all"] {
        stage.rig.attach("7002")?;
        let pinned = std::thread::scope(|scope| -> Result<_> {
            let verb = scope.spawn(|| stage.rig.cli().run(&["detach", what]));
            let mut pinned = Vec::new();
            // The first one only looks whether somebody is there.
            for _ in 0..2 {
                let (stream, _) = listener.accept()?;
                pinned.push(host.pins().exists());
                drop(stream);
            }
            verb.join().map_err(|_| anyhow!("detach panicked"))??;
            Ok(pinned)
        })?;
        ensure!(pinned == [false, false], "detach {what} asked while something was steered: {pinned:?}");
    }
    Ok(())
}

fn killed() -> Result<()> {
    let mut stage = Stage::new(Datapath::Splice)?;
    let first = socket_of(&stage.rig.net.host, stage.relay.pid());
    ensure!(first.exists(), "{} is missing", first.display());
    let mode = fs::metadata(DIRECTORY)?.permissions().mode() & 0o7777;
    ensure!(mode == 0o700, "{DIRECTORY} has mode {mode:o}");
    stage.relay.signal(Signal::SIGKILL);
    stage.relay.end()?;
    ensure!(first.exists(), "a killed process removed its socket");
    ensure!(stage.rig.cli().status()?.is_empty(), "status shows the killed relay");
    ensure!(first.exists(), "status changed something");
    stage.restart()?;
    ensure!(!first.exists(), "attach left the killed relay's socket");
    let second = socket_of(&stage.rig.net.host, stage.relay.pid());
    ensure!(second.exists(), "{} is missing", second.display());
    drop(stage.warm_pair()?);
    stage.all_ended_well(1)?;
    stage.relay.signal(Signal::SIGKILL);
    stage.relay.end()?;
    stage.rig.cli().ok(&["detach", "--all"])?;
    ensure!(!second.exists(), "detach left the killed relay's socket");
    stage.restart()?;
    let third = socket_of(&stage.rig.net.host, stage.relay.pid());
    stage.relay.signal(Signal::SIGTERM);
    stage.relay.end()?;
    ensure!(!third.exists(), "a relay that ended left its socket");
    Ok(())
}

/// Runs `body` where `/run` is another one, which `prepare` has furnished.
fn with_own_run<T: Send>(prepare: fn() -> Result<()>, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| -> Result<T> {
            leave_mounts()?;
            mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
            prepare()?;
            body()
        });
        inside.join().map_err(|_| anyhow!("the thread panicked"))?
    })
}

fn foreign_directory() -> Result<()> {
    const NOBODY: u32 = 65534;
    let rig = Rig::new()?;
    let prepare = || {
        fs::DirBuilder::new().mode(0o755).create("/run/bridge-user")?;
        fs::DirBuilder::new().mode(0o700).create(DIRECTORY)?;
        for path in ["/run/bridge-user", DIRECTORY] {
            chown(path, Some(NOBODY), Some(NOBODY))?;
        }
        Ok(())
    };
    with_own_run(prepare, || {
        let cli = rig.cli();
        let relay = ["attach", "7001", "--bridge", "br-a", "--datapath", "splice", "--foreground"];
        cli.refused(&relay, 1, &["/run/bridge-user", "user 65534", "remove it"])?;
        rig.attach("7002")?;
        let status = cli.run(&["status", "--output", "json"])?;
        ensure!(status.code == Some(1) && status.stdout.contains(STEERED), "status says {status:?}");
        let codes: Vec<_> =
            Finding::list(&document(&status.stdout)?)?.into_iter().map(|one| one.code).collect();
        ensure!(codes == ["relay-directory"], "the findings are {codes:?}");
        let detach = cli.run(&["detach", STEERED])?;
        ensure!(detach.code == Some(1) && detach.stderr.contains("is detached"), "detach says {detach:?}");
        rig.net.host.nothing_pinned()
    })
}

fn own_run() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    let mut relay = with_own_run(|| Ok(()), || start(&rig.cli(), "7001", Datapath::Splice, &[]))?;
    answers(&rig.net.a1, at(GATEWAY_A, 7001))?;
    ensure!(service.peers().len() == 1, "the service saw {:?}", service.peers());
    ensure!(rig.cli().status()?.is_empty(), "a relay with a /run of its own was found");
    relay.signal(Signal::SIGTERM);
    let status = relay.end()?;
    ensure!(status.code() == Some(0), "the relay ended with {status}");
    refused(&rig.net.a1, gateway())
}
