//! Everything that can go wrong when asking Docker, in words that name the object and the next step.
//!
//! Invariants: each message is complete, cause included, on one line; there is no further `source()`.

use std::error::Error;

use bollard::errors::Error as ApiError;
use thiserror::Error;

use crate::model::escape::quoted;

/// Why Docker gave no usable answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DockerError {
    /// The engine did not answer at all.
    #[error("failed to reach Docker at {host}: {cause}: {next}")]
    Unreachable {
        /// The socket or URL tried.
        host: String,
        /// What the attempt ended with.
        cause: String,
        /// What to do about it.
        next: &'static str,
    },
    /// The engine answered a request with an error, or too late.
    #[error(
        "failed to {action}: {cause}: look at the engine's log (journalctl -u docker), or use --bridge IFACE which \
         needs no Docker"
    )]
    Api {
        /// What was asked, as a verb and its object.
        action: &'static str,
        /// The engine's words.
        cause: String,
    },
    /// No network has this name or id.
    #[error(
        "failed to find Docker network {name}: no network has that name or id: {}, or use --bridge if it is an \
         interface",
        one_of("network", .known)
    )]
    UnknownNetwork {
        /// The name asked for.
        name: String,
        /// The names of all networks of driver `bridge`, sorted.
        known: Vec<String>,
    },
    /// No bridge network matches a pattern.
    #[error(
        "failed to find Docker networks: no network matches `{pattern}`: {}, or use --bridge if it is an interface",
        one_of("network", .known)
    )]
    NoMatch {
        /// The pattern.
        pattern: String,
        /// The names of all networks of driver `bridge`, sorted.
        known: Vec<String>,
    },
    /// A pattern that is none.
    #[error(
        "failed to understand --network `{pattern}`: {cause}: use *, ? and [...] in it, or a network's name"
    )]
    NoPattern {
        /// What was typed.
        pattern: String,
        /// What is wrong with it.
        cause: &'static str,
    },
    /// The network that a swarm's containers reach their host over is not there yet.
    #[error(
        "failed to find Docker network docker_gwbridge: it does not exist yet, Docker makes it when this host joins a \
         swarm: run docker swarm init or join, then attach again; or have it in the configuration of bridge-user run, \
         which waits for it"
    )]
    NoSwarm,
    /// The engine's bridges are not on this host, or in a namespace that only it has.
    #[error("failed to attach to a network of the engine at {host}: it is {what}: {instead}")]
    Elsewhere {
        /// The socket or URL.
        host: String,
        /// What the engine is.
        what: &'static str,
        /// The setting that helps.
        instead: &'static str,
    },
    /// Several networks fit the name or the id prefix.
    #[error(
        "failed to find Docker network {name}: it fits {} networks: name one by id ({})",
        .matches.len(), .matches.join(", ")
    )]
    AmbiguousNetwork {
        /// The name asked for.
        name: String,
        /// The short ids that fit.
        matches: Vec<String>,
    },
    /// The network is not a Linux bridge on this host.
    #[error("failed to use Docker network {name}: its driver is {driver}, expected bridge: {}", instead_of(.driver))]
    UnsupportedDriver {
        /// The network.
        name: String,
        /// Its driver.
        driver: String,
    },
    /// No container has this name or id, or an id prefix fits several.
    #[error(
        "failed to find container {name}: {} has that name or id: {}",
        match .matches { 0 => "none".to_owned(), n => format!("more than one ({n})") },
        one_of("running container", .known)
    )]
    UnknownContainer {
        /// The name asked for.
        name: String,
        /// The names of all running containers, sorted.
        known: Vec<String>,
        /// How many containers the id prefix fits: 0, or more than 1.
        matches: usize,
    },
    /// The container is not on that network.
    #[error(
        "failed to find container {container} on network {network}: {}",
        where_it_is(.container, .network, .networks, .mode.as_deref())
    )]
    NotOnNetwork {
        /// The container.
        container: String,
        /// The network asked for.
        network: String,
        /// The networks it is on, sorted.
        networks: Vec<String>,
        /// Its network mode, which explains an empty list (`none`, `host`, `container:ID`).
        mode: Option<String>,
    },
    /// The container has no network namespace of its own that could be attached in now.
    #[error("failed to attach inside container {container}: {reason}")]
    NotToEnter {
        /// The container.
        container: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The container has no address there, so it is not running.
    #[error(
        "failed to find an address of container {container} on network {network}: it has none, containers have \
         addresses while they run: start it (docker start {container}) or give its address instead"
    )]
    NoAddress {
        /// The container.
        container: String,
        /// The network.
        network: String,
    },
}

impl DockerError {
    /// The engine at `host` could not be talked to because of `error`.
    pub(super) fn unreachable(host: &str, error: &ApiError) -> DockerError {
        let next = match (error, io_kind(error)) {
            (ApiError::UnsupportedURISchemeError { .. }, _) => {
                "set DOCKER_HOST to unix:///PATH or tcp://HOST:PORT or unset it, or use --bridge IFACE which needs no \
                 Docker"
            }
            (_, Some(std::io::ErrorKind::PermissionDenied)) => {
                "run as root or as a member of the group docker, or use --bridge IFACE which needs no Docker"
            }
            _ => "start Docker, or use --bridge IFACE which needs no Docker",
        };
        DockerError::Unreachable { host: host.to_owned(), cause: cause_of(error), next }
    }

