//! `attach --container`: the container's network namespace, and what takes the place of bridges and gateways in it.
//!
//! Invariants: Docker is asked from the caller's namespace, before the container's is entered, and asked again once
//! the namespace is open: a process id may have been given to another process in between. Nothing is opened, bound or
//! attached in the caller's own namespace.

use std::{fmt, fs::File, path::PathBuf};

use anyhow::{Context as _, bail, ensure};
use ipnet::IpNet;

use super::{Prepared, Request, resolve::BlockingDocker};
use crate::{
    attachment::AttachmentState,
    control::container::{Endpoint, Running},
    kernel::{host, owned::owned},
    net::{links::interface_with, netns},
    plan::{self, Network},
};

/// One run of a container, and its network namespace.
pub struct Place {
    /// What Docker says of it.
    pub running: Running,
    namespace: File,
    inode: u64,
    /// The namespace this is asked from, which sees and detaches what is attached in the container.
    owner: u64,
    /// The networks to attach to, with the allowed sources.
    networks: Vec<(Endpoint, Vec<IpNet>)>,
}

impl Place {
    /// Finds the container, resolves what the request names, and opens the container's network namespace.
    ///
    /// # Errors
    /// When the container cannot be attached in, or is not on a network that was named.
    pub(super) fn find(request: &Request, container: &str) -> anyhow::Result<Self> {
        let docker = BlockingDocker::connect()?;
        let running = docker.ask(docker.docker.running(container))?;
        let with_sources = |endpoint: &Endpoint| {
            let sources = docker.sources(&request.allow, (&endpoint.network_id, &endpoint.network))?;
            Ok((endpoint.clone(), sources))
        };
        let networks = running.endpoints_on(&request.networks)?.into_iter().map(with_sources);
        let networks = networks.collect::<anyhow::Result<_>>()?;
        let name = &running.name;
        let namespace = netns::of_process(running.pid)
            .with_context(|| format!("failed to find the network namespace of container {name}"))?;
        ensure!(
            docker.ask(docker.docker.running(&running.id))? == running,
            "failed to attach inside container {name}: it was restarted meanwhile: try again"
        );
        let (inode, owner) = (netns::inode_of(&namespace)?, host::netns_inode()?);
        ensure!(
            inode != owner,
            "failed to attach inside container {name}: its network namespace is this one: leave --container out"
        );
        Ok(Self { running, namespace, inode, owner, networks })
    }

    /// Runs `body` in the container's network namespace.
    pub(super) fn run<T: Send>(&self, body: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        netns::run_in(&self.namespace, body)
            .with_context(|| format!("failed to attach inside container {}", self.running.name))
    }

    /// The inode of the namespace that attaches.
    pub(super) fn owner(&self) -> u64 {
        self.owner
    }

    /// The networks as the calling thread sees them, which is to be inside the container.
    pub(super) fn networks(&self) -> anyhow::Result<Vec<Network>> {
        let network = |(endpoint, allow): &(Endpoint, Vec<IpNet>)| {
            let address = endpoint.addrs.first().context("the container has no address on the network")?;
            Ok(Network {
                container: Some(self.running.name.clone()),
                name: endpoint.network.clone(),
                bridge: interface_with(*address)?,
                allow: allow.clone(),
            })
        };
        self.networks.iter().map(network).collect()
    }

    /// Docker's proxy connects from the host's address on the network for whomever it serves, so an allow-list of the whole
    /// network would admit the world.
    pub(super) fn refuse_published(&self, request: &Request, state: &AttachmentState) -> anyhow::Result<()> {
        ensure!(
            !request.allow.is_empty() || !self.running.published.contains(&state.port.get()),
            "port {} of the container is published on the host, and who comes through Docker's proxy has the host's \
             address, which is in the network: unpublish it, or use --allow to say who may connect",
            state.port
        );
        Ok(())
    }

    /// What is pinned of these attachments for earlier runs of the container: where, and which.
    pub(super) fn earlier(&self, wanted: &[AttachmentState]) -> anyhow::Result<Vec<(PathBuf, Vec<String>)>> {
        let mut found = Vec::new();
        for other in owned()?.iter().filter(|other| !other.is_in(self.inode)) {
            let there = other.attachments()?;
            let names: Vec<_> =
                there.iter().filter(|state| is_any_of(state, wanted)).map(AttachmentState::name).collect();
            if !names.is_empty() {
                found.push((other.path(), names));
            }
        }
        Ok(found)
    }

    /// Removes what is pinned of these attachments for earlier runs of the container.
    pub(super) fn forget_earlier(&self, attached: &[AttachmentState]) -> anyhow::Result<()> {
        for other in owned()?.iter().filter(|other| !other.is_in(self.inode)) {
            other
                .detach(|state| is_any_of(state, attached))
                .with_context(|| format!("failed to remove what an earlier run of container {self} left"))?;
        }
        Ok(())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.running.name, self.running.pid)
    }
}

fn is_any_of(state: &AttachmentState, wanted: &[AttachmentState]) -> bool {
    wanted.iter().any(|one| one.is_same(state))
}

/// A relay would have to run inside the container, and none does.
pub(super) fn require_steered(prepared: &Prepared) -> anyhow::Result<()> {
    let Some(first) = prepared.relayed.first() else { return Ok(()) };
    bail!(
        "{}: it needs a relay ({}: {}), and there are none inside containers: use --datapath auto and a TCP listener on \
         the container's 127.0.0.1, or let the service listen on the container's own address",
        plan::failed_to_attach(&first.service, first.port, &first.bridge),
        first.datapath,
        first.reason
    )
}
