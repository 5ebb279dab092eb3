//! Text from outside, made harmless for whoever reads it: names of processes, interfaces, networks and containers, and
//! what engines and other programs say.
//!
//! Invariants: what comes of a text is on one line, moves no cursor, and stands in the order in which it is read; text
//! without odd characters stays as it is. Every line for people goes through here, as a whole, where it is written.

use std::borrow::Cow;

/// The text with its odd characters written out, as `\n` or `\u{1b}`.
pub fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(is_odd) {
        return Cow::Borrowed(text);
    }
    let one = |c: char| if is_odd(c) { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(one).collect())
}

/// A word as every shell takes it: in quotes if one of them would make something else of it.
pub fn quoted(word: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_./:=@%+,-".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return Cow::Borrowed(word);
    }
    Cow::Owned(format!("'{}'", word.replace('\'', r"'\''")))
}

/// Appends a line, its end included.
pub fn push_line(text: &mut String, line: &str) {
    text.push_str(&escaped(line));
    text.push('\n');
}

/// Control characters (C0, DEL, C1), and those that turn the direction of text, are not seen, or end a line.
fn is_odd(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_characters_are_written_out() {
        for (text, expected) in [
            ("redis-server (pid 812)", "redis-server (pid 812)"),
            ("a\nb\tc", r"a\nb\tc"),
            ("\u{1b}[31mred", r"\u{1b}[31mred"),
            ("c1 \u{9b}2J", r"c1 \u{9b}2J"),
            ("ab\u{202e}dc\u{2066}", r"ab\u{202e}dc\u{2066}"),
            ("\u{7f}\u{2028}\u{feff}", r"\u{7f}\u{2028}\u{feff}"),
            ("żółw 網 ✓", "żółw 網 ✓"),
        ] {
            assert_eq!(escaped(text), expected);
        }
    }

    #[test]
    fn a_word_is_quoted_where_a_shell_would_read_more_than_letters() {
        for plain in ["web=8080:127.0.0.1:80", "172.17.0.0/16", "a_b.c-d"] {
            assert_eq!(quoted(plain), plain);
        }
        for (word, expected) in [("", "''"), ("8080:[::1]:80", "'8080:[::1]:80'"), ("a'b*", r"'a'\''b*'")] {
            assert_eq!(quoted(word), expected);
        }
    }

    #[test]
    fn a_line_is_one_line() {
        let mut text = String::new();
        push_line(&mut text, "1. attach\n2. pretend");
        assert_eq!(text, "1. attach\\n2. pretend\n");
    }
}
