//! Why a SPEC is refused, in words.

use std::net::IpAddr;

use thiserror::Error;

use crate::model::presets;

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
         with a letter or digit"
    )]
    Name {
        /// The SPEC as typed.
        spec: String,
        /// The part before `=`.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A port that is not a decimal number.
    #[error("invalid SPEC `{spec}`: {role} `{text}` is not a number, expected a port from 1 to 65535")]
    PortNotNumber {
        /// The SPEC as typed.
        spec: String,
        /// Which of the two ports it is.
        role: &'static str,
        /// The text found where the port belongs.
        text: String,
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
    /// A port of UDP.
    #[error(
        "invalid SPEC `{spec}`: {role} `{text}` is UDP, which is not in this version yet, expected PORT or PORT/tcp"
    )]
    Udp {
        /// The SPEC as typed.
        spec: String,
        /// Which of the two ports it is.
        role: &'static str,
        /// The text found where the port belongs.
        text: String,
    },
    /// An address without the port that must follow it.
    #[error("invalid SPEC `{spec}`: the target `{address}` has no port, expected ADDR:TARGET_PORT")]
    MissingTargetPort {
        /// The SPEC as typed.
        spec: String,
        /// The address found.
        address: IpAddr,
    },
    /// Something that is no IP address where ADDR belongs.
    #[error(
        "invalid SPEC `{spec}`: `{text}` is not an IP address, expected one in 127.0.0.0/8, ::1, or unix:/path"
    )]
    NotAnAddress {
        /// The SPEC as typed.
        spec: String,
        /// The text found where ADDR belongs.
        text: String,
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
    /// One of the others, where it is plain what was meant.
    #[error("{error}: {meant}")]
    Meant {
        /// What is wrong.
        error: Box<SpecError>,
        /// What to write, ready to paste.
        meant: String,
    },
}
