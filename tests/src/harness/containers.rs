//! Services inside containers: a Docker engine with a few containers, and what the trials about `--container` share.
//!
//! Invariants: the service of `web` is a real program inside it that listens on the container's own 127.0.0.1:7001;
//! what a client hears from it can come from nowhere else; addresses are asked of the engine each time, since a
//! container that runs anew may have another one.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};

use super::cli::Attachment;
use super::client::refused;
use super::docker::{Engine, PAGE};
use super::rig::{Moved, expect_moved};
use super::topology::at;
use super::wait::{patience, until};

/// The attachment of `web`'s service on network `app`.
pub(crate) const NAME: &str = "web.app-tcp-7001";
/// Attaches it.
pub(crate) const ATTACH: [&str; 4] = ["attach", "7001", "--container", "web"];
const HTTPD: [&str; 7] = ["/bin/httpd", "-f", "-vv", "-p", "127.0.0.1:7001", "-h", "/"];

/// An engine with `web`, which has a service, and its sibling `peer` on network `app`.
pub(crate) struct Stage {
    pub(crate) engine: Engine,
}

impl Stage {
    /// Runs `body` on a new stage.
    pub(crate) fn run(body: fn(&mut Self) -> Result<()>) -> Result<()> {
        let mut stage = Self { engine: Engine::start()? };
        let outcome = stage
            .engine
            .docker(&["network", "create", "app"])
            .and_then(|_| stage.httpd("web", &["--network", "app"]))
            .and_then(|()| stage.engine.container("peer", &["--network", "app"]))
            .and_then(|()| body(&mut stage));
        stage.engine.noted(outcome)
    }

    /// Starts a container whose first process is the service.
    pub(crate) fn httpd(&self, name: &str, options: &[&str]) -> Result<()> {
        self.engine.run(name, options, &HTTPD)?;
        self.listens(name)
    }

    /// Waits until the service inside a container listens.
    pub(crate) fn listens(&self, name: &str) -> Result<()> {
        let netns = self.engine.netns(name)?;
        let there = || Ok(netns.listening()?.contains(&"127.0.0.1:7001".parse()?).then_some(()));
        until(&format!("the service in {name} listens"), patience(10), there)
    }

    /// Starts a stopped container, or a running one again.
    pub(crate) fn restart(&self, name: &str) -> Result<()> {
        self.engine.docker(&["restart", "--time", "0", name])?;
        self.listens(name)
    }

    /// Port 7001 of a container, as its siblings on `app` see it.
    pub(crate) fn port_of(&self, container: &str) -> Result<SocketAddr> {
        Ok(at(self.engine.address(container, "app")?, 7001))
    }

    /// `client` gets the page from port 7001 of `container`, by its own busybox.
    pub(crate) fn gets(&self, client: &str, container: &str) -> Result<()> {
        self.gets_at(client, self.port_of(container)?)
    }

    /// `client` gets the page from this address.
    pub(crate) fn gets_at(&self, client: &str, to: SocketAddr) -> Result<()> {
        let said = self.engine.nc(client, to, "GET /index.html HTTP/1.0\r\n\r\n")?;
        ensure!(said.ends_with(PAGE), "{client} heard {said:?}");
        Ok(())
    }

    /// `peer` is served by `web`, once, and the counters say so.
    pub(crate) fn served(&self) -> Result<()> {
        expect_moved(&self.engine.cli(), NAME, Moved::accepted(1), || self.gets("peer", "web"))
    }

    /// `client` gets a reset from port 7001 of `web`.
    pub(crate) fn refuses(&self, client: &str) -> Result<()> {
        refused(&self.engine.netns(client)?, self.port_of("web")?)
    }

    /// The only attachment there is, which is `web`'s, in this state.
    pub(crate) fn only(&self, state: &str) -> Result<Attachment> {
        let mut all = self.engine.cli().status()?;
        ensure!(all.len() == 1, "status shows {all:?}");
        let attachment = all.pop().context("status shows nothing")?;
        let found = (attachment.name.as_str(), attachment.state.as_str());
        ensure!(found == (NAME, state), "{found:?} is not {NAME} in state {state}: {}", attachment.raw);
        Ok(attachment)
    }

    /// Nothing is attached or pinned, here or in containers.
    pub(crate) fn nothing_left(&self) -> Result<()> {
        let all = self.engine.cli().status()?;
        ensure!(all.is_empty(), "status shows {all:?}");
        self.engine.nothing_pinned()
    }
}
