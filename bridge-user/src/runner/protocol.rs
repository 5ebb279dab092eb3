//! What a process with relays and those who ask it say to each other.
//!
//! Invariants: one request and one answer per connection; both sides accept only root and their own user on the other
//! side (SO_PEERCRED).

use std::{io, os::fd::AsFd, time::Duration};

use anyhow::Context as _;
use rustix::net::sockopt::socket_peercred;
use serde::{Deserialize, Serialize};

use crate::{
    model::finding::Finding,
    observe::report::AttachmentReport,
    plan::{Refusal, RelayPlace, request::Request},
};

/// How long a relay process may take to answer a question. On a host with nothing to spare it is seconds.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Longest request, and longest answer, in bytes.
pub(super) const MAX_REQUEST: usize = 1 << 20;
pub(super) const MAX_ANSWER: usize = 16 << 20;

/// What can be asked of a relay process.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// All of its attachments.
    Status,
    /// The daemon alone: where its relays listen.
    Places,
    /// Drain and stop the attachments with these names; answered when that is done.
    Stop(Vec<String>),
    /// The daemon alone: do not steer these again until it is told otherwise.
    Hold(Vec<String>),
    /// The daemon alone: the same for everything.
    HoldAll,
    /// The daemon alone: relay what comes of this request.
    Attach(Box<Request>),
}

/// The attachments it was about.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// One entry each; none after a stop.
    pub entries: Vec<AttachmentReport>,
    /// What is about no attachment that is there.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// Where the daemon's relays listen.
    #[serde(default)]
    pub places: Vec<RelayPlace>,
    /// What of the request was refused.
    #[serde(default)]
    pub refused: Vec<Refusal>,
    /// Why nothing of the request was done.
    #[serde(default)]
    pub error: Option<String>,
}

/// The process on the other side, if it is root's or `own`'s; its id, if it is in a PID namespace that this process
/// sees. `None`: it is somebody else's.
pub(super) fn peer(stream: impl AsFd, own: u32) -> anyhow::Result<Option<Option<u32>>> {
    let peer = socket_peercred(&stream).map_err(io::Error::from).context("failed to read SO_PEERCRED")?;
    let trusted = peer.uid.is_root() || peer.uid.as_raw() == own;
    Ok(trusted.then(|| u32::try_from(peer.pid.as_raw_nonzero().get()).ok()))
}
