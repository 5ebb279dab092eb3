//! Whom a service sees of the connections that reach it.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Whom the service sees as its peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Identity {
    /// The container's real address.
    #[default]
    Container,
    /// 127.0.0.1, as with any local client.
    Loopback,
}
