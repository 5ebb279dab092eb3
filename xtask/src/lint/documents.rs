//! What is asked of the documents, and of the width of every text: how long README and ARCHITECTURE may be, that links
//! lead somewhere, that lines fit, and that a console transcript is one that a trial recorded. The rules for code are
//! in `house`.
//!
//! Pure, except [`check`], which reads the files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::Path,
};

use anyhow::{Context as _, Result, bail};

use super::house;
use crate::workspace::Workspace;

/// The longest line, in characters.
const COLUMNS: usize = 120;
/// How many words a newcomer is asked to read first.
const WORDS: [(&str, usize); 2] = [("README.md", 1200), ("ARCHITECTURE.md", 2500)];
/// Where the recorded transcripts are.
const TRANSCRIPTS: &str = "docs/transcripts/";

/// Something to be corrected.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    file: String,
    line: usize,
    /// What is there, what was expected, and the cure.
    text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.text)
    }
}

impl Problem {
    pub(super) fn new(file: &str, line: usize, text: String) -> Self {
        Self { file: file.to_owned(), line, text }
    }
}

/// The workspace's texts by their path below its root, with `/`; and every path there is.
#[derive(Default)]
struct Tree {
    texts: BTreeMap<String, String>,
    paths: BTreeSet<String>,
}

/// Reads the workspace and names everything that is wrong.
pub(super) fn check(ws: &Workspace) -> Result<()> {
    let mut tree = Tree::default();
    read(ws.root(), "", &mut tree)?;
    let problems = judge(&tree);
    if problems.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = problems.iter().map(ToString::to_string).collect();
    bail!("failed to pass the lint of documents, {} problems:\n{}", list.len(), list.join("\n"))
}

/// Everything below `dir` that belongs to the repository: neither hidden nor built.
fn read(dir: &Path, below: &str, tree: &mut Tree) -> Result<()> {
    let failed = || format!("failed to read {}", dir.display());
    for entry in fs::read_dir(dir).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || name == "target" {
            continue;
        }
        let path = format!("{below}{name}");
        if entry.file_type().with_context(failed)?.is_dir() {
            read(&entry.path(), &format!("{path}/"), tree)?;
        } else if has_extension(&path, &["md", "rs", "sh"]) || path.starts_with(TRANSCRIPTS) {
            let text = fs::read_to_string(entry.path())
                .with_context(|| format!("failed to read {}", entry.path().display()))?;
            tree.texts.insert(path.clone(), text);
        }
        tree.paths.insert(path);
    }
    Ok(())
}

fn has_extension(path: &str, wanted: &[&str]) -> bool {
    path.rsplit_once('.').is_some_and(|(_, extension)| wanted.contains(&extension))
}

fn judge(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (file, text) in &tree.texts {
        if has_extension(file, &["md"]) {
            problems.extend(too_many_words(file, text));
            problems.extend(wide_prose(file, text));
            problems.extend(dead_links(file, text, tree));
            problems.extend(other_transcripts(file, text, tree));
        } else if has_extension(file, &["rs", "sh"]) {
            problems.extend(text.lines().enumerate().filter_map(|(at, line)| too_wide(file, at + 1, line)));
        }
        if has_extension(file, &["rs"]) {
            problems.extend(house::problems(file, text));
        }
    }
    problems
}

/// Counted as wc(1) does.
fn too_many_words(file: &str, text: &str) -> Option<Problem> {
    let (_, limit) = WORDS.into_iter().find(|(name, _)| *name == file)?;
    let count = text.split_whitespace().count();
    let problem = format!(
        "{count} words, expected at most {limit}: move what a newcomer does not need first to docs/, and link to it"
    );
    (count > limit).then(|| Problem::new(file, 1, problem))
}

fn too_wide(file: &str, line: usize, text: &str) -> Option<Problem> {
    let columns = text.chars().count();
    let problem = format!("{columns} columns, expected at most {COLUMNS}: break the line");
    (columns > COLUMNS).then(|| Problem::new(file, line, problem))
}

