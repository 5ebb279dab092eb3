//! Attachments as a table for people, and tables in general.

use crate::{
    model::{
        escape::{escaped, push_line},
        finding::Finding,
        presets,
    },
    observe::{
        readiness::Readiness,
        report::{AttachmentReport, Report},
    },
    plan,
};

/// Between two columns.
const GAP: &str = "  ";

/// Left-aligned columns, header first. Where they are wider than `width`, those in `movable` go below their rows, in
/// this order, until the rest fits.
pub(crate) fn table<const N: usize>(rows: &[[String; N]], movable: &[usize], width: usize) -> String {
    let rows: Vec<[_; N]> = rows.iter().map(|row| row.each_ref().map(|cell| escaped(cell))).collect();
    let widths: [usize; N] =
        std::array::from_fn(|i| rows.iter().map(|row| columns(&row[i])).max().unwrap_or(0));
    let mut shown: Vec<usize> = (0..N).collect();
    let mut below: Vec<usize> = Vec::new();
    for column in movable {
        if shown.iter().map(|at| widths[*at]).sum::<usize>() + GAP.len() * (shown.len() - 1) <= width {
            break;
        }
        shown.retain(|at| at != column);
        below.push(*column);
    }
    below.sort_unstable();
    let mut text = String::new();
    for (at, row) in rows.iter().enumerate() {
        let cells: Vec<_> = shown.iter().map(|column| padded(&row[*column], widths[*column])).collect();
        push_line(&mut text, cells.join(GAP).trim_end());
        let moved = below.iter().filter(|column| at > 0 && !row[**column].is_empty());
        let moved: Vec<_> = moved.map(|column| format!("{} {}", rows[0][*column], row[*column])).collect();
        joined(moved.iter().map(String::as_str), GAP, width.saturating_sub(GAP.len()))
            .iter()
            .for_each(|line| push_line(&mut text, &format!("{GAP}{line}")));
    }
    text
}

fn columns(text: &str) -> usize {
    text.chars().count()
}

/// A cell as wide as its column. A format's own width has 16 bits, and panics beyond that.
fn padded(cell: &str, width: usize) -> String {
    let missing = width.saturating_sub(columns(cell));
    format!("{cell}{}", " ".repeat(missing))
}

/// As many parts on each line as fit; one that is wider has a line of its own.
fn joined<'a>(parts: impl Iterator<Item = &'a str>, between: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        match lines.last_mut() {
            Some(line) if columns(line) + columns(between) + columns(part) <= width => {
                line.push_str(between);
                line.push_str(part);
            }
            _ => lines.push(part.to_owned()),
        }
    }
    lines
}

/// A table whose last column is text: its paragraphs stand one below the other, with lines as long as there is room.
pub(crate) fn table_of_text<const N: usize>(
    head: &[&str; N],
    rows: &[([String; N], Vec<String>)],
    text_head: &str,
    width: usize,
) -> String {
    let widest =
        |i: usize| rows.iter().map(|(row, _)| columns(&row[i])).max().unwrap_or(0).max(columns(head[i]));
    let widths: [usize; N] = std::array::from_fn(widest);
    let room = width.saturating_sub(widths.iter().map(|width| width + GAP.len()).sum());
    let start = |cells: &[&str; N]| -> String {
        cells.iter().zip(widths).map(|(cell, width)| padded(cell, width) + GAP).collect()
    };
    let mut text = String::new();
    push_line(&mut text, &(start(head) + text_head));
    for (row, paragraphs) in rows {
        let lines = paragraphs.iter().flat_map(|paragraph| joined(paragraph.split_whitespace(), " ", room));
        for (at, line) in lines.enumerate() {
            let cells = if at == 0 { row.each_ref().map(String::as_str) } else { [""; N] };
            push_line(&mut text, (start(&cells) + &line).trim_end());
        }
    }
    text
}

/// A list that fits into a column. JSON has all of it.
fn few(items: &[String]) -> String {
    plan::few(items, ",", 6)
}

/// One line for each finding: whom it is about, cause and cure.
pub(crate) fn lines(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        push_line(&mut text, &format!("{}: {finding}", finding.subject));
    }
    text
}

