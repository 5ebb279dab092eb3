//! The configuration file: what the daemon attaches, and how.
//!
//! Invariants: what is not known, of another type, out of range, or not in this version, is an error that names
//! file and line; all errors are told at once. An entry is a whole [`Request`], as `attach` would make it of its flags.
//! The file is read once, as a whole, and nothing else is asked: a file that is right here is right on every host.
//!
//! `section` reads one section · `entry`, `limits` which keys they have · `overlap` what two entries both want ·
//! `error` what is said · `keys` what is documented ·
//! `places` where an entry attaches · `save`, `forget`, `edit`, `written` changes of the text · `file` the file
//! itself · `labels` what containers ask for, within what the file allows.

mod edit;
#[cfg(test)]
mod edit_tests;
mod entry;
mod error;
mod file;
mod forget;
#[cfg(test)]
mod keys;
pub mod labels;
mod limits;
mod overlap;
mod places;
mod save;
mod section;
#[cfg(test)]
mod tests;
mod written;

use std::{fs, path::Path};

use toml_edit::Document;

pub use self::{
    edit::{Edit, EditError},
    error::ConfigError,
    file::{Held, text},
    forget::{Forgotten, forget, forget_all},
    save::save,
};
use self::{
    entry::Common,
    error::Problem,
    section::{Located, Section, Text},
};
use crate::{
    model::{event_level::EventLevel, spec::ServiceSpec},
    plan::request::{Firewall, Request},
    relay::RelayOptions,
};

/// Where the file is unless another one is named.
pub const PATH: &str = "/etc/bridge-user/config.toml";

/// What a file asks for.
#[derive(Clone, Debug)]
pub struct Config {
    /// What to attach, in the order of the file.
    pub attach: Vec<Entry>,
    /// The engine, and what its containers may ask for.
    pub docker: Docker,
    /// How relays work.
    pub relay: RelayOptions,
    /// Whether firewall rules are managed.
    pub firewall: Firewall,
    /// Level of the event channel; `None` keeps what is there.
    pub events: Option<EventLevel>,
}

/// One `[[attach]]` section.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The line it begins on.
    pub line: usize,
    /// What it asks for: one service.
    pub request: Request,
}

/// The `[docker]` section.
#[derive(Clone, Debug, Default)]
pub struct Docker {
    /// The engine, in the form of DOCKER_HOST; `None`: the one that `attach` uses.
    pub host: Option<String>,
    /// Whether labels are followed.
    pub labels: bool,
    /// What labels may ask for.
    pub allow_labels: Vec<ServiceSpec>,
}

/// What is in the file at `path`.
///
/// # Errors
/// When it cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    fs::read(path).map_err(|cause| ConfigError::Unreadable { path: path.to_owned(), cause })
}

/// What the file at `path`, which has these bytes, asks for.
///
/// # Errors
/// When they are no text, and as [`parse`].
pub fn parse_bytes(path: &Path, bytes: &[u8]) -> Result<Config, ConfigError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => parse(path, text),
        Err(error) => {
            let line = 1 + bytes.iter().take(error.valid_up_to()).filter(|byte| **byte == b'\n').count();
            let problem = Problem { line, text: "expected UTF-8, as TOML is: save it so".to_owned() };
            Err(ConfigError::wrong(path, vec![problem]))
        }
    }
}

/// Reads the text of the file at `path`, which is only named in errors.
///
/// # Errors
/// Says everything that is wrong, with the lines.
pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
    let lines = Text::new(text);
    let document = Document::parse(text).map_err(|error| {
        let line = lines.line(error.span().map_or(0, |span| span.start));
        ConfigError::wrong(path, vec![Problem { line, text: format!("no TOML: {}", error.message()) }])
    })?;
    let (config, problems) = config(Section::of(&lines, "", document.as_table()));
    if problems.is_empty() { Ok(config) } else { Err(ConfigError::wrong(path, problems)) }
}

/// What the file says, and what is wrong in it.
fn config(mut root: Section<'_>) -> (Config, Vec<Problem>) {
    let mut problems = Vec::new();
    let sections = root.sections("attach", "[[attach]]");
    let mut section = |key, title| root.section(key, title);
    let (mut docker, mut firewall) = (section("docker", "[docker]"), section("firewall", "[firewall]"));
    let (mut limits_section, mut events) = (section("relay", "[relay]"), section("events", "[events]"));
    let mut metrics = section("metrics", "[metrics]");
    let level = events.choice::<EventLevel>("level").map(|found| found.value);
    let relay = limits::options(&mut limits_section, RelayOptions::default());
    let mut attach = Vec::new();
    for mut section in sections {
        attach.extend(entry::entry(&mut section, Common { relay, event_level: level }));
        problems.extend(section.finish());
    }
    problems.extend(overlap::problems(&attach));
    let config = Config {
        attach,
        docker: self::docker(&mut docker),
        relay,
        firewall: firewall.choice("manage").map(|found| found.value).unwrap_or_default(),
        events: level,
    };
    refuse_metrics(&mut metrics);
    let sections = [root, docker, firewall, limits_section, events, metrics];
    problems.extend(sections.into_iter().flat_map(Section::finish));
    (config, problems)
}

fn docker(section: &mut Section<'_>) -> Docker {
    let labels = section.boolean("labels").is_some_and(|found| found.value);
    Docker { host: host(section), labels, allow_labels: allow_labels(section) }
}

/// The engine's address.
fn host(section: &mut Section<'_>) -> Option<String> {
    let expected = "unix:///PATH or tcp://HOST:PORT";
    let Located { line, value } = section.string("host", expected)?;
    match value.split_once("://") {
        Some(("unix", path)) if path.starts_with('/') => {}
        Some(("tcp" | "http", place)) if !place.is_empty() => {}
        _ => section.refuse(line, format!("`host = \"{value}\"`{}: expected {expected}", section.place())),
    }
    Some(value.to_owned())
}

/// What labels may ask for.
fn allow_labels(section: &mut Section<'_>) -> Vec<ServiceSpec> {
    let found =
        section.strings("allow-labels", "a list of SPECs").map(|found| found.value).unwrap_or_default();
    let mut allowed = Vec::new();
    for Located { line, value } in found {
        match value.parse::<ServiceSpec>() {
            Ok(spec) => allowed.push(spec),
            Err(error) => section.refuse(line, format!("`allow-labels`: {error}")),
        }
    }
    allowed
}

/// Metrics are not in this version.
fn refuse_metrics(section: &mut Section<'_>) {
    let Some(Located { line, value }) = section.string("listen", "\"off\"") else { return };
    if value != "off" {
        section.refuse(
            line,
            format!("`listen = \"{value}\"`{} is not in this version: write \"off\"", section.place()),
        );
    }
}
