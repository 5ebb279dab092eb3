//! What the command line names, as this namespace has it: networks, bridges and allowed sources.

use std::net::IpAddr;

use anyhow::{Context as _, bail};
use ipnet::IpNet;

use super::Request;
use crate::{
    UsageError,
    attachment::AttachmentState,
    control::docker::{Docker, DockerError},
    net::links::bridge_by_name,
    plan::Network,
};

/// An allowed source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An address or a subnet.
    Net(IpNet),
    /// A container, by name or id.
    Container(String),
}

impl std::str::FromStr for Source {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        if let Ok(net) = text.parse::<IpNet>() {
            return Ok(Self::Net(net));
        }
        if let Ok(addr) = text.parse::<IpAddr>() {
            return Ok(Self::Net(addr.into()));
        }
        let name_like = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        if text.is_empty()
            || !text.chars().all(name_like)
            || text.chars().all(|c| c.is_ascii_digit() || c == '.')
        {
            return Err(UsageError(format!(
                "invalid --allow `{text}`: expected an address, a subnet such as 172.17.0.0/16, or a container name"
            )));
        }
        Ok(Self::Container(text.to_owned()))
    }
}

/// A client of Docker for code that is not async.
pub(super) struct BlockingDocker {
    /// Where its requests run.
    pub(super) runtime: tokio::runtime::Runtime,
    /// The client.
    pub(super) docker: Docker,
}

impl BlockingDocker {
    /// As [`Docker::connect`].
    pub(super) fn connect() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("failed to start the async runtime")?;
        let docker = runtime.block_on(async { Docker::connect() })?;
        Ok(Self { runtime, docker })
    }

    /// Waits for the answer to a request.
    pub(super) fn ask<T>(
        &self,
        request: impl Future<Output = Result<T, DockerError>>,
    ) -> Result<T, DockerError> {
        self.runtime.block_on(request)
    }

    /// The addresses that `allow` stands for, on the network with this id and name.
    pub(super) fn sources(&self, allow: &[Source], network: (&str, &str)) -> anyhow::Result<Vec<IpNet>> {
        let mut nets = Vec::new();
        for source in allow {
            match source {
                Source::Net(net) => nets.push(*net),
                Source::Container(name) => {
                    let addrs = self.ask(self.docker.container_addresses(name, network))?;
                    nets.extend(addrs.into_iter().map(IpNet::from));
                }
            }
        }
        Ok(nets)
    }
}

/// Docker, connected only when the request needs it.
pub(super) struct NetworkResolver {
    docker: Option<BlockingDocker>,
}

impl NetworkResolver {
    pub(super) fn new(request: &Request) -> anyhow::Result<Self> {
        let by_docker = request.bridges.is_empty() || !request.networks.is_empty();
        let docker = by_docker.then(BlockingDocker::connect).transpose()?;
        Ok(Self { docker })
    }

    pub(super) fn networks(&self, request: &Request) -> anyhow::Result<Vec<Network>> {
        let mut all = Vec::new();
        let default = ["bridge".to_owned()];
        let names: &[String] = match (&request.networks[..], &request.bridges[..]) {
            ([], []) => &default,
            (names, _) => names,
        };
        for name in names {
            all.push(self.docker_network(name, &request.allow)?);
        }
        for name in &request.bridges {
            let bridge = bridge_by_name(name)?;
            let allow = request.allow.iter().map(address).collect::<Result<_, _>>()?;
            all.push(Network { container: None, name: name.clone(), bridge, allow });
        }
        Ok(all)
    }

    fn docker_network(&self, name: &str, allow: &[Source]) -> anyhow::Result<Network> {
        let docker = self.docker.as_ref().context("failed to resolve a network: Docker is not connected")?;
        let network = docker.ask(docker.docker.network(name))?;
        let bridge = bridge_by_name(&network.bridge).with_context(|| {
            format!("failed to find the bridge of Docker network {name} in this network namespace")
        })?;
        let allow = docker.sources(allow, (&network.id, &network.name))?;
        Ok(Network { container: None, name: network.name, bridge, allow })
    }

    pub(super) fn refuse_published(&self, state: &AttachmentState) -> anyhow::Result<()> {
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
fn address(source: &Source) -> Result<IpNet, UsageError> {
    match source {
        Source::Net(net) => Ok(*net),
        Source::Container(name) => Err(UsageError(format!(
            "--allow {name} does not go with --bridge: a container's address is known per Docker network, and --bridge \
             names none: use --network, or give the container's address"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_addresses_subnets_or_containers() {
        let parse = |text: &str| text.parse::<Source>();
        assert_eq!(parse("172.17.0.0/16").unwrap(), Source::Net("172.17.0.0/16".parse().unwrap()));
        assert_eq!(parse("172.17.0.9").unwrap(), Source::Net("172.17.0.9/32".parse().unwrap()));
        assert_eq!(parse("fd00::7").unwrap(), Source::Net("fd00::7/128".parse().unwrap()));
        assert_eq!(parse("web-1").unwrap(), Source::Container("web-1".into()));
        for bad in ["", "172.17.0.0/33", "172.17.0.300", "a/b", "web 1"] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("`{bad}`")) && error.contains("expected"), "{error}");
        }
    }
}
