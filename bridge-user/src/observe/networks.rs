//! What the command line names, as a namespace has it: networks, bridges and allowed sources.

use std::net::SocketAddr;

use anyhow::{Context as _, bail, ensure};

use crate::{
    UsageError,
    engine::{
        container::ContainerInfo,
        docker::{Docker, DockerError},
    },
    model::{
        attachment::Attachment,
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
    /// As [`Docker::connect`].
    pub(crate) fn connect() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("failed to start the async runtime")?;
        let docker = runtime.block_on(async { Docker::connect() })?;
        Ok(Self { runtime, docker })
    }

    /// Waits for the answer to a request.
    pub(crate) fn ask<T>(
        &self,
        request: impl Future<Output = Result<T, DockerError>>,
    ) -> Result<T, DockerError> {
        self.runtime.block_on(request)
    }

    /// The sources that `allow` stands for, on the network with this id and name. `held` gets the namespaces of
    /// containers, which keeps anybody else from getting their inodes.
    pub(crate) fn sources(
        &self,
        allow: &[AllowedSource],
        network: (&str, &str),
        held: &mut Vec<Namespace>,
    ) -> anyhow::Result<Vec<Source>> {
        let mut sources = Vec::new();
        for source in allow {
            match source {
                AllowedSource::Net(net) => sources.push(Source::Net(*net)),
                AllowedSource::Container(name) => sources.extend(self.container(name, network, held)?),
            }
        }
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

/// Docker, connected only when the request needs it.
pub(crate) struct NetworkResolver {
    docker: Option<BlockingDocker>,
}

impl NetworkResolver {
    pub(crate) fn new(request: &Request) -> anyhow::Result<Self> {
        let by_docker = request.bridges.is_empty() || !request.networks.is_empty();
        let docker = by_docker.then(BlockingDocker::connect).transpose()?;
        Ok(Self { docker })
    }

    pub(crate) fn networks(
        &self,
        request: &Request,
        namespace: &Namespace,
        held: &mut Vec<Namespace>,
    ) -> anyhow::Result<Vec<Network>> {
        let mut all = Vec::new();
        let default = ["bridge".to_owned()];
        let names: &[String] = match (&request.networks[..], &request.bridges[..]) {
            ([], []) => &default,
            (names, _) => names,
        };
        for name in names {
            all.push(self.docker_network(name, &request.allow, namespace, held)?);
        }
        for name in &request.bridges {
            let bridge = bridge_by_name(namespace, name)?;
            let allow = request.allow.iter().map(address).collect::<Result<_, _>>()?;
            all.push(Network { container: None, name: name.clone(), bridge, allow });
        }
        Ok(all)
    }

    fn docker_network(
        &self,
        name: &str,
        allow: &[AllowedSource],
        namespace: &Namespace,
        held: &mut Vec<Namespace>,
    ) -> anyhow::Result<Network> {
        let docker = self.docker.as_ref().context("failed to resolve a network: Docker is not connected")?;
        let network = docker.ask(docker.docker.network(name))?;
        let bridge = bridge_by_name(namespace, &network.bridge).with_context(|| {
            format!("failed to find the bridge of Docker network {name} in this network namespace")
        })?;
        let allow = docker.sources(allow, (&network.id, &network.name), held)?;
        Ok(Network { container: None, name: network.name, bridge, allow })
    }

    /// The container that publishes this address and port, as far as an engine can be asked: it names what is found
    /// already.
    pub(crate) fn publisher(&self, target: SocketAddr) -> Option<String> {
        let connected;
        let docker = match &self.docker {
            Some(docker) => docker,
            None => {
                connected = BlockingDocker::connect().ok()?;
                &connected
            }
        };
        let published = docker.ask(docker.docker.published(target.port())).ok()?;
        published.into_iter().find(|one| one.covers(target.ip())).map(|one| one.container)
    }

    pub(crate) fn refuse_published(&self, state: &Attachment) -> anyhow::Result<()> {
        let Some(docker) = &self.docker else { return Ok(()) };
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

/// A source on a bridge that is not Docker's.
fn address(source: &AllowedSource) -> Result<Source, UsageError> {
    match source {
        AllowedSource::Net(net) => Ok(Source::Net(*net)),
        AllowedSource::Container(name) => Err(UsageError(format!(
            "--allow {name} does not go with --bridge: a container's address is known per Docker network, and --bridge \
             names none: use --network, or give the container's address"
        ))),
    }
}
