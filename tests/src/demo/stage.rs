//! The host, its containers, and the narration: everything that happens is printed before its outcome is judged.
//!
//! Invariant: a command is printed as it is run, and nothing is printed that did not happen.

use std::io::{ErrorKind, IsTerminal};
use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};

use super::http;
use crate::bench::interrupt;
use crate::harness::netns::Netns;
use crate::harness::rig::Rig;
use crate::harness::topology::{A1, A2, B1, OUTSIDE};

/// The machine of the demo.
pub(super) struct Stage {
    pub(super) rig: Rig,
    steps: u32,
    colour: bool,
}

/// Someone who makes requests.
#[derive(Clone, Copy)]
pub(super) enum Client {
    A1,
    A2,
    B1,
    Outside,
}

impl Client {
    fn name(self) -> String {
        match self {
            Self::A1 => format!("container {A1} on br-a"),
            Self::A2 => format!("container {A2} on br-a"),
            Self::B1 => format!("container {B1} on br-b"),
            Self::Outside => format!("outside machine {OUTSIDE}"),
        }
    }
}

impl Stage {
    /// Builds the machine.
    pub(super) fn new() -> Result<Self> {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Ok(Self { rig: Rig::new()?, steps: 0, colour })
    }

    /// Opens the next step.
    pub(super) fn heading(&mut self, text: &str) -> Result<()> {
        interrupt::check()?;
        self.steps += 1;
        println!("\n{}", self.paint("1", &format!("{}. {text}", self.steps)));
        Ok(())
    }

    /// A fact that was just checked.
    pub(super) fn fact(&self, text: &str) {
        println!("   {} {text}", self.paint("32", "->"));
    }

    /// Runs the binary on the host and returns what it printed.
    pub(super) fn bridge_user(&self, arguments: &str) -> Result<String> {
        interrupt::check()?;
        println!("   {}", self.paint("36", &format!("host# bridge-user {arguments}")));
        let words: Vec<_> = arguments.split_whitespace().collect();
        let output = self.rig.cli().run(&words)?;
        for line in output.stdout.lines().chain(output.stderr.lines()) {
            println!("   {line}");
        }
        output.success().with_context(|| format!("bridge-user {arguments}"))?;
        Ok(output.stdout)
    }

    /// Makes a request that must be answered; returns the answer.
    pub(super) fn answered(&self, client: Client, to: SocketAddr) -> Result<String> {
        self.announce(client, to)?;
        let body = http::get(self.netns(client), to).with_context(|| format!("no answer from {to}"))?;
        println!("   {body}");
        Ok(body)
    }

    /// Makes a request that must be refused.
    pub(super) fn refused(&self, client: Client, to: SocketAddr) -> Result<()> {
        self.announce(client, to)?;
        match http::get(self.netns(client), to) {
            Ok(body) => bail!("{to} answered the {} instead of refusing: {body}", client.name()),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                println!("   connection refused");
                Ok(())
            }
            Err(error) => Err(error).with_context(|| format!("{to} did not refuse but fail otherwise")),
        }
    }

    fn announce(&self, client: Client, to: SocketAddr) -> Result<()> {
        interrupt::check()?;
        println!("   {}", self.paint("36", &format!("{}> GET http://{to}/", client.name())));
        Ok(())
    }

    fn netns(&self, client: Client) -> &Netns {
        let net = &self.rig.net;
        match client {
            Client::A1 => &net.a1,
            Client::A2 => &net.a2,
            Client::B1 => &net.b1,
            Client::Outside => &net.outside,
        }
    }

    /// Checks and says that only `expected` listens on the host and that no process serves the attachment.
    pub(super) fn only_listens(&self, expected: &[SocketAddr]) -> Result<()> {
        let host = &self.rig.net.host;
        let listening = host.listening()?;
        ensure!(listening == expected, "on the host, {listening:?} listen instead of {expected:?}");
        let processes = crate::harness::proc::running_in(host, "bridge-user")?;
        ensure!(processes.is_empty(), "bridge-user still runs: {processes:?}");
        let list: Vec<_> = listening.iter().map(ToString::to_string).collect();
        self.fact(&format!("listening on the host: {} only; bridge-user processes: none", list.join(", ")));
        Ok(())
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
