//! What the command line names, as a namespace has it: networks, bridges and allowed sources.

use std::net::SocketAddr;

use anyhow::{Context as _, bail, ensure};

use super::{
    gateways::require_local,
    meant,
    resolve::{self, Resolved},
};
use crate::{
    engine::{
        container::ContainerInfo,
        docker::{Docker, DockerError},
    },
    model::{
        attachment::{Attachment, Keeper},
        codes,
        finding::Finding,
        source::{NamedContainer, Source},
    },
    net::{links::bridge_by_name, namespace::Namespace},
    plan::{
        Network,
        request::{AllowedSource, Request},
    },
};

/// A client of Docker for code that is not async.
pub(crate) struct BlockingDocker {
    /// Where its requests run.
    pub(crate) runtime: tokio::runtime::Runtime,
    /// The client.
    pub(crate) docker: Docker,
}

impl BlockingDocker {
    /// Of the engine named in the form of DOCKER_HOST, or as [`Docker::connect`].
    ///
    /// # Errors
    /// As there.
    pub(crate) fn connect(engine: Option<&str>) -> anyhow::Result<Self> {
        let runtime = runtime()?;
        let docker = runtime.block_on(async { engine.map_or_else(Docker::connect, Docker::connect_to) })?;
        Ok(Self { runtime, docker })
    }

    /// Waits for the answer to a request.
    pub(crate) fn ask<T>(
        &self,
        request: impl Future<Output = Result<T, DockerError>>,
    ) -> Result<T, DockerError> {
        self.runtime.block_on(request)
    }

    /// The allowed sources of a request, on the network with this id and name. A container that is not there is left
    /// out where the daemon asks, which asks again when it starts.
    ///
    /// # Errors
    /// When a container is not there, or of those that the daemon waits for, none.
    pub(crate) fn sources(
        &self,
        request: &Request,
        network: (&str, &str),
        gathered: &mut Gathered,
    ) -> anyhow::Result<Vec<Source>> {
        let mut sources = Vec::new();
        let mut missing = Vec::new();
        for source in &request.allow {
            let name = match source {
                AllowedSource::Net(net) => {
                    sources.push(Source::Net(*net));
                    continue;
                }
                AllowedSource::Container(name) => name,
            };
            match self.container(name, network, &mut gathered.held) {
                Ok(found) => sources.extend(found),
                Err(error) if request.keeper == Keeper::Config => missing.push((name, error)),
                Err(error) => return Err(error),
            }
        }
        if sources.is_empty()
            && let Some((_, error)) = missing.pop()
        {
            return Err(error);
        }
        gathered.left_out.extend(missing.iter().map(|(name, error)| waits_for(name, network.1, error)));
        Ok(sources)
    }

    /// The present run of a container, once for each of its addresses on the network.
    fn container(
        &self,
        name: &str,
        network: (&str, &str),
        held: &mut Vec<Namespace>,
    ) -> anyhow::Result<Vec<Source>> {
        let addresses = self.ask(self.docker.container_addresses(name, network))?;
        let (running, namespace) = self.run_of(name).with_context(|| format!("failed to allow {name}"))?;
        let source = |address| {
            Source::Container(NamedContainer {
                name: running.name.clone(),
                address,
                inode: namespace.inode(),
                cookie: namespace.cookie(),
            })
        };
        let sources = addresses.into_iter().map(source).collect();
        held.push(namespace);
        Ok(sources)
    }

    /// The present run of a container and its network namespace. Docker is asked again once that is open: a process id
    /// may have been given to another process in between.
    pub(crate) fn run_of(&self, name: &str) -> anyhow::Result<(ContainerInfo, Namespace)> {
        let running = self.ask(self.docker.running(name))?;
        let namespace = Namespace::of_process(running.pid)
            .with_context(|| format!("failed to find the network namespace of container {}", running.name))?;
        ensure!(
            self.ask(self.docker.running(&running.id))? == running,
            "container {} was restarted meanwhile: try again",
            running.name
        );
        Ok((running, namespace))
    }
}

