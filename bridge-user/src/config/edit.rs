//! Changes of the file's text, which `attach --save` and `detach --save` write.
//!
//! Invariants: pure, text to text; a text that is wrong is not changed, and what comes of a change is right; comments,
//! order and layout of everything else stay. `save` and `forget` say what is changed, this how.

use std::{ops::Range, path::Path};

use toml_edit::{Document, DocumentMut, Item, Table};

use super::{ConfigError, places::Place};
use crate::UsageError;

/// The key of the sections.
pub(super) const ATTACH: &str = "attach";

/// A changed text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// The text.
    pub text: String,
    /// What was changed, a sentence each; none: nothing was.
    pub steps: Vec<String>,
}

/// Why a text is not changed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// It is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No change says what is asked for; says what to do by hand.
    #[error("{0}")]
    Refused(String),
}

impl EditError {
    /// As a verb fails with it: where the file is wrong, the usage is.
    pub fn into_error(self) -> anyhow::Error {
        match self {
            Self::Config(error) => UsageError::from(error).into(),
            refused @ Self::Refused(_) => refused.into(),
        }
    }
}

/// The text, to be changed.
///
/// # Errors
/// When it is no TOML.
pub(super) fn editable(path: &Path, text: &str) -> Result<DocumentMut, EditError> {
    text.parse().map_err(|error| EditError::Refused(format!("failed to edit {}: {error}", path.display())))
}

/// The section of this number.
pub(super) fn section(document: &mut DocumentMut, index: usize) -> Option<&mut Table> {
    document.get_mut(ATTACH)?.as_array_of_tables_mut()?.get_mut(index)
}

/// Appends a section; where it is the first, behind everything else, comments included.
pub(super) fn append(document: &mut DocumentMut, mut section: Table) {
    let mut prefix = if document.is_empty() { String::new() } else { "\n".to_owned() };
    if !document.contains_key(ATTACH) {
        let rest = document.trailing().as_str().unwrap_or_default().to_owned();
        if !rest.is_empty() {
            prefix = format!("{}\n\n", rest.trim_end_matches('\n'));
            document.set_trailing("");
        }
    }
    section.decor_mut().set_prefix(prefix);
    let sections = document.entry(ATTACH).or_insert_with(|| Item::ArrayOfTables(Default::default()));
    if let Some(sections) = sections.as_array_of_tables_mut() {
        sections.push(section);
    }
}

/// Gives a key another value, or takes it away.
pub(super) fn set(section: &mut Table, key: &str, item: Option<&Item>) {
    let Some(mut item) = item.cloned() else { return drop(section.remove(key)) };
    let old = section.get(key).and_then(Item::as_value).map(|value| value.decor().clone());
    if let (Some(decor), Some(value)) = (old, item.as_value_mut()) {
        *value.decor_mut() = decor;
    }
    match section.get_mut(key) {
        Some(there) => *there = item,
        None => drop(section.insert(key, item)),
    }
}

/// Takes places out of a section's lists.
pub(super) fn take_out(section: &mut Table, places: &[Place<'_>]) {
    for place in places {
        let key = if matches!(place, Place::Network(_)) { "networks" } else { "bridges" };
        let Some(list) = section.get_mut(key).and_then(Item::as_array_mut) else { continue };
        let first = list.get(0).and_then(|value| value.decor().prefix().cloned());
        list.retain(|value| value.as_str() != Some(place.name()));
        if let (Some(prefix), Some(value)) = (first, list.get_mut(0)) {
            value.decor_mut().set_prefix(prefix);
        }
    }
}

/// The text without the sections of these numbers, the remarks directly above them included.
///
/// # Errors
/// When it is no TOML.
pub(super) fn without(path: &Path, text: &str, sections: &[usize]) -> Result<String, EditError> {
    let document = Document::parse(text)
        .map_err(|error| EditError::Refused(format!("failed to edit {}: {error}", path.display())))?;
    let all = document.get(ATTACH).and_then(Item::as_array_of_tables);
    let mut lines = Vec::new();
    for table in all.into_iter().flat_map(|all| sections.iter().filter_map(|index| all.get(*index))) {
        lines_of(table, &mut lines);
    }
    let mut ranges: Vec<_> = lines.into_iter().map(|range| with_remarks(text, range)).collect();
    ranges.sort_by_key(|range| range.start);
    let mut text = text.to_owned();
    ranges.into_iter().rev().for_each(|range| text.replace_range(range, ""));
    Ok(text)
}

/// From a section's header to its last value, and the same of sections inside of it.
fn lines_of(table: &Table, lines: &mut Vec<Range<usize>>) {
    let Some(header) = table.span() else { return };
    let end = end_of(table, lines);
    lines.push(header.start..end.unwrap_or(header.end).max(header.end));
}

fn end_of(table: &Table, lines: &mut Vec<Range<usize>>) -> Option<usize> {
    let mut end = None;
    for (_, item) in table.iter() {
        let of_item = match item {
            Item::Table(inner) if inner.is_dotted() => end_of(inner, lines),
            Item::Table(inner) => {
                lines_of(inner, lines);
                None
            }
            item => item.span().map(|span| span.end),
        };
        end = end.max(of_item);
    }
    end
}

/// Whole lines: to the end of the last one, remarks directly above, and the empty line before that where one follows
/// or nothing does.
fn with_remarks(text: &str, range: Range<usize>) -> Range<usize> {
    let line_start = |at: usize| text[..at].rfind('\n').map_or(0, |end| end + 1);
    let end = text[range.end..].find('\n').map_or(text.len(), |at| range.end + at + 1);
    let mut start = line_start(range.start);
    while start > 0 && text[line_start(start - 1)..start].starts_with("# ") {
        start = line_start(start - 1);
    }
    let is_empty = |line: &str| line.trim().is_empty();
    let follows_gap = text[end..].lines().next().is_none_or(is_empty);
    if start > 0 && follows_gap && is_empty(&text[line_start(start - 1)..start]) {
        start = line_start(start - 1);
    }
    start..end
}
