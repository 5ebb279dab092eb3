//! `suite demo`: what bridge-user does, step by step, on a machine made of network namespaces.
//!
//! Invariants: each step checks what it claims, and the first that does not hold ends the demo with an error; the
//! machine's own network is not touched; whatever ends it, nothing stays behind.

mod http;
mod speed;
mod stage;
mod traces;

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use http::Web;
use stage::{Client, Stage};
use traces::Traces;

use crate::bench::interrupt;
use crate::harness::topology::{A1, A2, B1, GATEWAY_A, GATEWAY_B, OUTSIDE, UPLINK, at, local};

/// Port of the web service.
const WEB: u16 = 8000;
/// Port of its second attachment.
const ADMIN: u16 = 8001;
/// Port of the one with the loopback identity.
const LOCAL: u16 = 8002;

/// Runs, prints, and returns the process's exit code.
pub(crate) fn main(arguments: &[String]) -> i32 {
    if !arguments.is_empty() {
        eprintln!("suite demo: it takes no arguments");
        return 2;
    }
    match run() {
        Ok(()) => 0,
        Err(_) if interrupt::requested() => 130,
        Err(error) => {
            eprintln!("suite demo: a step did not show what it claims: {error:#}");
            1
        }
    }
}

fn run() -> Result<()> {
    let _alone = crate::prepare()?;
    interrupt::catch()?;
    let traces = Traces::before()?;
    let mut stage = Stage::new()?;
    let namespaces = traces::namespaces(&stage.rig.net);
    introduce();
    let web = Web::start(&stage.rig.net.host, local(WEB))?;
    before(&mut stage)?;
    attach(&mut stage)?;
    reach(&mut stage)?;
    scope(&mut stage)?;
    let web = restart(&mut stage, web)?;
    identity(&mut stage)?;
    stage.heading("Speed, next to a service bound on the gateway itself and to socat")?;
    speed::compare(&stage)?;
    observe(&mut stage)?;
    detach(&mut stage, &traces)?;
    drop((web, stage));
    traces::gone(&namespaces)?;
    println!("   -> the demo's namespaces are gone, and no process of it runs\n\nThat was all of it.");
    Ok(())
}

fn introduce() {
    println!(
        "A host and its containers, in network namespaces of this machine:\n\n   \
         container {A1} --+\n   \
         container {A2} --+-- br-a {GATEWAY_A} -- HOST -- br-b {GATEWAY_B} -- container {B1}\n   \
         {:48}+-- {UPLINK} -- outside machine {OUTSIDE}\n\n\
         The host runs a web service on 127.0.0.1:{WEB}, and has the NAT rules a Docker engine loads.",
        ""
    );
}

fn gateway(port: u16) -> SocketAddr {
    at(GATEWAY_A, port)
}

fn before(stage: &mut Stage) -> Result<()> {
    stage.heading("Before: loopback is loopback, the container is refused")?;
    stage.refused(Client::A1, gateway(WEB))?;
    stage.only_listens(&[local(WEB)])
}

fn attach(stage: &mut Stage) -> Result<()> {
    stage.heading("Attach the service to the bridge")?;
    let said = stage.bridge_user(&format!("attach web={WEB} --bridge br-a"))?;
    ensure!(said.contains("ready"), "the attachment is not ready");
    stage.only_listens(&[local(WEB)])
}

fn reach(stage: &mut Stage) -> Result<()> {
    stage.heading("The container reaches it, and the service sees who it is")?;
    let answer = stage.answered(Client::A1, gateway(WEB))?;
    ensure!(answer.contains(&format!("hello {A1}:")), "the service saw someone else than {A1}");
    ensure!(answer.ends_with(&gateway(WEB).to_string()), "the service was called by another name");
    stage.fact(&format!(
        "the service saw {A1}, not 127.0.0.1: what it grants to loopback, it does not grant here"
    ));
    Ok(())
}

fn scope(stage: &mut Stage) -> Result<()> {
    stage.heading("Only from this bridge: other bridges and the network outside are refused")?;
    stage.refused(Client::B1, gateway(WEB))?;
    stage.refused(Client::B1, at(GATEWAY_B, WEB))?;
    stage.refused(Client::Outside, gateway(WEB))?;
    stage.refused(Client::Outside, at(UPLINK, WEB))
}

fn restart(stage: &mut Stage, web: Web) -> Result<Web> {
    stage.heading("The service restarts, and nobody has to notice")?;
    drop(web);
    stage.fact("the service is stopped");
    stage.refused(Client::A1, gateway(WEB))?;
    let web = Web::start(&stage.rig.net.host, local(WEB))?;
    stage.fact("the service is started again, by someone who knows nothing of bridge-user");
    stage.answered(Client::A1, gateway(WEB))?;
    stage.only_listens(&[local(WEB)])?;
    Ok(web)
}

fn identity(stage: &mut Stage) -> Result<()> {
    stage.heading("A service that trusts local clients only can be shown one")?;
    let said = stage.bridge_user(&format!("attach local={LOCAL}:{WEB} --bridge br-a --identity loopback"))?;
    ensure!(said.contains("warning:"), "attach does not warn");
    let answer = stage.answered(Client::A1, gateway(LOCAL))?;
    ensure!(answer.contains("hello 127.0.0.1:"), "the service saw someone else than a local client");
    ensure!(answer.ends_with(&local(WEB).to_string()), "the service was called by another name");
    let answer = stage.answered(Client::A1, gateway(WEB))?;
    ensure!(answer.contains(&format!("hello {A1}:")), "the first attachment shows someone else than {A1}");
    stage.fact("the same connection: only what the service is told differs, and only on this port");
    Ok(())
}

fn observe(stage: &mut Stage) -> Result<()> {
    stage.heading("An allow-list, and what can be seen")?;
    stage.bridge_user(&format!("attach admin={ADMIN}:{WEB} --bridge br-a --allow {A1}/32"))?;
    stage.answered(Client::A1, gateway(ADMIN))?;
    stage.refused(Client::A2, gateway(ADMIN))?;
    let status = stage.bridge_user("status")?;
    for name in [format!("br-a-web-{WEB}"), format!("br-a-admin-{ADMIN}")] {
        ensure!(status.contains(&name), "status does not show {name}");
    }
    let counters = stage.rig.cli().attachment(&format!("br-a-admin-{ADMIN}"))?.counters;
    ensure!((counters.accepted, counters.denied) == (1, 1), "the counters are {counters:?}");
    let events = stage.bridge_user("events")?;
    for (what, who, port) in [("no-listener", A1, WEB), ("denied", A2, ADMIN)] {
        let shown = |line: &str| {
            [what.to_owned(), who.to_string(), gateway(port).to_string()]
                .iter()
                .all(|part| line.contains(part))
        };
        ensure!(events.lines().any(shown), "no event says {what} for {who} at port {port}");
    }
    Ok(())
}

fn detach(stage: &mut Stage, traces: &Traces) -> Result<()> {
    stage.heading("Detach, and nothing is left")?;
    stage.bridge_user("detach --all")?;
    stage.refused(Client::A1, gateway(WEB))?;
    stage.refused(Client::A1, gateway(ADMIN))?;
    stage.refused(Client::A1, gateway(LOCAL))?;
    stage.only_listens(&[local(WEB)])?;
    stage.rig.net.host.nothing_pinned()?;
    let count = traces.objects_as_before()?;
    stage.fact(&format!(
        "nothing is pinned; of bridge-user's programs and maps the kernel holds {count}, as before the demo"
    ));
    Ok(())
}
