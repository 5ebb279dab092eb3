//! Reading one section of the file, key by key.
//!
//! Invariants: a key that is not asked for is a problem, and so is a value of another type or out of range; such
//! a value reads as if it were not there. What is wrong is noted with its line, and reading goes on.

use std::{collections::BTreeSet, ops::Range, time::Duration};

use clap::ValueEnum;
use toml_edit::{Item, Table, TableLike, Value};

use super::error::Problem;
use crate::{model::nearest::nearest, plan::list, relay};

/// Most characters of a value that a problem quotes.
const QUOTED: usize = 60;

/// A text, and where its lines begin.
pub(super) struct Text<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Text<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { text, starts: std::iter::once(0).chain(ends).collect() }
    }

    /// The line that this byte is on.
    pub(super) fn line(&self, at: usize) -> usize {
        self.starts.partition_point(|start| *start <= at).max(1)
    }

    fn line_of(&self, span: Option<Range<usize>>) -> usize {
        self.line(span.map_or(0, |span| span.start))
    }

    /// What stands there, as far as it is quoted.
    fn quoted(&self, span: Option<Range<usize>>) -> String {
        let text = span.and_then(|span| self.text.get(span)).unwrap_or_default();
        let first = text.lines().next().unwrap_or_default();
        let cut: String = first.chars().take(QUOTED).collect();
        if cut.len() == text.len() { cut } else { format!("{cut}…") }
    }
}

/// A value and its line.
#[derive(Clone, Debug)]
pub(super) struct Located<T> {
    pub(super) line: usize,
    pub(super) value: T,
}

/// A section that is being read.
pub(super) struct Section<'a> {
    text: &'a Text<'a>,
    title: &'static str,
    line: usize,
    table: Option<&'a dyn TableLike>,
    asked: BTreeSet<&'static str>,
    problems: Vec<Problem>,
}

impl<'a> Section<'a> {
    /// `title`: how problems call it, empty for the file as a whole.
    pub(super) fn new(text: &'a Text<'a>, title: &'static str, line: usize) -> Self {
        Self { text, title, line, table: None, asked: BTreeSet::new(), problems: Vec::new() }
    }

    pub(super) fn of(text: &'a Text<'a>, title: &'static str, table: &'a Table) -> Self {
        let line = text.line_of(table.span());
        Self { table: Some(table), ..Self::new(text, title, line) }
    }

    /// The line it begins on.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    /// Notes a problem.
    pub(super) fn refuse(&mut self, line: usize, text: impl Into<String>) {
        self.problems.push(Problem { line, text: text.into() });
    }

    /// ` in [[attach]]`, to be put behind the name of a key.
    pub(super) fn place(&self) -> String {
        if self.title.is_empty() { String::new() } else { format!(" in {}", self.title) }
    }

    /// Whether the key is there, whatever its value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Whether the key has this text as its value, in place of another type.
    pub(super) fn is(&mut self, key: &'static str, text: &str) -> bool {
        self.get(key).is_some_and(|found| found.value.as_str() == Some(text))
    }

