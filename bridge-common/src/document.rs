//! Parts of the repository's documents that are written by code, for the tests that keep both the same.
//!
//! Invariants: a part stands between `<!-- generated: NAME -->` and the next `<!-- end -->`, each on a line of its own;
//! nothing else of a document is changed, and nothing at all unless `UPDATE_DOCS` is in the environment.

use std::{env, format, fs, path::Path, string::String};

/// The workspace's root.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const END: &str = "<!-- end -->";

/// Requires that the document at this path, below the workspace's root, has these parts, by name; with `UPDATE_DOCS`,
/// writes them into it. `test` selects the test that asks, as arguments of `cargo test`.
///
/// # Errors
/// When it cannot be read or written, has no place for a part, or has another text there; says what to do.
pub fn require(path: &str, parts: &[(&str, String)], test: &str) -> Result<(), String> {
    let file = Path::new(ROOT).join(path);
    let document = fs::read_to_string(&file).map_err(|error| format!("failed to read {path}: {error}"))?;
    let expected = filled(&document, parts).map_err(|error| format!("failed to fill {path}: {error}"))?;
    if document == expected {
        return Ok(());
    }
    if env::var_os("UPDATE_DOCS").is_some() {
        return fs::write(&file, expected).map_err(|error| format!("failed to write {path}: {error}"));
    }
    Err(format!(
        "{path} is not what the code says: run `UPDATE_DOCS=1 cargo test {test}` and commit the document"
    ))
}

/// The document with these parts between their marks.
fn filled(document: &str, parts: &[(&str, String)]) -> Result<String, String> {
    let mut filled = String::from(document);
    for (name, text) in parts {
        let begin = format!("<!-- generated: {name} -->\n");
        let place =
            filled.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
        let Some((before, after)) = place else {
            let mark = begin.trim_end();
            return Err(format!("expected a line {mark} and after it a line {END}: put them back"));
        };
        filled = format!("{before}{begin}{text}{END}{after}");
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_parts_of_a_document_are_replaced() {
        let document = |a: &str, b: &str| {
            format!("Top\n<!-- generated: a -->\n{a}{END}\n<!-- generated: b -->\n{b}{END}\nMore\n")
        };
        let new = [("b", String::from("two\n")), ("a", String::from("one\n"))];
        for old in ["", "one\n", "other\nlines\n"] {
            assert_eq!(filled(&document(old, "old\n"), &new).unwrap(), document("one\n", "two\n"));
        }
        for broken in ["Top\n", "<!-- generated: b -->\n"] {
            let error = filled(broken, &new).unwrap_err();
            assert!(error.contains("generated: b") && error.contains(END), "{error}");
        }
    }
}
