//! How detailed the event channel is.

use std::fmt;

use bridge_common::event;
use serde::{Deserialize, Serialize};

/// The most detailed event written to the event channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventLevel {
    /// No events.
    Off,
    /// Denied connections and missing listeners, rate-limited.
    #[default]
    Warn,
    /// Every steered connection and tracked listener, too.
    Debug,
}

impl EventLevel {
    /// Its number, which is aya-log's.
    pub const fn as_u8(self) -> u8 {
        *self.as_static()
    }

    /// The level itself, as a constant of the programs.
    pub const fn as_static(self) -> &'static u8 {
        match self {
            Self::Off => &event::LEVEL_OFF,
            Self::Warn => &event::LEVEL_WARN,
            Self::Debug => &event::LEVEL_DEBUG,
        }
    }

    /// The level that `META` holds.
    pub const fn from_u16(level: u16) -> Self {
        match level {
            0 => Self::Off,
            1..=3 => Self::Warn,
            _ => Self::Debug,
        }
    }
}

impl fmt::Display for EventLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Warn => "warn",
            Self::Debug => "debug",
        })
    }
}
