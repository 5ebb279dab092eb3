//! What a SPEC on the command line means: which service, on which gateway port, backed by which target.
//!
//! Invariants: pure; parsing never panics whatever the input; a [`ServiceSpec`] that was parsed has a target
//! in 127.0.0.0/8, `::1` or an absolute Unix path that fits a socket address, and printing it gives a SPEC
//! that parses to the same value.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use super::{
    presets,
    target::{Port, Target},
};

/// The service name of a SPEC that is only a port.
pub const UNNAMED_SERVICE: &str = "tcp";

/// The longest service name, in characters.
pub const MAX_NAME_LEN: usize = 32;

/// The longest Unix socket path, in bytes: `sun_path` of unix(7) holds 108 with its final NUL.
pub const MAX_UNIX_PATH_LEN: usize = 107;

/// One thing to attach, as the command line or the config names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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

/// Why a SPEC was refused. Each message names the SPEC, what is wrong and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SpecError {
    /// Nothing was given.
    #[error("invalid SPEC ``: it is empty, expected a preset (for example redis) or [NAME=]PORT")]
    Empty,
    /// A word that is no preset.
    #[error(
        "invalid SPEC `{spec}`: no preset is called `{spec}`{hint}, expected [NAME=]PORT or one of {presets}",
        presets = presets::names()
    )]
    UnknownPreset {
        /// The SPEC as typed.
        spec: String,
        /// A suggestion, starting with a comma or parenthesis, or empty.
        hint: String,
    },
    /// The part before `=` cannot be a service name.
    #[error(
        "invalid SPEC `{spec}`: the name `{name}` {problem}, expected 1-32 characters of a-z 0-9 . _ - that start \
         with a letter or digit{hint}"
    )]
    Name {
        /// The SPEC as typed.
        spec: String,
        /// The part before `=`.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
        /// A suggestion, or empty.
        hint: String,
    },
    /// A port that is not a decimal number.
    #[error("invalid SPEC `{spec}`: {role} `{text}` is not a number, expected a port from 1 to 65535{hint}")]
    PortNotNumber {
        /// The SPEC as typed.
        spec: String,
        /// Which of the two ports it is.
        role: &'static str,
        /// The text found where the port belongs.
        text: String,
        /// A suggestion, or empty.
        hint: String,
    },
    /// Port 0, which names no port.
    #[error(
        "invalid SPEC `{spec}`: {role} is 0, which no client can connect to, expected a port from 1 to 65535"
    )]
    PortZero {
        /// The SPEC as typed.
        spec: String,
        /// Which of the two ports it is.
        role: &'static str,
    },
    /// A number above 65535.
    #[error("invalid SPEC `{spec}`: {role} {text} is too large, expected a port from 1 to 65535")]
    PortTooLarge {
        /// The SPEC as typed.
        spec: String,
        /// Which of the two ports it is.
        role: &'static str,
        /// The number found.
        text: String,
    },
    /// An address without the port that must follow it.
    #[error(
        "invalid SPEC `{spec}`: the target `{address}` has no port, expected ADDR:TARGET_PORT: write `{spec}:{port}`"
    )]
    MissingTargetPort {
        /// The SPEC as typed.
        spec: String,
        /// The address found.
        address: IpAddr,
        /// The gateway port, the likely target port.
        port: Port,
    },
    /// Something that is no IP address where ADDR belongs.
    #[error(
        "invalid SPEC `{spec}`: `{text}` is not an IP address, expected one in 127.0.0.0/8, ::1, or unix:/path{hint}"
    )]
    NotAnAddress {
        /// The SPEC as typed.
        spec: String,
        /// The text found where ADDR belongs.
        text: String,
        /// A suggestion, or empty.
        hint: &'static str,
    },
    /// 0.0.0.0 or `::`, which is an address to bind, not one to reach.
    #[error(
        "invalid SPEC `{spec}`: `{address}` means every interface and is no target, expected an address in \
         127.0.0.0/8 or ::1: keep the service on loopback and write 127.0.0.1"
    )]
    Unspecified {
        /// The SPEC as typed.
        spec: String,
        /// The address found.
        address: IpAddr,
    },
    /// An address that is not the host's loopback.
    #[error(
        "invalid SPEC `{spec}`: `{address}` is not a loopback address, expected one in 127.0.0.0/8 or ::1: only \
         services on the host's loopback are attached, {hint}"
    )]
    NotLoopback {
        /// The SPEC as typed.
        spec: String,
        /// The address found.
        address: IpAddr,
        /// What to do instead.
        hint: &'static str,
    },
    /// A Unix socket path that cannot be one.
    #[error(
        "invalid SPEC `{spec}`: the Unix socket path `{path}` {problem}, expected unix:/PATH of at most 107 bytes"
    )]
    UnixPath {
        /// The SPEC as typed.
        spec: String,
        /// The path found.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl FromStr for ServiceSpec {
    type Err = SpecError;

    fn from_str(spec: &str) -> Result<Self, SpecError> {
        if spec.is_empty() {
            return Err(SpecError::Empty);
        }
        let (name, rest) = split_name(spec);
        if name.is_none() && looks_like_a_word(spec) {
            return from_preset(spec);
        }
        let service = name.map_or(Ok(UNNAMED_SERVICE), |name| check_name(spec, name))?;
        let (port, target) = match rest.split_once(':') {
            Some((port, target)) => (port, Some(target)),
            None => (rest, None),
        };
        let port = parse_port(spec, "PORT", port)?;
        let target = match target {
            Some(text) => parse_target(spec, port, text)?,
            None => Target::loopback(port),
        };
        Ok(ServiceSpec { service: service.to_owned(), port, target })
    }
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
    let hint = if spec.eq_ignore_ascii_case("mcp") {
        " because MCP servers have no fixed port (write mcp=PORT)".to_owned()
    } else {
        presets::nearest(spec).map(|near| format!(" (did you mean `{}`?)", near.name)).unwrap_or_default()
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
    let lower = name.to_ascii_lowercase();
    let hint = if lower != name && check_name(spec, &lower).is_ok() {
        format!(": write `{lower}`")
    } else {
        String::new()
    };
    Err(SpecError::Name { spec: spec.to_owned(), name: name.to_owned(), problem, hint })
}

fn parse_port(spec: &str, role: &'static str, text: &str) -> Result<Port, SpecError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(SpecError::PortNotNumber {
            spec: spec.to_owned(),
            role,
            text: text.to_owned(),
            hint: port_hint(text),
        });
    }
    let too_large = || SpecError::PortTooLarge { spec: spec.to_owned(), role, text: text.to_owned() };
    // Only digits are left, so parsing can fail in one way: the number does not fit.
    let number = text.parse::<u16>().map_err(|_| too_large())?;
    Port::new(number).ok_or_else(|| SpecError::PortZero { spec: spec.to_owned(), role })
}

