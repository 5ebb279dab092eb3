//! What is typed, what it means, and how it is named: pure data and decisions.
//!
//! Invariants: no I/O. The modules form no circle: `target`, `identity`, `event_level`, `features`, `listener`,
//! `bridge`, `backoff`, `escape`, `labels`, `nearest`, `pattern`, `protocol` and `finding` know nothing of the others,
//! `codes` only `finding`, `instance` only the level, `programs` only the features, `naming`, `notes` and then
//! `presets` only the first two and `nearest`, then come `spec` and `datapath`, and `attachment` is made of all of
//! them.

pub mod attachment;
pub mod backoff;
pub mod bridge;
pub mod codes;
pub mod datapath;
pub mod escape;
pub mod event_level;
pub mod features;
pub mod finding;
pub mod identity;
pub mod instance;
pub mod labels;
pub mod listener;
pub mod naming;
pub mod nearest;
pub mod notes;
pub mod pattern;
pub mod presets;
pub mod programs;
pub mod protocol;
pub mod source;
pub mod spec;
pub mod target;

/// Version of the JSON documents that verbs print.
pub const JSON_VERSION: u32 = 1;