    fn get(&mut self, key: &'static str) -> Option<Located<&'a Item>> {
        self.asked.insert(key);
        let (name, item) = self.table?.get_key_value(key)?;
        Some(Located { line: self.text.line_of(name.span().or_else(|| item.span())), value: item })
    }

    /// The value of a key, as `read` makes it of what stands there.
    fn value<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        read: impl FnOnce(&'a Item) -> Option<T>,
    ) -> Option<Located<T>> {
        let Located { line, value: item } = self.get(key)?;
        if let Some(value) = read(item) {
            return Some(Located { line, value });
        }
        let (place, found) = (self.place(), self.text.quoted(item.span()));
        self.refuse(line, format!("`{key} = {found}`{place}: expected {expected}"));
        None
    }

    pub(super) fn string(&mut self, key: &'static str, expected: &str) -> Option<Located<&'a str>> {
        self.value(key, expected, Item::as_str)
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Option<Located<bool>> {
        self.value(key, "true or false", Item::as_bool)
    }

    /// A key whose `true` does nothing in this version.
    pub(super) fn not_yet(&mut self, key: &'static str) {
        if let Some(Located { line, value: true }) = self.boolean(key) {
            let place = self.place();
            self.refuse(line, format!("`{key} = true`{place} is not in this version: leave it out"));
        }
    }

    pub(super) fn integer(&mut self, key: &'static str, range: Range<usize>) -> Option<usize> {
        let expected = format!("a number from {} to {}", range.start, range.end - 1);
        let read =
            |item: &Item| usize::try_from(item.as_integer()?).ok().filter(|number| range.contains(number));
        self.value(key, &expected, read).map(|found| found.value)
    }

    /// Seconds up to `max`, that may have a fraction.
    pub(super) fn seconds(&mut self, key: &'static str, max: f64) -> Option<Duration> {
        let number =
            |item: &Item| item.as_float().or_else(|| i32::try_from(item.as_integer()?).ok().map(f64::from));
        let read = |item: &Item| number(item).and_then(|number| relay::seconds(number, max));
        self.value(key, &format!("seconds, from 0 to {max}"), read).map(|found| found.value)
    }

    /// One of the words that a flag of `attach` takes.
    pub(super) fn choice<T: ValueEnum>(&mut self, key: &'static str) -> Option<Located<T>> {
        let words = list(
            T::value_variants().iter().filter_map(|one| Some(one.to_possible_value()?.get_name().to_owned())),
        );
        self.value(key, &format!("one of {words}"), |item| T::from_str(item.as_str()?, false).ok())
    }

    /// A list of texts. One with a comma in it is several in one.
    pub(super) fn strings(
        &mut self,
        key: &'static str,
        expected: &str,
    ) -> Option<Located<Vec<Located<&'a str>>>> {
        let text = self.text;
        let one =
            |value: &'a Value| Some(Located { line: text.line_of(value.span()), value: value.as_str()? });
        let found =
            self.value(key, expected, |item| item.as_array()?.iter().map(one).collect::<Option<Vec<_>>>())?;
        for Located { line, value } in &found.value {
            let place = self.place();
            if value.is_empty() {
                self.refuse(*line, format!("`{key}`{place} has an empty text: expected {expected}"));
            } else if value.contains(',') {
                let each = list(value.split(',').map(|one| format!("\"{}\"", one.trim())));
                self.refuse(
                    *line,
                    format!("`{key}`{place} has several values in one, \"{value}\": write [{each}]"),
                );
            }
        }
        Some(found)
    }

    /// A section inside of this one; an empty one where there is none.
    pub(super) fn section(&mut self, key: &'static str, title: &'static str) -> Section<'a> {
        let found = self.value(key, "a section", Item::as_table_like);
        let line = found.as_ref().map_or(self.line, |found| found.line);
        Section { table: found.map(|found| found.value), ..Section::new(self.text, title, line) }
    }

    /// The sections of this name.
    pub(super) fn sections(&mut self, key: &'static str, title: &'static str) -> Vec<Section<'a>> {
        let expected = format!("a section that begins with a line {title} for each service");
        let text = self.text;
        let found = self.value(key, &expected, Item::as_array_of_tables);
        let each = found.iter().flat_map(|found| found.value.iter());
        each.map(|table| Section::of(text, title, table)).collect()
    }

    /// Takes over what is wrong with a section inside of this one.
    pub(super) fn adopt(&mut self, inner: Section<'_>) {
        self.problems.extend(inner.finish());
    }

    /// What is wrong with it, keys that nobody asked for included.
    pub(super) fn finish(mut self) -> Vec<Problem> {
        for (name, item) in self.table.into_iter().flat_map(TableLike::iter) {
            if self.asked.contains(name) {
                continue;
            }
            let key = self.table.and_then(|table| table.key(name));
            let line = self.text.line_of(key.and_then(|key| key.span()).or_else(|| item.span()));
            let text = self.unknown(name, item.is_table() || item.is_array_of_tables());
            self.refuse(line, text);
        }
        self.problems
    }

    fn unknown(&self, name: &str, is_section: bool) -> String {
        let what = if is_section { "section" } else { "key" };
        let hint = match nearest(name, self.asked.iter().copied()) {
            Some(near) => format!(": did you mean `{near}`?"),
            None if self.title.is_empty() && !is_section => {
                " before the first section: expected a line such as [[attach]] above it".to_owned()
            }
            None => format!(", expected one of {}", list(&self.asked)),
        };
        let place = self.place();
        format!("unknown {what} `{name}`{place}{hint}")
    }
}