impl Readiness {
    /// As it is in JSON.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::WaitingForListener => "waiting-for-listener",
            Self::WaitingForBridge => "waiting-for-bridge",
            Self::Conflict => "conflict",
            Self::BlockedByFirewall => "blocked-by-firewall",
            Self::Failed => "failed",
        }
    }
}

impl Report {
    /// As a table for people, findings below.
    pub(crate) fn to_text(&self, width: usize) -> String {
        if self.attachments.is_empty() {
            if !self.findings.is_empty() {
                return "no attachment can be shown\n".to_owned();
            }
            return "nothing is attached in this network namespace\n".to_owned();
        }
        let header =
            ["NAME", "STATE", "DATAPATH", "GATEWAY", "TARGET", "ALLOW", "ACCEPTED", "DENIED", "NO-LISTENER"];
        let mut rows = vec![header.map(str::to_owned)];
        rows.extend(self.attachments.iter().map(AttachmentReport::row));
        // What a line can do without first: allow-list, target, datapath, counters; the gateway last.
        let mut text = table(&rows, &[5, 4, 2, 8, 7, 6, 3], width);
        for entry in &self.attachments {
            text.push_str(&lines(&entry.findings));
        }
        text
    }
}

impl AttachmentReport {
    /// What to put into the container.
    pub(crate) fn connect_line(&self) -> Option<String> {
        let variable = presets::connect(&self.service).variable;
        let sign = if variable.is_empty() { "" } else { "=" };
        let each: Vec<_> = self.connect.iter().map(|url| format!("{variable}{sign}{url}")).collect();
        if each.is_empty() {
            None
        } else {
            Some(format!("{}: containers use {}", self.name, each.join(" or ")))
        }
    }

    fn row(&self) -> [String; 9] {
        let bracketed = |g: &String| if g.contains(':') { format!("[{g}]") } else { g.clone() };
        let gateways = self.gateways.iter().map(|g| format!("{}:{}", bracketed(g), self.port));
        [
            self.name.clone(),
            self.state.text().to_owned(),
            self.datapath.to_string(),
            plan::list(gateways),
            self.target.clone(),
            few(&self.allowed()),
            self.counters.accepted.to_string(),
            self.counters.denied.to_string(),
            self.counters.no_listener.to_string(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["A".to_owned(), "BB".to_owned()], ["CCC".to_owned(), "D".to_owned()]];
        assert_eq!(table(&rows, &[], 0), "A    BB\nCCC  D\n");
    }

    #[test]
    fn what_is_too_wide_goes_below_its_row() {
        let rows = [["A", "BB", "C"], ["1", "long", "x"], ["2", "", "y"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows, &[1, 0], 10), "A  BB    C\n1  long  x\n2        y\n");
        assert_eq!(table(&rows, &[1, 0], 9), "A  C\n1  x\n  BB long\n2  y\n");
        assert_eq!(table(&rows, &[1, 0], 3), "C\nx\n  A 1\n  BB long\ny\n  A 2\n");
        assert_eq!(table(&rows, &[1, 2], 1), "A\n1\n  BB long\n  C x\n2\n  C y\n");
    }

    #[test]
    fn text_is_wrapped_beside_its_row() {
        let row =
            |name: &str, text: &str| ([name.to_owned()], vec!["one two three".to_owned(), text.to_owned()]);
        let text = table_of_text(&["NAME"], &[row("a", "four"), row("b", "five")], "TEXT", 14);
        assert_eq!(
            text,
            "NAME  TEXT\na     one two\n      three\n      four\nb     one two\n      three\n      five\n"
        );
    }

    #[test]
    fn no_cell_is_too_wide_or_more_than_one_line() {
        let rows = [["x".repeat(100_000), "B".to_owned()], ["a\nb".to_owned(), "\u{1b}[2J".to_owned()]];
        let text = table(&rows, &[], 80);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(
            lines[1].starts_with(r"a\nb ") && lines[1].ends_with(r"  \u{1b}[2J"),
            "{:?}",
            lines[1].trim()
        );
    }

    #[test]
    fn long_lists_are_cut() {
        let items = |count| (0..count).map(|at: u32| at.to_string()).collect::<Vec<_>>();
        assert_eq!(few(&items(0)), "");
        assert_eq!(few(&items(6)), "0,1,2,3,4,5");
        assert_eq!(few(&items(65_536)), "0,1,2,3,4,5 and 65530 more");
    }
}
