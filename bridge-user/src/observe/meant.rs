//! What somebody meant who gave the name of something else: the flag to write instead. Asked only once a name was
//! refused, and as far as an engine answers.

use super::networks::BlockingDocker;
use crate::{
    engine::docker::DockerError,
    model::escape::quoted,
    net::{NetError, links::bridge_by_name, namespace::Namespace},
    plan::request::Request,
};

/// The error, with what to write if the name is a bridge's or a container's.
pub(super) fn by_network(
    error: DockerError,
    docker: &BlockingDocker,
    namespace: &Namespace,
    name: &str,
) -> anyhow::Error {
    if !matches!(error, DockerError::UnknownNetwork { .. }) {
        return error.into();
    }
    let on_bridge = docker.ask(docker.docker.network_on_bridge(name)).ok().flatten();
    let networks = || docker.ask(docker.docker.networks_of(name)).unwrap_or_default();
    let meant = if let Some(network) = on_bridge {
        format!("{name} is the bridge of network {network}: use `--network {}`", quoted(&network))
    } else if bridge_by_name(namespace, name).is_ok() {
        format!("{name} is a bridge: use `--bridge {}`", quoted(name))
    } else if let Some(network) = networks().first() {
        let (network, name) = (quoted(network), quoted(name));
        format!("{name} is a container on {network}: use `--network {network} --allow {name}`")
    } else {
        return error.into();
    };
    anyhow::anyhow!("failed to find Docker network {name}: {meant}")
}

/// The error, with what to write if the name is that of a Docker network.
pub(super) fn by_bridge(error: NetError, request: &Request, name: &str) -> anyhow::Error {
    let network = || {
        let docker = BlockingDocker::connect(request.engine.as_deref()).ok()?;
        docker.ask(docker.docker.network(name)).ok()
    };
    match &error {
        NetError::UnknownInterface { .. } => match network() {
            Some(network) => anyhow::anyhow!(
                "failed to find bridge {name}: it is a Docker network, not an interface: use `--network {}`",
                quoted(&network.name)
            ),
            None => error.into(),
        },
        _ => error.into(),
    }
}
