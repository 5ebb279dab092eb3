//! What is there: networks, containers, listeners, attachments, and what this host can do. Changes nothing.

mod capabilities;
pub mod checks;
pub mod container;
mod elsewhere;
mod engine;
mod gateways;
mod meant;
pub mod networks;
pub mod pinned;
pub mod preflight;
pub mod prepare;
pub mod readiness;
pub mod report;
mod resolve;
pub mod snapshot;
pub mod stages;
pub mod surroundings;