fn port_hint(text: &str) -> String {
    if let Some(preset) = presets::find(text) {
        return format!(": `{text}` listens on {}", preset.port);
    }
    match text.split_once('/') {
        Some((_, "udp")) => ": UDP is not forwarded, only TCP".to_owned(),
        Some((port, "tcp")) => format!(": write `{port}`, everything is TCP"),
        _ => String::new(),
    }
}

fn parse_target(spec: &str, port: Port, text: &str) -> Result<Target, SpecError> {
    if let Some(path) = text.strip_prefix("unix:") {
        return parse_unix(spec, path);
    }
    let Some((address, target_port)) = text.rsplit_once(':') else {
        return match text.parse::<IpAddr>() {
            Ok(address) => Err(SpecError::MissingTargetPort { spec: spec.to_owned(), address, port }),
            Err(_) => parse_port(spec, "TARGET_PORT", text).map(Target::loopback),
        };
    };
    match parse_address(address) {
        Some(address) => {
            let address = check_loopback(spec, address)?;
            let target_port = parse_port(spec, "TARGET_PORT", target_port)?;
            Ok(Target::Tcp(SocketAddr::from((address, target_port.get()))))
        }
        // `8080:::1` is an address whose last group looks like a port.
        None => match parse_address(text) {
            Some(address) => Err(SpecError::MissingTargetPort { spec: spec.to_owned(), address, port }),
            None => Err(not_an_address(spec, address)),
        },
    }
}

/// An IP address, IPv6 with or without brackets.
fn parse_address(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
        Some(inner) => inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => text.parse().ok(),
    }
}

fn not_an_address(spec: &str, text: &str) -> SpecError {
    let hint = match text {
        "localhost" => ": write 127.0.0.1 (or [::1]) instead of localhost",
        "unix" => ": write unix:/absolute/path",
        _ => "",
    };
    SpecError::NotAnAddress { spec: spec.to_owned(), text: text.to_owned(), hint }
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
#[path = "spec_tests.rs"]
mod tests;
