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

/// Left-aligned columns, two spaces apart.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let rows: Vec<[_; N]> = rows.iter().map(|row| row.each_ref().map(|cell| escaped(cell))).collect();
    let width = |cell: &str| cell.chars().count();
    let widths: [usize; N] =
        std::array::from_fn(|i| rows.iter().map(|row| width(&row[i])).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| padded(cell, width)).collect();
        push_line(&mut text, cells.join("  ").trim_end());
    }
    text
}

/// A cell as wide as its column. A format's own width has 16 bits, and panics beyond that.
fn padded(cell: &str, width: usize) -> String {
    let missing = width.saturating_sub(cell.chars().count());
    format!("{cell}{}", " ".repeat(missing))
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
    pub(crate) fn to_text(&self) -> String {
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
        let mut text = table(&rows);
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
        assert_eq!(table(&rows), "A    BB\nCCC  D\n");
    }

    #[test]
    fn no_cell_is_too_wide_or_more_than_one_line() {
        let rows = [["x".repeat(100_000), "B".to_owned()], ["a\nb".to_owned(), "\u{1b}[2J".to_owned()]];
        let text = table(&rows);
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
