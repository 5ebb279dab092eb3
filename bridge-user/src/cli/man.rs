//! The manual pages: one for the program and one for each verb, from the flags of the command line and the chapters of
//! docs/reference.md and README.md, so that both say the same.
//!
//! Invariant: every chapter that a page is to have is in those documents, which a test checks.

use std::{fs, path::Path};

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_mangen::{
    Man,
    roff::{Inline, Roff, bold, roman},
};

use super::Cli;

const REFERENCE: &str = include_str!("../../../docs/reference.md");
const README: &str = include_str!("../../../README.md");
/// The chapter of README with examples.
const EXAMPLES: &str = "What to write";
/// The chapters of docs/reference.md on the program's own page.
const GENERAL: &[&str] =
    &["SPEC", "Presets", "States", "Exit codes", "Files and environment", "Capabilities", "Limits"];
/// Those on the page of a verb.
const OF_VERBS: &[(&str, &[&str])] = &[
    (
        "attach",
        &["SPEC", "Presets", "What is steered", "States", "JSON", "Exit codes", "Files and environment"],
    ),
    ("detach", &["Exit codes"]),
    ("status", &["States", "Counters", "JSON", "Exit codes"]),
    ("check", &["Exit codes"]),
    ("events", &["Exit codes"]),
    ("import", &["Exit codes"]),
    ("systemd", &["Exit codes", "Files and environment"]),
];
/// Verbs whose page has the examples, too.
const WITH_EXAMPLES: [&str; 1] = ["attach"];

/// The program's own page.
pub(super) fn page() -> anyhow::Result<Vec<u8>> {
    render(Cli::command(), GENERAL, true)
}

/// Writes all pages into a directory, and returns their names.
pub(super) fn write_all(directory: &Path) -> anyhow::Result<Vec<String>> {
    let mut pages = vec![("bridge-user.1".to_owned(), page()?)];
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    for verb in program.get_subcommands() {
        let name = verb.get_name();
        let chapters = OF_VERBS.iter().find(|(of, _)| *of == name).map_or(&[][..], |(_, chapters)| chapters);
        let page = render(verb.clone(), chapters, WITH_EXAMPLES.contains(&name))?;
        pages.push((format!("bridge-user-{name}.1"), page));
    }
    for (name, page) in &pages {
        let path = directory.join(name);
        fs::write(&path, page).with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(pages.into_iter().map(|(name, _)| name).collect())
}

fn render(command: Command, chapters: &[&str], with_examples: bool) -> anyhow::Result<Vec<u8>> {
    let has_verbs = command.has_subcommands();
    let man = Man::new(command);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if has_verbs {
        man.render_subcommands_section(&mut page)?;
    }
    for chapter in chapters {
        written(chapter, text_of(REFERENCE, chapter)).to_writer(&mut page)?;
    }
    if with_examples {
        written("Examples", text_of(README, EXAMPLES)).to_writer(&mut page)?;
    }
    Ok(page)
}

/// What stands below a heading of the second level.
fn text_of<'a>(document: &'a str, heading: &str) -> &'a str {
    let start = format!("\n## {heading}\n");
    let text = document.split_once(&start).map_or("", |(_, rest)| rest);
    text.split_once("\n## ").map_or(text, |(text, _)| text)
}

/// Markdown of the documents' kind as a section of a manual page.
fn written(heading: &str, markdown: &str) -> Roff {
    let mut roff = Roff::default();
    roff.control("SH", [heading.to_uppercase().as_str()]);
    let mut head: Vec<&str> = Vec::new();
    for line in markdown.lines().filter(|line| !line.starts_with("<!--")) {
        if let Some(cells) = cells(line) {
            if head.is_empty() {
                head = cells;
            } else if !line.starts_with("| ---") {
                row(&mut roff, &head, &cells);
            }
            continue;
        }
        head.clear();
        match line.strip_prefix("- ") {
            _ if line.is_empty() => drop(roff.control("PP", [])),
            Some(item) => drop(roff.control("IP", [r"\(bu", "2"]).text(inline(item))),
            None => drop(roff.text(inline(line.trim_start()))),
        }
    }
    roff
}

/// The cells of a table's line.
fn cells(line: &str) -> Option<Vec<&str>> {
    let inner = line.strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split(" |").map(str::trim).collect())
}

/// A row of a table: its first cell, and below it the others, by name where there are several.
fn row(roff: &mut Roff, head: &[&str], cells: &[&str]) {
    let Some((first, rest)) = cells.split_first() else { return };
    roff.control("TP", []).text(inline(first));
    let rest: Vec<_> = head.iter().skip(1).zip(rest).filter(|(_, cell)| !cell.is_empty()).collect();
    let named = rest.len() > 1;
    let text =
        |(name, cell): &(&&str, &&str)| if named { format!("{name}: {cell}") } else { (**cell).to_owned() };
    roff.text(inline(&rest.iter().map(text).collect::<Vec<_>>().join("; ")));
}

/// Code in bold; of a link its text.
fn inline(markdown: &str) -> Vec<Inline> {
    let plain = without_links(&markdown.replace(r"\|", "|").replace("**", ""));
    let parts = plain.split('`').enumerate();
    parts.map(|(at, part)| if at % 2 == 1 { bold(part) } else { roman(part) }).collect()
}

fn without_links(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("](") {
        let (text, label) = before.rsplit_once('[').unwrap_or((before, ""));
        plain.push_str(text);
        plain.push_str(label);
        rest = after.split_once(')').map_or("", |(_, rest)| rest);
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chapter_is_in_the_documents() {
        for chapter in GENERAL.iter().chain(OF_VERBS.iter().flat_map(|(_, chapters)| *chapters)) {
            assert!(!text_of(REFERENCE, chapter).is_empty(), "docs/reference.md has no chapter {chapter}");
        }
        assert!(text_of(README, EXAMPLES).contains("| --- |"), "README has no table of what to write");
    }

    #[test]
    fn every_verb_has_a_page() {
        let directory = tempfile::tempdir().unwrap();
        let names = write_all(directory.path()).unwrap();
        for verb in ["attach", "detach", "status", "check", "events", "completions", "man"] {
            assert!(names.contains(&format!("bridge-user-{verb}.1")), "{names:?}");
        }
        let attach = fs::read_to_string(directory.path().join("bridge-user-attach.1")).unwrap();
        for text in [
            ".SH SPEC",
            ".SH PRESETS",
            ".SH STATES",
            ".SH EXAMPLES",
            r"\-\-network",
            "waiting\\-for\\-bridge",
        ] {
            assert!(attach.contains(text), "{text} is not in:\n{attach}");
        }
    }

    #[test]
    fn markdown_becomes_what_man_reads() {
        let table = "| name | a | b |\n| --- | --- | --- |\n| `x\\|y` | 1 | |\n| z | 1 | 2 |\n";
        let page = written("A part", &format!("One `word`, [a link](x.md#y).\n\n{table}")).to_roff();
        for expected in
            [".SH \"A PART\"", r"One \fBword\fR, a link.", ".TP\n\\fBx|y\\fR\n1\n", ".TP\nz\na: 1; b: 2\n"]
        {
            assert!(page.contains(expected), "{expected} is not in:\n{page}");
        }
    }
}