fn wide_prose(file: &str, text: &str) -> Vec<Problem> {
    let prose = prose(text).filter(|(_, line)| !line.trim_start().starts_with('|'));
    prose.filter_map(|(number, line)| too_wide(file, number, line)).collect()
}

/// The lines outside of code blocks, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    text.lines().enumerate().filter_map(move |(at, line)| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        (!in_code && !is_fence).then_some((at + 1, line))
    })
}

fn dead_links(file: &str, text: &str, tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (number, line) in prose(text) {
        for target in links(&without_code(line)) {
            let Err(why) = follow(file, &target, tree) else { continue };
            problems.push(Problem::new(file, number, format!("link ({target}) leads nowhere: {why}")));
        }
    }
    problems
}

/// A line without what stands between backticks.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("``")
}

/// The targets of `[text](target)` that stay in the repository.
fn links(line: &str) -> Vec<String> {
    let ends = line.split("](").skip(1);
    let targets = ends.filter_map(|rest| rest.split_once(')')).map(|(target, _)| target.trim());
    targets
        .filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
        .map(str::to_owned)
        .collect()
}

/// Whether the target is there; if not, what was expected and what to do.
fn follow(file: &str, target: &str, tree: &Tree) -> Result<(), String> {
    let (path, anchor) = target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
    let path = if path.is_empty() { file.to_owned() } else { resolve(file, path) };
    let directory = format!("{path}/");
    if !tree.paths.contains(&path) && !tree.paths.iter().any(|other| other.starts_with(&directory)) {
        return Err(format!("there is no {path}, expected a path relative to {file}: correct it"));
    }
    let Some(anchor) = anchor else { return Ok(()) };
    let text = tree.texts.get(&path).map(String::as_str).unwrap_or_default();
    let anchors = anchors(text);
    if anchors.iter().any(|known| known == anchor) {
        return Ok(());
    }
    Err(format!("{path} has no heading #{anchor}, expected one of: {}: correct it", anchors.join(", ")))
}

