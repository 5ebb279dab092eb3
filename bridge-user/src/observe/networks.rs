//! What the command line names, as a namespace has it: networks, bridges and allowed sources.

use anyhow::{Context as _, bail};
use ipnet::IpNet;

use crate::{
    UsageError,
    engine::docker::{Docker, DockerError},
    model::attachment::Attachment,
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

    /// The addresses that `allow` stands for, on the network with this id and name.
    pub(crate) fn sources(
        &self,
        allow: &[AllowedSource],
        network: (&str, &str),
    ) -> anyhow::Result<Vec<IpNet>> {
        let mut nets = Vec::new();
        for source in allow {
            match source {
                AllowedSource::Net(net) => nets.push(*net),
                AllowedSource::Container(name) => {
                    let addrs = self.ask(self.docker.container_addresses(name, network))?;
                    nets.extend(addrs.into_iter().map(IpNet::from));
                }
            }
        }
        Ok(nets)
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

    pub(crate) fn networks(&self, request: &Request, namespace: &Namespace) -> anyhow::Result<Vec<Network>> {
        let mut all = Vec::new();
        let default = ["bridge".to_owned()];
        let names: &[String] = match (&request.networks[..], &request.bridges[..]) {
            ([], []) => &default,
            (names, _) => names,
        };
        for name in names {
            all.push(self.docker_network(name, &request.allow, namespace)?);
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
    ) -> anyhow::Result<Network> {
        let docker = self.docker.as_ref().context("failed to resolve a network: Docker is not connected")?;
        let network = docker.ask(docker.docker.network(name))?;
        let bridge = bridge_by_name(namespace, &network.bridge).with_context(|| {
            format!("failed to find the bridge of Docker network {name} in this network namespace")
        })?;
        let allow = docker.sources(allow, (&network.id, &network.name))?;
        Ok(Network { container: None, name: network.name, bridge, allow })
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
fn address(source: &AllowedSource) -> Result<IpNet, UsageError> {
    match source {
        AllowedSource::Net(net) => Ok(*net),
        AllowedSource::Container(name) => Err(UsageError(format!(
            "--allow {name} does not go with --bridge: a container's address is known per Docker network, and --bridge \
             names none: use --network, or give the container's address"
        ))),
    }
}
