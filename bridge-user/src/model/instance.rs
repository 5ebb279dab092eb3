//! What an instance says of itself. Pure data; map `META` holds it.

use serde::Serialize;

use super::event_level::EventLevel;

/// What map `META` says beside layout, build and namespace, which only its writer knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InstanceMeta {
    /// The level that its programs were loaded with.
    pub event_level: EventLevel,
    /// Steering was tried on this host before the first attach.
    pub probed: bool,
    /// The inode of the namespace that attached from outside, if one did.
    pub owner: Option<u64>,
}
