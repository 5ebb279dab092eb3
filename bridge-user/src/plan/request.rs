//! What was asked for on the command line, parsed. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    UsageError,
    model::{
        attachment::Keeper,
        datapath::{Requested, steerable},
        escape::quoted,
        event_level::EventLevel,
        identity::Identity,
        spec::ServiceSpec,
    },
    relay::RelayOptions,
};

/// What to attach, parsed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Services.
    pub specs: Vec<ServiceSpec>,
    /// The container to attach inside of, by name or id.
    pub container: Option<String>,
    /// Docker networks; with no bridges either, the network `bridge`. Inside a container: those it is on, or all of
    /// them.
    pub networks: Vec<String>,
    /// Bridges by interface name.
    pub bridges: Vec<String>,
    /// Further addresses of the host to serve.
    pub gateways: Vec<IpAddr>,
    /// Datapath asked for.
    pub datapath: Requested,
    /// Whom services see of steered connections.
    pub identity: Identity,
    /// Allowed sources; empty: the bridge's own subnets.
    pub allow: Vec<AllowedSource>,
    /// Level of the event channel; `None` keeps what is there.
    pub event_level: Option<EventLevel>,
    /// How relays work.
    pub relay: RelayOptions,
    /// Use the sockmap relay although this kernel is known for bugs in what it uses.
    pub force: bool,
    /// The process stays, so it can relay; or follow the container.
    pub foreground: bool,
    /// Who keeps what comes of it. The daemon asks again whenever something changes, so what its configuration asks for
    /// waits for what is not there yet.
    pub keeper: Keeper,
    /// The engine, in the form of DOCKER_HOST; `None`: the one that DOCKER_HOST names, else the local one.
    pub engine: Option<String>,
}

impl Request {
    /// Whether steering is among the possible datapaths.
    pub(crate) fn may_steer(&self) -> bool {
        let asked = matches!(self.datapath, Requested::Auto | Requested::Steer);
        asked && self.specs.iter().any(|spec| spec.target.tcp().is_some())
    }

    /// Refuses what no host could do.
    ///
    /// # Errors
    /// Says what contradicts what, and what to do instead.
    pub(crate) fn refuse_contradictions(&self) -> Result<(), UsageError> {
        let named = self.allow.iter().find_map(AllowedSource::container);
        if let Some(name) = named.filter(|_| !self.bridges.is_empty()) {
            return Err(UsageError(format!(
                "--allow {name} does not go with --bridge: a container's address is known per Docker network, and \
                 --bridge names none: use --network, or give the container's address"
            )));
        }
        if self.datapath != Requested::Steer {
            return Ok(());
        }
        let proxy_protocol = self.relay.proxy_protocol.is_some();
        let mut targets = self.specs.iter().map(|spec| &spec.target);
        targets.try_for_each(|target| steerable(target, proxy_protocol)).map_err(UsageError)
    }
}

/// Refuses several values in one, as `--network a,b`.
///
/// # Errors
/// Says what to write.
pub(crate) fn one_value_each(flag: &str, values: &[String]) -> Result<(), UsageError> {
    let Some(several) = values.iter().find(|value| value.contains(',')) else { return Ok(()) };
    let each = several.split(',').map(str::trim).filter(|value| !value.is_empty());
    let flags: Vec<_> = each.map(|value| format!("{flag} {}", quoted(value))).collect();
    Err(UsageError(format!("invalid {flag} `{several}`: expected one value each: use `{}`", flags.join(" "))))
}

/// Whether firewall rules are managed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Firewall {
    /// As this version does by itself, which is not at all.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// An allowed source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AllowedSource {
    /// An address or a subnet.
    Net(IpNet),
    /// A container, by name or id.
    Container(String),
}

impl AllowedSource {
    /// The network, if it is one.
    pub fn net(&self) -> Option<&IpNet> {
        match self {
            Self::Net(net) => Some(net),
            Self::Container(_) => None,
        }
    }

    /// As it is shown: the network without the bits of a host in it, or the container's name.
    pub fn as_typed(&self) -> String {
        match self {
            Self::Net(net) => net.trunc().to_string(),
            Self::Container(name) => name.clone(),
        }
    }

    /// The container, if it is one.
    pub fn container(&self) -> Option<&str> {
        match self {
            Self::Net(_) => None,
            Self::Container(name) => Some(name),
        }
    }
}

impl std::str::FromStr for AllowedSource {
    /// What was expected.
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
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
            return Err("an address, a subnet such as 172.17.0.0/16, or a container name");
        }
        Ok(Self::Container(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_values_in_one_are_told_apart() {
        let check = |values: &[&str]| {
            let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
            one_value_each("--network", &values).map_err(|error| error.to_string())
        };
        assert_eq!(check(&["a", "b"]), Ok(()));
        let error = check(&["a", "b, c*"]).unwrap_err();
        assert_eq!(
            error,
            "invalid --network `b, c*`: expected one value each: use `--network b --network 'c*'`"
        );
    }

    #[test]
    fn sources_are_addresses_subnets_or_containers() {
        let parse = |text: &str| text.parse::<AllowedSource>();
        assert_eq!(parse("172.17.0.0/16").unwrap(), AllowedSource::Net("172.17.0.0/16".parse().unwrap()));
        assert_eq!(parse("172.17.0.9").unwrap(), AllowedSource::Net("172.17.0.9/32".parse().unwrap()));
        assert_eq!(parse("fd00::7").unwrap(), AllowedSource::Net("fd00::7/128".parse().unwrap()));
        assert_eq!(parse("web-1").unwrap(), AllowedSource::Container("web-1".into()));
        for bad in ["", "172.17.0.0/33", "172.17.0.300", "a/b", "web 1"] {
            assert!(parse(bad).unwrap_err().contains("a subnet such as"), "{bad}");
        }
    }
}
