//! `placeholder::*`: listeners with which an engine only holds a container's published port.
//!
//! Invariants: nobody accepts from such a listener, so whatever is served went another way; the engine is a real one,
//! and where it is Podman, a real process with its name that holds the port as it does.

use anyhow::{Result, ensure};

use super::Test;
use super::nat::carry_to_a1;
use crate::harness::client::{answers, connect};
use crate::harness::docker::{Engine, PAGE};
use crate::harness::foreground::Foreground;
use crate::harness::go_server::Http;
use crate::harness::impostor::Impostor;
use crate::harness::netns::Netns;
use crate::harness::relay::{Datapath, NAME, counters, gateway};
use crate::harness::release::Release;
use crate::harness::rig::Rig;
use crate::harness::service::{Port, Service, listener};
use crate::harness::topology::{A1, at, local};

pub(super) const TESTS: &[Test] = &[
    Test::new("placeholder::conmons_listener_is_refused_and_relayed_by_its_rule", conmon),
    Test::new("placeholder::conmons_listener_without_a_rule_is_refused", conmon_without_a_rule),
    Test::new("placeholder::status_finds_a_listener_that_became_one", became_one),
    Test::on_host("placeholder::dockerds_listener_is_refused_and_relayed_by_its_rule", || {
        dockerd(Release::Installed)
    }),
];

/// Holds 127.0.0.1:7001 for container `web`, as Podman's conmon does. It stops itself, so that nothing can be accepted.
fn start_conmon(host: &Netns) -> Result<Impostor> {
    let held = listener(host, local(7001), Port::Exclusive)?;
    Impostor::start(host, "conmon", &["sh", "-c", "kill -STOP $$", "-n", "web"], held, None)
}

fn conmon() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.a1, at(A1, 80))?;
    let _conmon = start_conmon(&rig.net.host)?;
    carry_to_a1(&rig.net.host)?;
    let said = ["conmon (pid ", "for container web", "accepts nothing", "--foreground"];
    let attach = ["attach", "7001", "--bridge", "br-a"];
    rig.cli().refused(&attach, 1, &said)?;
    rig.cli().refused(&[&attach[..], &["--datapath", "steer"]].concat(), 1, &said)?;
    rig.net.host.nothing_pinned()?;
    let relay = Foreground::start(&rig.cli(), &["7001", "--bridge", "br-a"])?;
    ensure!(relay.report()["attachments"][0]["state"] == "ready", "the report is {}", relay.report());
    // Each attach found out what answers.
    let tried = service.peers().len();
    answers(&rig.net.a2, gateway())?;
    let now = counters(&rig.cli(), NAME, Datapath::Splice)?;
    ensure!(now.accepted == 1, "the counters are {now:?}");
    ensure!(service.peers().len() == tried + 1, "the service in the container saw {:?}", service.peers());
    rig.net.host.nft("delete table ip hand\n")?;
    let attachment = rig.cli().attachment(NAME)?;
    ensure!(attachment.state == "failed", "the state is {}", attachment.state);
    attachment.expect_finding("placeholder-listener")
}

fn conmon_without_a_rule() -> Result<()> {
    let rig = Rig::new()?;
    let _conmon = start_conmon(&rig.net.host)?;
    for options in [&[][..], &["--foreground"], &["--foreground", "--datapath", "splice"]] {
        let attach = [&["attach", "7001", "--bridge", "br-a"], options].concat();
        rig.cli().refused(&attach, 1, &["conmon (pid ", "container web", "network of that container"])?;
    }
    rig.net.host.nothing_pinned()
}

fn became_one() -> Result<()> {
    let rig = Rig::new()?;
    let service = Service::start(&rig.net.host, local(7001))?;
    rig.attach("7001")?;
    rig.expect_state(NAME, "ready")?;
    service.stop();
    let _conmon = start_conmon(&rig.net.host)?;
    rig.expect_state(NAME, "failed")?.expect_finding("placeholder-listener")
}

/// A published port of one container, for a container on another network. docker-proxy, the default, is a real relay.
pub(super) fn dockerd(release: Release) -> Result<()> {
    let engine = Engine::start_release(release, &["--userland-proxy=false"])?;
    engine.docker(&["network", "create", "appnet"])?;
    engine.run("web", &["--publish", "127.0.0.1:8080:80"], &["/bin/httpd", "-f", "-p", "80", "-h", "/"])?;
    engine.container("client", &["--network", "appnet"])?;
    let cli = engine.cli();
    let attach = ["attach", "8080", "--network", "appnet"];
    let said = ["dockerd (pid ", "for container web", "accepts nothing", "--foreground"];
    cli.refused(&attach, 1, &said)?;
    cli.refused(&[&attach[..], &["--datapath", "steer"]].concat(), 1, &said)?;
    let by_name = ["attach", "8080", "--bridge", &engine.bridge("appnet")?];
    cli.refused(&by_name, 1, &said)?;
    engine.nothing_pinned()?;
    let _relay = Foreground::start(&cli, &attach[1..])?;
    let name = "appnet-tcp-8080";
    let attachment = cli.attachment(name)?;
    ensure!(attachment.state == "ready", "the state is {}: {}", attachment.state, attachment.raw);
    let page = Http::new(connect(&engine.netns("client")?, at(engine.gateway("appnet")?, 8080))?)
        .get("/index.html")?;
    ensure!(page == PAGE, "the page is {page:?}");
    let now = counters(&cli, name, Datapath::Splice)?;
    ensure!(now.accepted == 1, "the counters are {now:?}");
    Ok(())
}
