//! Writing a request to the file.
//!
//! Invariants: afterwards the file asks for all of the request, with its settings; what it asked for elsewhere it still
//! asks for. A section that would still have a part of the request's place, by a glob or `all`, is not guessed at.

use std::path::Path;

use toml_edit::{DocumentMut, Item, Table, value};

use super::{
    Config, Entry,
    edit::{ATTACH, Edit, EditError, append, editable, section, set, take_out, without},
    overlap::clash,
    parse,
    places::{Place, places, shared, uncovered},
    written,
};
use crate::{
    model::{event_level::EventLevel, spec::ServiceSpec},
    plan::{list, request::Request},
};

/// Whether a key says the same of both requests.
type Same = fn(&Request, &Request) -> bool;

/// The keys that a request sets.
const KEYS: [(&str, Same); 10] = [
    ("service", |one, other| one.specs == other.specs),
    ("container", |one, other| one.container == other.container),
    ("networks", |one, other| one.networks == other.networks),
    ("bridges", |one, other| one.bridges == other.bridges),
    ("gateways", |one, other| one.gateways == other.gateways),
    ("allow", |one, other| one.allow == other.allow),
    ("identity", |one, other| one.identity == other.identity),
    ("datapath", |one, other| one.datapath == other.datapath),
    ("force", |one, other| one.force == other.force),
    ("relay", |one, other| one.relay == other.relay),
];

/// The text of the file at `path`, with these services of the request in it.
///
/// # Errors
/// When the text is wrong, or has a section that only a person can change; says which.
pub fn save(path: &Path, text: &str, request: &Request, specs: &[ServiceSpec]) -> Result<Edit, EditError> {
    let mut edit = Edit { text: text.to_owned(), steps: Vec::new() };
    parse(path, text)?;
    for spec in specs {
        edit = with_service(path, edit, request, spec)?;
    }
    if let Some(level) = request.event_level {
        edit = with_level(path, edit, level)?;
    }
    parse(path, &edit.text)?;
    Ok(edit)
}

fn with_service(
    path: &Path,
    mut edit: Edit,
    request: &Request,
    spec: &ServiceSpec,
) -> Result<Edit, EditError> {
    let config = parse(path, &edit.text)?;
    let mut document = editable(path, &edit.text)?;
    let new = written::section(request, spec);
    let wanted = as_read(path, &document, &new, spec)?;
    let Some(plan) = Plan::new(path, &config, &wanted, spec)? else { return Ok(edit) };
    let mut say = |what: String| edit.steps.push(format!("write {}: {what}", path.display()));
    for (index, taken) in &plan.narrowed {
        let line = config.attach.get(*index).map_or(0, |entry| entry.line);
        say(format!("take {} out of the section in line {line}", list(taken)));
        if let Some(section) = section(&mut document, *index) {
            take_out(section, taken);
        }
    }
    let mut replaced = plan.replaced.iter();
    match replaced.next() {
        Some((index, old)) => {
            say(format!("change the section for {} in line {}", spec.service, old.line));
            if let Some(section) = section(&mut document, *index) {
                let changed = KEYS.iter().filter(|(_, same)| !same(&old.request, &wanted));
                changed.for_each(|(key, _)| set(section, key, new.get(key)));
            }
        }
        None => {
            say(format!("add a section for {} on {}", spec.service, list(places(&wanted))));
            append(&mut document, new);
        }
    }
    let superfluous: Vec<usize> = replaced.map(|(index, _)| *index).collect();
    plan.replaced.iter().skip(1).for_each(|(_, old)| say(format!("remove the section in line {}", old.line)));
    edit.text = without(path, &document.to_string(), &superfluous)?;
    Ok(edit)
}

