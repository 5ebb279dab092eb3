//! Tests of findings and of their registry, among them the document that is made of it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use bridge_common::document;

use super::*;
use crate::model::codes::{self, CODES, IDENTIFIERS};

/// Prose of the document is broken after this many columns.
const COLUMNS: usize = 118;

#[test]
fn codes_are_unique_and_in_kebab_case() {
    let names: BTreeSet<_> = CODES.iter().map(|code| code.name).collect();
    assert_eq!(names.len(), CODES.len());
    for (code, identifier) in CODES.iter().zip(IDENTIFIERS) {
        assert!(code.name.split('-').all(is_word), "{}", code.name);
        assert_eq!(code.name.replace('-', "_").to_uppercase(), *identifier);
    }
}

fn is_word(part: &str) -> bool {
    !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
}

#[test]
fn whatever_is_wrong_has_a_cure() {
    for code in CODES {
        assert!(!code.symptom.is_empty() && !code.cause.is_empty(), "{}", code.name);
        assert!(code.severity == Severity::Info || !code.cure.is_empty(), "{}", code.name);
        for text in [code.symptom, code.cause, code.see, code.cure] {
            assert!(!text.ends_with('.'), "{}: {text}", code.name);
        }
    }
}

/// Whoever looks for a code finds one place that makes it, and what it says there.
#[test]
fn every_code_is_used_by_one_constructor() {
    let sources = sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")));
    for identifier in IDENTIFIERS {
        let wanted = format!("codes::{identifier}");
        let uses: usize = sources.iter().map(|text| count(text, &wanted)).sum();
        assert_eq!(uses, 1, "{wanted}");
    }
}

/// The code of the crate, without its tests.
fn sources(dir: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        if path.is_dir() {
            all.extend(sources(&path));
        } else if !path.to_string_lossy().ends_with("_tests.rs") {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next();
            all.push(code.unwrap_or_default().to_owned());
        }
    }
    all
}

fn count(text: &str, identifier: &str) -> usize {
    let ends = text.split(identifier).skip(1);
    ends.filter(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')).count()
}

#[test]
fn a_later_severity_is_worse_and_only_an_error_fails() {
    assert!(Severity::Info < Severity::Warning && Severity::Warning < Severity::Error);
    let of = |severity| Finding { severity, ..codes::RELAYED.finding("a", "b", "") };
    let (info, warning, error) = (of(Severity::Info), of(Severity::Warning), of(Severity::Error));
    assert_eq!(exit_code([]), 0);
    assert_eq!(exit_code(&[info.clone(), warning.clone()]), 0);
    assert_eq!(exit_code(&[warning, error, info]), 1);
}

#[test]
fn people_read_cause_and_cure() {
    let finding = codes::NO_LISTENER.finding("app-redis-6379", "nothing listens", "start it");
    assert_eq!(finding.to_string(), "nothing listens: start it");
    assert_eq!(codes::RELAYED.finding("a", "relayed", "").to_string(), "relayed");
}

#[test]
fn json_has_the_contracts_fields() {
    let finding = codes::NO_LISTENER.finding("app-redis-6379", "nothing listens", "start it");
    let json = serde_json::to_string(&finding).unwrap();
    assert_eq!(
        json,
        r#"{"code":"no-listener","severity":"warning","subject":"app-redis-6379","cause":"nothing listens","#
            .to_owned()
            + r#""cure":"start it"}"#
    );
    let seen = finding.with_evidence("[::1]:6379");
    let json = serde_json::to_string(&seen).unwrap();
    assert!(json.contains(r#""subject":"app-redis-6379","evidence":"[::1]:6379","cause""#), "{json}");
    let back: Finding = serde_json::from_str(&json.replace("no-listener", "of-a-later-version")).unwrap();
    assert_eq!(back, Finding { code: "of-a-later-version".into(), ..seen });
}

#[test]
fn document_has_every_code() {
    let part = [("findings", chapters())];
    document::require("docs/troubleshooting.md", &part, "-p bridge-user --lib document_has").unwrap();
}

/// A chapter for each verb that finds something.
fn chapters() -> String {
    let mut text = String::new();
    let mut verb = "";
    for code in CODES {
        if code.verb != verb {
            verb = code.verb;
            text += &format!("\n## What {verb} says\n");
        }
        text += &format!("\n### {}\n\n{}", code.name, wrapped(&section(code)));
    }
    text + "\n"
}

fn section(code: &Code) -> String {
    let Code { severity, symptom, cause, see, cure, since, .. } = code;
    let mut text = format!("**{symptom}** ({severity}, since {since}). Cause: {cause}.");
    for (title, sentence) in [("See", see), ("Cure", cure)] {
        if !sentence.is_empty() {
            text += &format!(" {title}: {sentence}.");
        }
    }
    text
}

fn wrapped(text: &str) -> String {
    let mut lines = String::new();
    let mut line = String::new();
    for word in text.split(' ') {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > COLUMNS {
            lines += &format!("{line}\n");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines + &line + "\n"
}
