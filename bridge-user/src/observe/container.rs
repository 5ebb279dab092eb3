//! `attach --container`: the container's network namespace, and what takes the place of bridges and gateways in it.
//!
//! Invariants: Docker is asked from the caller's namespace, before the container's is entered, and asked again once
//! the namespace is open: a process id may have been given to another process in between. Nothing is opened, bound or
//! attached in the caller's own namespace.

use std::fmt;

use anyhow::{Context as _, ensure};

use super::networks::{Asked, BlockingDocker, Gathered};
use crate::{
    engine::{
        container::{ContainerInfo, Endpoint},
        docker::DockerError,
    },
    kernel::instance::owned::owned,
    model::{attachment::Attachment, finding::Finding, instance::NamespaceId, source::Source},
    net::links::interface_with,
    plan::{Earlier, Network, request::Request},
    scope::Scope,
};

/// A container's place on a network, with the sources that are allowed there; or the error, whole.
type Place = Result<(Endpoint, Vec<Source>), String>;

/// One run of a container, and its network namespace.
pub struct ContainerRun {
    /// What Docker says of it.
    pub running: ContainerInfo,
    /// Its namespace, with the roots of who asks.
    scope: Scope,
    /// Where this is asked from, which sees and detaches what is attached in the container.
    owner: Scope,
    /// The networks to attach to, by the names they were asked for by.
    networks: Vec<(String, Place)>,
    /// The namespaces of containers among the sources, and which of those are not there.
    gathered: Gathered,
}

impl ContainerRun {
    /// Finds the container, resolves what the request names, and opens the container's network namespace.
    ///
    /// # Errors
    /// When the container cannot be attached in, or is not on a network that was named.
    pub(crate) fn find(request: &Request, owner: &Scope, container: &str) -> anyhow::Result<Self> {
        let docker = BlockingDocker::connect(request.engine.as_deref())?;
        let (running, namespace) = docker
            .run_of(container)
            .with_context(|| format!("failed to attach inside container {container}"))?;
        let mut gathered = Gathered::default();
        let mut networks = Vec::new();
        for (name, endpoint) in places(&running, &request.networks) {
            let place = endpoint.map_err(anyhow::Error::from).and_then(|endpoint| {
                let network = (endpoint.network_id.as_str(), endpoint.network.as_str());
                Ok((endpoint.clone(), docker.sources(request, network, &mut gathered)?))
            });
            networks.push((name, place.map_err(|error| format!("{error:#}"))));
        }
        ensure!(
            namespace != owner.namespace,
            "failed to attach inside container {}: its network namespace is this one: leave --container out",
            running.name
        );
        Ok(Self { running, scope: owner.inside(namespace), owner: owner.clone(), networks, gathered })
    }

    /// The allowed containers that are not there.
    pub(crate) fn left_out(&self) -> &[Finding] {
        &self.gathered.left_out
    }

    /// The container's namespace, with the roots of who asks.
    pub(crate) fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The inode of the namespace that attaches.
    pub(crate) fn owner(&self) -> NamespaceId {
        self.owner.namespace.id()
    }

    /// The start of an error's chain.
    pub(crate) fn failed(&self) -> String {
        format!("failed to attach inside container {}", self.running.name)
    }

    /// The networks as they are inside the container.
    pub(crate) fn networks(&self) -> Vec<Asked> {
        let network = |(endpoint, allow): &(Endpoint, Vec<Source>)| {
            let address = endpoint.addrs.first().context("the container has no address on the network")?;
            Ok(Network {
                container: Some(self.running.name.clone()),
                name: endpoint.network.clone(),
                bridge: interface_with(&self.scope.namespace, *address)?,
                allow: allow.clone(),
                host_gateways: Vec::new(),
                gateways: Vec::new(),
            })
        };
        let asked = |(name, place): &(String, Place)| match place {
            Ok(place) => Asked::new(name, network(place)),
            Err(error) => Asked { name: name.clone(), found: Err(error.clone()) },
        };
        self.networks.iter().map(asked).collect()
    }

    /// Docker's proxy connects from the host's address on the network for whomever it serves, so an allow-list of the
    /// whole network would admit the world.
    pub(crate) fn refuse_published(&self, request: &Request, state: &Attachment) -> anyhow::Result<()> {
        ensure!(
            !request.allow.is_empty() || !self.running.published.contains(&state.port.get()),
            "port {} of the container is published on the host, and who comes through Docker's proxy has the host's \
             address, which is in the network: unpublish it, or use --allow to say who may connect",
            state.port
        );
        Ok(())
    }

    /// What is pinned of these attachments for earlier runs of the container.
    ///
    /// # Errors
    /// When the pins cannot be read.
    pub(crate) fn earlier(&self, wanted: &[Attachment]) -> anyhow::Result<Vec<Earlier>> {
        let mut found = Vec::new();
        for other in owned(&self.owner)?.iter().filter(|other| !other.is_in(&self.scope.namespace)) {
            let there = other.attachments()?;
            let again = there.iter().filter(|state| wanted.iter().any(|one| one.is_same(state)));
            let names: Vec<_> = again.map(Attachment::name).collect();
            if !names.is_empty() {
                found.push(Earlier { dir: other.path(), names });
            }
        }
        Ok(found)
    }

    /// Where the container is attached in from.
    pub(crate) fn owner_scope(&self) -> &Scope {
        &self.owner
    }
}

/// The container's places on what was asked for, each once, by the name it was asked for by or that it matched with:
/// all of them, where nothing was.
fn places<'a>(
    running: &'a ContainerInfo,
    names: &[String],
) -> Vec<(String, Result<&'a Endpoint, DockerError>)> {
    if names.is_empty() {
        return running.endpoints.iter().map(|endpoint| (endpoint.network.clone(), Ok(endpoint))).collect();
    }
    let mut found: Vec<(String, Result<&Endpoint, DockerError>)> = Vec::new();
    for name in names {
        match running.endpoints_on(name) {
            Ok(endpoints) => {
                for endpoint in endpoints {
                    let is_same = |other: &&Endpoint| other.network_id == endpoint.network_id;
                    if !found.iter().any(|(_, other)| other.as_ref().is_ok_and(is_same)) {
                        found.push((endpoint.network.clone(), Ok(endpoint)));
                    }
                }
            }
            Err(error) => found.push((name.clone(), Err(error))),
        }
    }
    found
}

impl fmt::Display for ContainerRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.running.name, self.running.pid)
    }
}