/// The request that is read where only this section stands in the file.
fn as_read(
    path: &Path,
    document: &DocumentMut,
    new: &Table,
    spec: &ServiceSpec,
) -> Result<Request, EditError> {
    let mut alone = document.clone();
    alone.remove(ATTACH);
    append(&mut alone, new.clone());
    let refused = |why: &str| EditError::Refused(format!("failed to save {}: {why}", spec.service));
    let config = parse(path, &alone.to_string()).map_err(|error| refused(&error.to_string()))?;
    let entry = config.attach.into_iter().next();
    entry.map(|entry| entry.request).ok_or_else(|| refused("its section is not read again"))
}

/// What has to be done to the sections that have a part of what is wanted.
struct Plan<'a> {
    /// Those that lose places.
    narrowed: Vec<(usize, Vec<Place<'a>>)>,
    /// Those that are all in what is wanted.
    replaced: Vec<(usize, &'a Entry)>,
}

impl<'a> Plan<'a> {
    /// Nothing where the file asks for it already.
    fn new(
        path: &Path,
        config: &'a Config,
        wanted: &Request,
        spec: &ServiceSpec,
    ) -> Result<Option<Self>, EditError> {
        let mut plan = Self { narrowed: Vec::new(), replaced: Vec::new() };
        let entries = config.attach.iter().enumerate();
        for (index, entry) in entries.filter(|(_, entry)| clash(&entry.request, wanted)) {
            if let Some(other) = entry.request.specs.iter().find(|other| other.service != spec.service) {
                return Err(of_another(path, entry, wanted, other));
            }
            if is_same_elsewhere(&entry.request, wanted) && uncovered(&entry.request, wanted).is_empty() {
                return Ok(None);
            }
            let left = uncovered(wanted, &entry.request);
            let is_shared = |place: &&Place<'_>| places(wanted).iter().any(|other| place.meets(*other));
            if let Some(wide) = left.iter().find(is_shared) {
                return Err(too_wide(path, entry, *wide, spec));
            }
            if left.is_empty() {
                plan.replaced.push((index, entry));
            } else {
                let taken = places(&entry.request).into_iter().filter(|place| !left.contains(place));
                plan.narrowed.push((index, taken.collect()));
            }
        }
        Ok(Some(plan))
    }
}

/// Whether both have the same settings, wherever they attach.
fn is_same_elsewhere(one: &Request, other: &Request) -> bool {
    let settings = KEYS.iter().filter(|(key, _)| !["networks", "bridges"].contains(key));
    settings.into_iter().all(|(_, same)| same(one, other))
}

fn of_another(path: &Path, entry: &Entry, wanted: &Request, other: &ServiceSpec) -> EditError {
    let place = shared(&entry.request, wanted).map(|place| format!(" of {place}")).unwrap_or_default();
    EditError::Refused(format!(
        "line {} of {} has port {}{place} for {}: take that out first (bridge-user detach {} --save), or choose \
         another port",
        entry.line,
        path.display(),
        other.port,
        other.service,
        other.service,
    ))
}

fn too_wide(path: &Path, entry: &Entry, place: Place<'_>, spec: &ServiceSpec) -> EditError {
    EditError::Refused(format!(
        "line {} of {} asks for {} on {place}, with other settings: change that section, or name networks in it that \
         this command does not",
        entry.line,
        path.display(),
        spec.service,
    ))
}

fn with_level(path: &Path, mut edit: Edit, level: EventLevel) -> Result<Edit, EditError> {
    if parse(path, &edit.text)?.events == Some(level) {
        return Ok(edit);
    }
    let mut document = editable(path, &edit.text)?;
    let events = document.entry("events").or_insert_with(toml_edit::table);
    if let Some(events) = events.as_table_like_mut() {
        let word = value(level.to_string());
        match events.get_mut("level") {
            Some(there) => *there = word,
            None => drop::<Option<Item>>(events.insert("level", word)),
        }
    }
    edit.steps.push(format!("write {}: set the level of events to {level}", path.display()));
    edit.text = document.to_string();
    Ok(edit)
}
