//! What a SPEC on the command line means: which service, on which gateway port, backed by which target.
//!
//! Invariants: pure; parsing never panics whatever the input; a [`ServiceSpec`] that was parsed has a target
//! in 127.0.0.0/8, `::1` or an absolute Unix path that fits a socket address, and printing it gives a SPEC
//! that parses to the same value.

mod error;
mod meant;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use self::error::SpecError;
use super::{
    presets,
    target::{Port, Target},
};

/// The service name of a SPEC that is only a port.
pub const UNNAMED_SERVICE: &str = "tcp";

/// What people call 127.0.0.1.
const LOCALHOST: &str = "localhost";

/// The longest service name, in characters.
pub const MAX_NAME_LEN: usize = 32;

/// The longest Unix socket path, in bytes: `sun_path` of unix(7) holds 108 with its final NUL.
pub const MAX_UNIX_PATH_LEN: usize = 107;

/// One thing to attach, as the command line or the config names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ServiceSpec {
    /// The name it is known by: the preset's, the one given, or [`UNNAMED_SERVICE`].
    pub service: String,
    /// The port containers use on the gateway.
    pub port: Port,
    /// Where the service itself listens on the host.
    pub target: Target,
}

/// The full form, `NAME=PORT:TARGET`, which parses to the same value whatever form was typed.
impl fmt::Display for ServiceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}:{}", self.service, self.port, self.target)
    }
}

impl From<ServiceSpec> for String {
    fn from(spec: ServiceSpec) -> Self {
        spec.to_string()
    }
}

impl TryFrom<String> for ServiceSpec {
    type Error = SpecError;

    fn try_from(text: String) -> Result<Self, SpecError> {
        text.parse()
    }
}

impl FromStr for ServiceSpec {
    type Err = SpecError;

    fn from_str(spec: &str) -> Result<Self, SpecError> {
        parse(spec).map_err(|error| match meant::meant(spec) {
            Some(meant) => SpecError::Meant { error: Box::new(error), meant },
            None => error,
        })
    }
}

/// Parses a SPEC; a refusal does not say yet what may have been meant.
fn parse(spec: &str) -> Result<ServiceSpec, SpecError> {
    if spec.is_empty() {
        return Err(SpecError::Empty);
    }
    let (name, rest) = split_name(spec);
    if name.is_none() && looks_like_a_word(spec) {
        return from_preset(spec);
    }
    let name = name.map(|name| check_name(spec, name)).transpose()?;
    let (scheme, place) = split_scheme(rest);
    let scheme = presets::find(scheme).map(|preset| preset.name);
    let (port, target) = match split_place(place) {
        Some((host, port)) => {
            let address = check_loopback(spec, parse_host(host).ok_or_else(|| not_an_address(spec, host))?)?;
            let port = parse_port(spec, "PORT", port)?;
            (port, Target::Tcp(SocketAddr::from((address, port.get()))))
        }
        None => parse_ports(spec, rest)?,
    };
    let service = name.or(scheme).unwrap_or(UNNAMED_SERVICE);
    Ok(ServiceSpec { service: service.to_owned(), port, target })
}

/// `PORT`, or `PORT:TARGET`.
fn parse_ports(spec: &str, text: &str) -> Result<(Port, Target), SpecError> {
    match text.split_once(':') {
        Some((port, target)) => {
            let port = parse_port(spec, "PORT", port)?;
            Ok((port, parse_target(spec, target)?))
        }
        None => parse_port(spec, "PORT", text).map(|port| (port, Target::loopback(port))),
    }
}

/// The scheme of a URL, if it is one, and the rest.
fn split_scheme(text: &str) -> (&str, &str) {
    match text.split_once("://") {
        Some((scheme, rest)) => (scheme, rest.strip_suffix('/').unwrap_or(rest)),
        None => ("", text),
    }
}

/// Splits `HOST:PORT`, which is how people name a listener. IPv6 without brackets is told from ports by nothing.
fn split_place(text: &str) -> Option<(&str, &str)> {
    let (host, port) = text.rsplit_once(':')?;
    let is_host = host == LOCALHOST || host.starts_with('[') || host.parse::<Ipv4Addr>().is_ok();
    is_host.then_some((host, port))
}

/// Splits `NAME=REST`. A `=` after the first `:` belongs to a Unix path.
fn split_name(spec: &str) -> (Option<&str>, &str) {
    match spec.split_once('=') {
        Some((name, rest)) if !name.contains(':') => (Some(name), rest),
        _ => (None, spec),
    }
}

fn looks_like_a_word(spec: &str) -> bool {
    !spec.contains(':') && !spec.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '+')
}

