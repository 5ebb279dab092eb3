//! `typed::*`: what people type who have not read the grammar: it is understood, or answered with what they meant.
//!
//! Invariant: what is understood serves, with exact counters; what is refused changes nothing, exits 2 where the
//! command line is wrong by itself and 1 where the host decides, and says what to write, as a shell takes it.

use anyhow::{Result, ensure};

use super::Test;
use super::refusals::{lone_host, refuse};
use crate::harness::client::answers;
use crate::harness::docker::Engine;
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::Service;
use crate::harness::topology::{GATEWAY_A, at, local};

pub(super) const TESTS: &[Test] = &[
    Test::on_host("typed::a_listener_by_host_and_port_is_understood", understood),
    Test::on_host("typed::specs_are_answered_with_what_was_meant", answered),
    Test::on_host("typed::several_values_in_one_flag_are_answered", several_values),
    Test::on_host("typed::a_subnet_without_prefix_is_answered", subnet_without_prefix),
    Test::on_host("typed::sources_outside_the_subnet_are_told_of", outside),
    Test::on_host("typed::names_of_something_else_are_answered_with_the_flag", names_of_something_else),
];

/// What is typed, and the service's name that comes of it.
const UNDERSTOOD: [(&str, &str); 6] = [
    ("localhost:7001", "tcp"),
    ("127.0.0.1:7001", "tcp"),
    ("7001/tcp", "tcp"),
    ("http://localhost:7001/", "tcp"),
    ("web=localhost:7001", "web"),
    ("redis://127.0.0.1:7001", "redis"),
];

const ANSWERED: [(&str, &str); 16] = [
    ("redis:7000:6379", "write `redis=7000:6379`"),
    ("redis:6379", "write `redis`"),
    ("redis:7000", "`redis=7000:6379` where it listens on 6379"),
    ("::1:80", "write `'[::1]:80'`"),
    ("80:[::1]", "write `'80:[::1]:80'`"),
    ("7000-7003", "write `7000 7001 7002 7003`"),
    ("7000-7010", "`$(seq 7000 7010)`"),
    ("6379,5432", "write `6379 5432`"),
    ("redis postgres", "write `redis postgres`"),
    ("http://localhost:8080/v1", "write `localhost:8080`"),
    ("0.0.0.0:8080:80", "write `8080:80`"),
    ("6379=redis", "write `redis=6379`"),
    ("cache=redis", "write `cache=6379`"),
    ("/run/x.sock", "write `PORT:unix:/run/x.sock`"),
    ("53/udp", "UDP, which is not in this version yet"),
    ("localhost", "write localhost:PORT"),
];

fn understood() -> Result<()> {
    for (typed, service) in UNDERSTOOD {
        let rig = Rig::new()?;
        let _service = Service::start(&rig.net.host, local(7001))?;
        rig.attach(typed)?;
        let name = format!("br-a-{service}-7001");
        rig.expect(&name, Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    }
    Ok(())
}

fn answered() -> Result<()> {
    let host = lone_host()?;
    ANSWERED.iter().try_for_each(|(typed, meant)| {
        refuse(&host, &["attach", typed, "--bridge", "br-a"], 2, &["expected", meant])
    })
}

fn several_values() -> Result<()> {
    let host = lone_host()?;
    refuse(&host, &["attach", "7001", "--network", "a,b"], 2, &["use `--network a --network b`"])?;
    refuse(&host, &["attach", "7001", "--bridge", "br-a,br-b"], 2, &["use `--bridge br-a --bridge br-b`"])?;
    let allow = ["attach", "7001", "--bridge", "br-a", "--allow", "172.30.1.2,172.30.1.3"];
    refuse(&host, &allow, 2, &["use `--allow 172.30.1.2 --allow 172.30.1.3`"])
}

fn subnet_without_prefix() -> Result<()> {
    let command = ["attach", "7001", "--bridge", "br-a", "--allow", "172.30.1.0"];
    refuse(&lone_host()?, &command, 1, &["the subnet itself", "use `--allow 172.30.1.0/24`"])
}

/// Such a source may be routed over the bridge, so it is not refused.
fn outside() -> Result<()> {
    let rig = Rig::new()?;
    let _service = Service::start(&rig.net.host, local(7001))?;
    rig.attach_with("7001", &["--allow", "10.9.0.0/16"])?;
    let attachment = rig.expect_state("br-a-tcp-7001", "ready")?;
    let finding = attachment.findings.iter().find(|finding| finding.code == "allow-outside");
    let cure = finding.map_or("", |finding| &finding.cure);
    ensure!(cure.contains("172.30.1.0/24"), "nothing is said of the list: {attachment:?}");
    rig.attach_with("7001", &["--allow", "172.30.1.0/24"])?;
    let attachment = rig.expect_state("br-a-tcp-7001", "ready")?;
    ensure!(attachment.findings.is_empty(), "something is said of a good list: {attachment:?}");
    Ok(())
}

fn names_of_something_else() -> Result<()> {
    let engine = Engine::start()?;
    engine.docker(&["network", "create", "appnet"])?;
    engine.container("worker", &["--network", "appnet"])?;
    engine.host.ip("link add br-own type bridge\naddr add 172.30.1.1/24 dev br-own\nlink set br-own up\n")?;
    let cli = engine.cli();
    for (options, meant) in [
        (["--network", "docker0"], "use `--network bridge`"),
        (["--network", "br-own"], "use `--bridge br-own`"),
        (["--network", "worker"], "use `--network appnet --allow worker`"),
        (["--bridge", "appnet"], "use `--network appnet`"),
        (["--allow", "worker"], "it is on appnet: use `--network appnet`"),
        (["--allow", "172.17.0.0"], "use `--allow 172.17.0.0/16`"),
    ] {
        cli.refused(&[&["attach", "7001"], &options[..]].concat(), 1, &[meant])?;
    }
    Ok(())
}
