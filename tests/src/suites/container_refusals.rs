//! `docker::container::*`: what cannot be attached inside a container is refused, with the reason and the next step.
//!
//! Invariant: a refusal leaves nothing, neither on the host nor in a container. What is attached all the same, and told
//! of, is here, too.

use std::net::Ipv4Addr;

use anyhow::{Result, bail, ensure};

use super::Test;
use crate::harness::cli::expect_usage_error;
use crate::harness::client::round;
use crate::harness::containers::Stage;
use crate::harness::rig::{Moved, expect_moved};
use crate::harness::service::Service;
use crate::harness::topology::at;

pub(super) const TESTS: &[Test] = &[
    Test::on_host("docker::container::containers_that_cannot_be_entered_are_refused", || {
        Stage::run(containers)
    }),
    Test::on_host("docker::container::what_needs_a_relay_is_refused", || Stage::run(relays)),
    Test::on_host("docker::container::published_port_needs_an_allow_list", || Stage::run(published)),
    Test::on_host("docker::container::service_on_every_address_is_told_of", || Stage::run(wildcard)),
];

fn containers(stage: &mut Stage) -> Result<()> {
    let engine = &stage.engine;
    engine.container("on-host", &["--network", "host"])?;
    engine.container("side", &["--network", "container:web"])?;
    engine.container("alone", &["--network", "none"])?;
    engine.container("asleep", &["--network", "app"])?;
    engine.docker(&["stop", "--time", "0", "asleep"])?;
    let cli = engine.cli();
    let refused = |container: &str, needles: &[&str]| {
        cli.refused(&["attach", "7001", "--container", container], 1, &[&[container], needles].concat())
    };
    refused("nobody", &["running container", "web"])?;
    refused("on-host", &["shares the host's network", "leave --container out"])?;
    refused("side", &["shares the network of container", "use that one"])?;
    refused("alone", &["no network", "docker network connect"])?;
    refused("asleep", &["not running", "exited", "docker start asleep"])?;
    let elsewhere = ["attach", "7001", "--container", "web", "--network", "bridge"];
    cli.refused(&elsewhere, 1, &["web", "bridge", "it is on app"])?;
    let both = cli.run(&["attach", "7001", "--container", "web", "--bridge", "docker0"])?;
    expect_usage_error(&both, &["--container", "--bridge"])?;
    cli.refused(&["detach", "web"], 1, &["web", "nothing is attached"])?;
    stage.nothing_left()
}

fn relays(stage: &mut Stage) -> Result<()> {
    let cli = stage.engine.cli();
    let refused = |arguments: &[&str]| {
        let all = [&["attach"], arguments, &["--container", "web"]].concat();
        cli.refused(&all, 1, &["inside container web", "needs a relay", "none inside containers"])
    };
    refused(&["7001", "--datapath", "splice"])?;
    refused(&["7001", "--datapath", "splice", "--foreground"])?;
    refused(&["db=5432:unix:/run/db.sock"])?;
    refused(&["7001", "--proxy-protocol", "v1"])?;
    stage.nothing_left()
}

fn published(stage: &mut Stage) -> Result<()> {
    stage.httpd("open", &["--network", "app", "--publish", "8080:7001"])?;
    let cli = stage.engine.cli();
    let arguments = ["attach", "7001", "--container", "open"];
    cli.refused(&arguments, 1, &["inside container open", "7001", "published", "--allow"])?;
    stage.nothing_left()?;
    cli.ok(&[&arguments[..], &["--allow", "peer"]].concat())?;
    let proxied = at(Ipv4Addr::LOCALHOST, 8080);
    // Docker's proxy accepts, and gets no further.
    expect_moved(&cli, "open.app-tcp-7001", Moved::denied(1), || {
        stage.engine.host.run(|| round(proxied)).map_or(Ok(()), |_| bail!("served through Docker's proxy"))
    })?;
    expect_moved(&cli, "open.app-tcp-7001", Moved::accepted(1), || stage.gets("peer", "open"))?;
    cli.ok(&["detach", "open"]).map(drop)
}

/// Its neighbours reach it without being attached, which is no reason to refuse.
fn wildcard(stage: &mut Stage) -> Result<()> {
    let web = stage.engine.netns("web")?;
    let _open = Service::start(&web, "0.0.0.0:7004".parse::<std::net::SocketAddr>()?)?;
    let cli = stage.engine.cli();
    cli.ok(&["attach", "7004", "--container", "web"])?;
    let attachment = cli.attachment("web.app-tcp-7004")?;
    ensure!(attachment.state == "ready", "the state is {}", attachment.state);
    attachment.expect_finding("listener-on-every-address")?;
    cli.ok(&["detach", "--all"])?;
    stage.nothing_left()
}