    /// The engine refused or failed `action`.
    pub(super) fn api(action: &'static str, error: &ApiError) -> DockerError {
        DockerError::Api { action, cause: cause_of(error) }
    }
}

/// The innermost cause, which is the one that says something ("Connection refused"), or the error's own words.
fn cause_of(error: &ApiError) -> String {
    match error {
        ApiError::DockerResponseServerError { status_code, message } => {
            format!("the engine answered {status_code}, {message}")
        }
        ApiError::SocketNotFoundError(_) => "the socket does not exist".to_owned(),
        ApiError::RequestTimeoutError => "no answer in time".to_owned(),
        ApiError::UnsupportedURISchemeError { .. } => "this kind of address is not supported".to_owned(),
        other => chain(other).last().map_or_else(|| other.to_string(), ToString::to_string),
    }
}

fn io_kind(error: &ApiError) -> Option<std::io::ErrorKind> {
    if let ApiError::IOError { err } = error {
        return Some(err.kind()); // a transparent variant hides its own error from the chain
    }
    chain(error).find_map(|cause| cause.downcast_ref::<std::io::Error>()).map(std::io::Error::kind)
}

/// The error and its causes, outermost first.
fn chain(error: &ApiError) -> impl Iterator<Item = &(dyn Error + 'static)> {
    let first: &(dyn Error + 'static) = error;
    std::iter::successors(Some(first), |cause| (**cause).source())
}

fn one_of(what: &str, known: &[String]) -> String {
    if known.is_empty() {
        format!("there is no {what}")
    } else {
        format!("choose a {what} ({})", known.join(", "))
    }
}

/// Why a driver has no bridge to attach to, and what serves its containers instead.
fn instead_of(driver: &str) -> &'static str {
    match driver {
        "host" => {
            "containers on it share the host's network and reach 127.0.0.1 services already, nothing to attach"
        }
        "null" | "none" => "containers on it have no network at all, connect them to a bridge network",
        "macvlan" | "ipvlan" => {
            "the kernel keeps its containers apart from the host, connect them to a bridge network as well"
        }
        "overlay" => "its containers reach the host through docker_gwbridge, use --network docker_gwbridge",
        _ => {
            "if it makes a Linux bridge, name that interface with --bridge IFACE, else connect the containers to a \
             bridge network"
        }
    }
}

/// Where a container is instead of on `network`, and what to do: Docker cannot connect one that borrows
/// another's network namespace.
fn where_it_is(container: &str, network: &str, networks: &[String], mode: Option<&str>) -> String {
    let mode = mode.unwrap_or("none");
    if let Some(other) = mode.strip_prefix("container:") {
        let other: String = other.chars().take(12).collect();
        return format!("it shares the network of container {other}: name that one instead");
    }
    if mode == "host" {
        return "it shares the host's network: it reaches 127.0.0.1 services already".to_owned();
    }
    let connect = format!("docker network connect {network} {container}");
    match networks.first() {
        None => format!("it is on no network (its network mode is {mode}): connect it ({connect})"),
        Some(first) => format!(
            "it is on {}: use `--network {}`, or connect it ({connect})",
            networks.join(", "),
            quoted(first)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreachable_says_why_and_what_next() {
        let missing = ApiError::SocketNotFoundError("/run/x.sock".into());
        assert_eq!(
            DockerError::unreachable("unix:///run/x.sock", &missing).to_string(),
            "failed to reach Docker at unix:///run/x.sock: the socket does not exist: start Docker, or use --bridge \
             IFACE which needs no Docker"
        );
        let denied = ApiError::IOError { err: std::io::ErrorKind::PermissionDenied.into() };
        assert!(DockerError::unreachable("unix:///x", &denied).to_string().contains("group docker"));
    }

    #[test]
    fn every_refused_driver_has_its_own_way_out() {
        for (driver, expected) in [
            ("host", "nothing to attach"),
            ("null", "no network at all"),
            ("macvlan", "apart from the host"),
            ("overlay", "docker_gwbridge"),
            ("weave", "--bridge IFACE"),
        ] {
            let error =
                DockerError::UnsupportedDriver { name: "n".into(), driver: driver.into() }.to_string();
            assert!(error.contains(expected) && error.contains("expected bridge"), "{error}");
        }
    }

    #[test]
    fn where_a_container_is_instead() {
        let elsewhere = where_it_is("web", "app", &["a".into(), "b".into()], Some("a"));
        assert_eq!(
            elsewhere,
            "it is on a, b: use `--network a`, or connect it (docker network connect app web)"
        );
        let sharing = where_it_is("web", "app", &[], Some("container:5bba9967d5a102f8b5cd"));
        assert_eq!(sharing, "it shares the network of container 5bba9967d5a1: name that one instead");
        assert!(where_it_is("web", "app", &["host".into()], Some("host")).contains("already"));
        assert!(where_it_is("web", "app", &[], Some("none")).contains("network mode is none"));
    }
}
