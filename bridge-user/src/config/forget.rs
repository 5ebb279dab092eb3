//! Taking attachments out of the file.
//!
//! Invariant: nothing is taken out that no name means; what a glob or `all` stands for cannot lose one network, and is
//! refused with the line to change by hand.

use std::path::Path;

use super::{
    Config, Entry,
    edit::{Edit, EditError, editable, section, take_out, without},
    parse,
    places::{Place, places},
};
use crate::{
    model::{
        naming::{attachment_name, matches},
        pattern::{DEFAULT_NETWORKS, covers},
        spec::{ServiceSpec, UNNAMED_SERVICE},
    },
    plan::{list, request::Request},
};

/// What came of taking names out.
pub struct Forgotten {
    /// The change.
    pub edit: Edit,
    /// The names that meant something in the file.
    pub known: Vec<String>,
}

/// The text of the file at `path`, without what these names mean: attachments, services, ports or containers.
///
/// # Errors
/// When the text is wrong, or a name means something that only a person can take out.
pub fn forget(path: &Path, text: &str, names: &[String]) -> Result<Forgotten, EditError> {
    let config = parse(path, text)?;
    let mut document = editable(path, text)?;
    let (mut known, mut steps, mut gone) = (Vec::new(), Vec::new(), Vec::new());
    refuse_several_plain(path, &config, names)?;
    for (index, entry) in config.attach.iter().enumerate() {
        let mut meant = Vec::new();
        for name in names {
            let of_name = meant_places(path, entry, name)?;
            known.extend((!of_name.is_empty()).then(|| name.clone()));
            meant.extend(of_name);
        }
        let is_left = |place: &Place<'_>| !meant.contains(place);
        if meant.is_empty() {
            continue;
        }
        let what = if places(&entry.request).iter().any(is_left) {
            if let Some(section) = section(&mut document, index) {
                take_out(section, &meant);
            }
            format!("take {} out of the section in line {}", list(&meant), entry.line)
        } else {
            gone.push(index);
            format!("remove the section in line {}", entry.line)
        };
        steps.push(format!("write {}: {what}", path.display()));
    }
    let text = if steps.is_empty() { text.to_owned() } else { without(path, &document.to_string(), &gone)? };
    parse(path, &text)?;
    Ok(Forgotten { edit: Edit { text, steps }, known })
}

/// The text without any section that attaches.
///
/// # Errors
/// When the text is wrong.
pub fn forget_all(path: &Path, text: &str) -> Result<Edit, EditError> {
    let config = parse(path, text)?;
    let step = |entry: &Entry| format!("write {}: remove the section in line {}", path.display(), entry.line);
    let steps = config.attach.iter().map(step).collect();
    let all: Vec<usize> = (0..config.attach.len()).collect();
    Ok(Edit { text: without(path, text, &all)?, steps })
}

/// A word that all plain ports have says nothing of which one it is.
fn refuse_several_plain(path: &Path, config: &Config, names: &[String]) -> Result<(), EditError> {
    let plain =
        config.attach.iter().filter(|entry| spec(entry).is_some_and(|spec| spec.service == UNNAMED_SERVICE));
    let lines: Vec<usize> = plain.map(|entry| entry.line).collect();
    if lines.len() < 2 || !names.iter().any(|name| name == UNNAMED_SERVICE) {
        return Ok(());
    }
    Err(EditError::Refused(format!(
        "failed to take {UNNAMED_SERVICE} out of {}: every plain port is called so, and lines {} have one: name \
         the port",
        path.display(),
        list(lines)
    )))
}

fn spec(entry: &Entry) -> Option<&ServiceSpec> {
    entry.request.specs.first()
}

/// The places of an entry at which it attaches what `name` means.
fn meant_places<'a>(path: &Path, entry: &'a Entry, name: &str) -> Result<Vec<Place<'a>>, EditError> {
    let request = &entry.request;
    let Some(spec) = spec(entry) else { return Ok(Vec::new()) };
    let container = request.container.as_deref();
    let is_meant = |network: &str| matches(name, container, network, &spec.service, spec.port);
    let all = places(request);
    if is_default(request) && DEFAULT_NETWORKS.iter().any(|network| is_meant(network)) {
        return Ok(all);
    }
    let meant: Vec<_> = all.iter().copied().filter(|place| is_meant(place.name())).collect();
    let left = || all.iter().filter(|place| !meant.contains(place));
    match left().find(|place| place.is_pattern() && stands_for(place.name(), name, request, spec)) {
        None => Ok(meant),
        Some(wide) => Err(EditError::Refused(format!(
            "failed to take {name} out of {}: line {} attaches it by {wide}, which cannot lose one network: name the \
             networks in that section, or detach {}",
            path.display(),
            entry.line,
            spec.service
        ))),
    }
}

fn is_default(request: &Request) -> bool {
    request.container.is_none() && request.networks.is_empty() && request.bridges.is_empty()
}

/// Whether `name` is the full name of what is attached to a network that `pattern` stands for.
fn stands_for(pattern: &str, name: &str, request: &Request, spec: &ServiceSpec) -> bool {
    let full = attachment_name(request.container.as_deref(), "\n", &spec.service, spec.port);
    let Some((before, after)) = full.split_once('\n') else { return false };
    let network = name.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
    network.is_some_and(|network| covers(pattern, network))
}