/// What is gathered beside the networks.
#[derive(Default)]
pub(crate) struct Gathered {
    /// The namespaces of allowed containers, which keeps anybody else from getting their inodes.
    pub(crate) held: Vec<Namespace>,
    /// What was left out of what was asked for.
    pub(crate) left_out: Vec<Finding>,
}

fn waits_for(container: &str, network: &str, error: &anyhow::Error) -> Finding {
    let cause = format!("container {container} may connect, and is not there: {error:#}");
    let cure = "start it: it is let in then";
    codes::ALLOW_WAITS.finding(format!("network {network}"), cause, cure)
}

/// What async code of a process runs in, on the thread that waits for it.
///
/// # Errors
/// When a resource is short.
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().context("failed to start the async runtime")
}

/// A network that was asked for.
#[derive(Clone)]
pub(crate) struct Asked {
    /// Its name, as far as that is known.
    pub(crate) name: String,
    /// What it is; or the error, whole.
    pub(crate) found: Result<Network, String>,
}

impl Asked {
    /// By this name, with what came of looking for it.
    pub(crate) fn new(name: &str, found: anyhow::Result<Network>) -> Self {
        let found = found.map_err(|error| format!("{error:#}"));
        let name = found.as_ref().map_or(name, |network| &network.name).to_owned();
        Self { name, found }
    }
}

/// Docker, connected only when the request needs it.
pub(crate) struct NetworkResolver {
    /// Why it is not, where that failed.
    docker: Option<Result<BlockingDocker, String>>,
    engine: Option<String>,
}

impl NetworkResolver {
    pub(crate) fn new(request: &Request) -> Self {
        let by_docker = request.bridges.is_empty() || !request.networks.is_empty();
        let connect =
            || BlockingDocker::connect(request.engine.as_deref()).map_err(|error| format!("{error:#}"));
        Self { docker: by_docker.then(connect), engine: request.engine.clone() }
    }

    /// Every network of the request; what is wrong with one says nothing of the others.
    ///
    /// # Errors
    /// When something is wrong with the request whatever the network.
    pub(crate) fn networks(&self, request: &Request, namespace: &Namespace) -> anyhow::Result<Resolved> {
        require_local(&request.gateways, namespace)?;
        let mut resolved = match &self.docker {
            Some(docker) => resolve::networks(docker, request, namespace),
            None => Resolved::default(),
        };
        // Containers do not go with bridges.
        let allow: Vec<Source> =
            request.allow.iter().filter_map(AllowedSource::net).map(|net| Source::Net(*net)).collect();
        for name in &request.bridges {
            let network = |bridge| Network {
                container: None,
                name: name.clone(),
                bridge,
                allow: allow.clone(),
                host_gateways: Vec::new(),
                gateways: request.gateways.clone(),
            };
            let found =
                bridge_by_name(namespace, name).map_err(|error| meant::by_bridge(error, request, name));
            resolved.networks.push(Asked::new(name, found.map(network)));
        }
        Ok(resolved)
    }

    /// The container that publishes this address and port, as far as an engine can be asked: it names what is found
    /// already.
    pub(crate) fn publisher(&self, target: SocketAddr) -> Option<String> {
        let connected;
        let docker = match &self.docker {
            Some(Ok(docker)) => docker,
            _ => {
                connected = BlockingDocker::connect(self.engine.as_deref()).ok()?;
                &connected
            }
        };
        let published = docker.ask(docker.docker.published(target.port())).ok()?;
        published.into_iter().find(|one| one.covers(target.ip())).map(|one| one.container)
    }

    pub(crate) fn refuse_published(&self, state: &Attachment) -> anyhow::Result<()> {
        let Some(Ok(docker)) = &self.docker else { return Ok(()) };
        for published in docker.ask(docker.docker.published(state.port.get()))? {
            if state.gateways.iter().any(|&gateway| published.covers(gateway)) {
                bail!(
                    "port {} is already published by container {}: choose another port (NAME=PORT:TARGET_PORT) or \
                     unpublish it",
                    state.port,
                    published.container
                );
            }
        }
        Ok(())
    }
}