fn from_preset(spec: &str) -> Result<ServiceSpec, SpecError> {
    if let Some(preset) = presets::find(spec) {
        return Ok(ServiceSpec {
            service: preset.name.to_owned(),
            port: preset.port,
            target: Target::loopback(preset.port),
        });
    }
    let hint = match spec {
        LOCALHOST => " because that is a host (write localhost:PORT)".to_owned(),
        _ if spec.eq_ignore_ascii_case("mcp") => {
            " because MCP servers have no fixed port (write mcp=PORT)".to_owned()
        }
        _ => {
            presets::nearest(spec).map(|near| format!(" (did you mean `{}`?)", near.name)).unwrap_or_default()
        }
    };
    Err(SpecError::UnknownPreset { spec: spec.to_owned(), hint })
}

fn check_name<'a>(spec: &str, name: &'a str) -> Result<&'a str, SpecError> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c);
    let problem = if name.is_empty() {
        "is empty"
    } else if name.chars().count() > MAX_NAME_LEN {
        "is too long"
    } else if name.chars().any(|c| c.is_ascii_uppercase()) {
        "has upper-case letters"
    } else if !name.chars().all(allowed) {
        "has a character that is not allowed"
    } else if name.starts_with(['.', '-', '_']) {
        "starts with punctuation"
    } else {
        return Ok(name);
    };
    Err(SpecError::Name { spec: spec.to_owned(), name: name.to_owned(), problem })
}

fn parse_port(spec: &str, role: &'static str, text: &str) -> Result<Port, SpecError> {
    let (spec, typed) = (|| spec.to_owned(), || text.to_owned());
    let digits = match text.split_once('/') {
        Some((_, "udp")) => return Err(SpecError::Udp { spec: spec(), role, text: typed() }),
        Some((digits, "tcp")) if role == "PORT" => digits,
        _ => text,
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(SpecError::PortNotNumber { spec: spec(), role, text: typed() });
    }
    // Only digits are left, so parsing can fail in one way: the number does not fit.
    let too_large = |_| SpecError::PortTooLarge { spec: spec(), role, text: typed() };
    let number = digits.parse::<u16>().map_err(too_large)?;
    Port::new(number).ok_or_else(|| SpecError::PortZero { spec: spec(), role })
}

fn parse_target(spec: &str, text: &str) -> Result<Target, SpecError> {
    if text.starts_with("unix:") || text.starts_with('/') {
        return parse_unix(spec, text.trim_start_matches("unix:"));
    }
    let Some((address, target_port)) = text.rsplit_once(':') else {
        return match parse_host(text) {
            Some(address) => Err(SpecError::MissingTargetPort { spec: spec.to_owned(), address }),
            None => parse_port(spec, "TARGET_PORT", text).map(Target::loopback),
        };
    };
    match parse_host(address) {
        Some(address) => {
            let address = check_loopback(spec, address)?;
            let target_port = parse_port(spec, "TARGET_PORT", target_port)?;
            Ok(Target::Tcp(SocketAddr::from((address, target_port.get()))))
        }
        // `8080:::1` is an address whose last group looks like a port.
        None => match parse_host(text) {
            Some(address) => Err(SpecError::MissingTargetPort { spec: spec.to_owned(), address }),
            None => Err(not_an_address(spec, address)),
        },
    }
}

/// `localhost`, or an IP address, IPv6 with or without brackets.
fn parse_host(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None if text == LOCALHOST => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        None => text.parse().ok(),
    }
}

fn not_an_address(spec: &str, text: &str) -> SpecError {
    SpecError::NotAnAddress { spec: spec.to_owned(), text: text.to_owned() }
}

fn check_loopback(spec: &str, address: IpAddr) -> Result<IpAddr, SpecError> {
    let spec = || spec.to_owned();
    if address.is_loopback() {
        return Ok(address);
    }
    if address.is_unspecified() {
        return Err(SpecError::Unspecified { spec: spec(), address });
    }
    let mapped_loopback = matches!(address, IpAddr::V6(v6) if v6.to_canonical().is_loopback());
    let hint = if mapped_loopback {
        "write the IPv4 address itself, 127.0.0.1"
    } else {
        "a service on another address is reached at that address"
    };
    Err(SpecError::NotLoopback { spec: spec(), address, hint })
}

fn parse_unix(spec: &str, path: &str) -> Result<Target, SpecError> {
    let problem = if path.is_empty() {
        "is empty"
    } else if !path.starts_with('/') {
        "is not absolute"
    } else if path.len() > MAX_UNIX_PATH_LEN {
        "is too long for a Unix socket address"
    } else if path.contains('\0') {
        "has a NUL byte"
    } else if path.ends_with('/') {
        "names a directory"
    } else {
        return Ok(Target::Unix(PathBuf::from(path)));
    };
    Err(SpecError::UnixPath { spec: spec.to_owned(), path: path.to_owned(), problem })
}

#[cfg(test)]
mod tests;