/// `relative` as seen from the directory of `file`, below the root.
fn resolve(file: &str, relative: &str) -> String {
    let mut parts: Vec<&str> = file.split('/').collect();
    parts.pop();
    for part in relative.trim_end_matches('/').split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(text: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for (_, line) in prose(text) {
        let Some(heading) = line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#'))
        else {
            continue;
        };
        let slug = slug(heading.trim());
        let again = all.iter().filter(|other| **other == slug).count();
        all.push(if again == 0 { slug } else { format!("{slug}-{again}") });
    }
    all
}

/// Lower case, letters and digits; a space becomes a hyphen. Of a link its text stays.
fn slug(heading: &str) -> String {
    let mut text = String::new();
    let mut rest = heading;
    while let Some((before, after)) = rest.split_once("](") {
        text.push_str(before);
        rest = after.split_once(')').map_or("", |(_, rest)| rest);
    }
    text.push_str(rest);
    let kept = text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// A block of a console's output follows its marker and is what the trial recorded.
fn other_transcripts(file: &str, text: &str, tree: &Tree) -> Vec<Problem> {
    let lines: Vec<&str> = text.lines().collect();
    let mut problems = Vec::new();
    for (at, _) in lines.iter().enumerate().filter(|(_, line)| line.trim() == "```console") {
        let marker = lines[..at].iter().rev().find(|line| !line.trim().is_empty());
        let name =
            marker.and_then(|line| line.trim().strip_prefix("<!-- transcript: ")?.strip_suffix(" -->"));
        let Some(name) = name else {
            problems.push(Problem::new(
                file,
                at + 1,
                "a console block without a recorded transcript, expected `<!-- transcript: NAME -->` before it: record \
                 it (tests/src/suites/transcripts.rs), or show the commands alone in a block of sh"
                    .to_owned(),
            ));
            continue;
        };
        let path = format!("{TRANSCRIPTS}{name}.txt");
        let shown = lines[at + 1..].iter().take_while(|line| line.trim() != "```");
        match tree.texts.get(&path) {
            None => problems.push(Problem::new(
                file,
                at + 1,
                format!("transcript {name} was never recorded, expected {path}: add its trial and record it"),
            )),
            Some(recorded) if recorded.lines().eq(shown.copied()) => {}
            Some(_) => problems.push(Problem::new(
                file,
                at + 1,
                format!(
                    "this block differs from {path}, which a trial recorded: copy the file into the block"
                ),
            )),
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(texts: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::default();
        for (path, text) in texts {
            tree.paths.insert((*path).to_owned());
            tree.texts.insert((*path).to_owned(), (*text).to_owned());
        }
        tree
    }

    fn said(texts: &[(&str, &str)]) -> Vec<String> {
        judge(&tree(texts)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_the_first_documents_are_limited() {
        let long = "word ".repeat(1201);
        let text = long.replace("word word word word", "word word word word\n");
        assert_eq!(said(&[("docs/guide.md", &text)]), Vec::<String>::new());
        let problems = said(&[("README.md", &text)]);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with("README.md:1: 1201 words, expected at most 1200: "), "{problems:?}");
        assert_eq!(said(&[("README.md", &text.replacen("word", "", 1))]), Vec::<String>::new());
    }

    #[test]
    fn lines_fit_except_in_code_blocks_and_tables() {
        let wide = "x".repeat(121);
        let fits = "ö".repeat(120);
        let text = format!("{fits}\n```\n{wide}\n```\n| {wide} |\n{wide}\n");
        let problems = said(&[("a.md", &text)]);
        assert_eq!(problems, ["a.md:6: 121 columns, expected at most 120: break the line"]);
        assert_eq!(said(&[("xtask/a.rs", &wide)]).len(), 1);
        assert_eq!(
            said(&[("tests/a.sh", &format!("{fits}\n{wide}"))])[0].split(": ").next(),
            Some("tests/a.sh:2")
        );
        assert_eq!(said(&[("docs/a.txt", &wide)]), Vec::<String>::new());
    }

    #[test]
    fn links_lead_to_files_directories_and_headings() {
        let other = "# Other\n\n## The `first` [thing](x://y), done\n\n## Twice\n\n## Twice\n";
        let text = "# Top\n\n[a](docs/b.md) [b](docs/b.md#the-first-thing-done) [c](#top) [d](https://e/f#g)\n\
                    [e](docs/) [f](docs/b.md#twice-1) `[g](nowhere)`\n```\n[h](nowhere)\n```\n";
        assert_eq!(said(&[("a.md", text), ("docs/b.md", other)]), Vec::<String>::new());
        let back = "# B\n[a](../a.md#top)\n[a](a.md)\n[a](../a.md#bottom)\n";
        let problems = said(&[("a.md", "# Top\n"), ("docs/b.md", back)]);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(
            problems[0].starts_with("docs/b.md:3: ") && problems[0].contains("no docs/a.md"),
            "{problems:?}"
        );
        assert!(problems[1].contains("no heading #bottom, expected one of: top"), "{problems:?}");
    }

    #[test]
    fn a_console_block_is_a_recorded_transcript() {
        let block = "<!-- transcript: one -->\n```console\n$ true\nok\n```\n";
        let recorded = ("docs/transcripts/one.txt", "$ true\nok\n");
        assert_eq!(said(&[("a.md", block), recorded]), Vec::<String>::new());
        let problems = said(&[("a.md", block), (recorded.0, "$ true\nok\nmore\n")]);
        assert!(problems[0].contains("differs from docs/transcripts/one.txt"), "{problems:?}");
        assert!(said(&[("a.md", block)])[0].contains("never recorded"));
        let problems = said(&[("a.md", "text\n\n```console\n$ true\n```\n")]);
        assert!(problems[0].starts_with("a.md:3: a console block without"), "{problems:?}");
        assert_eq!(said(&[("a.md", "```sh\ntrue\n```\n")]), Vec::<String>::new());
    }
}
