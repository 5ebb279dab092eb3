//! The tables of `docs/kernels.md`, made from `tests/kernels.toml`, `tests/kernels-seen.toml` and
//! `tests/kernels-full.toml`.
//!
//! Invariants: the text around the tables is the document's own and stays; the same files give the same tables.

use std::fs;

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::{
    vm::{
        FULL, KERNELS, SEEN,
        full::FullRuns,
        manifest::{Kernel, Manifest},
        seen::{Entry, Seen},
    },
    workspace::Workspace,
};

const DOCUMENT: &str = "docs/kernels.md";
const CURE: &str = "run cargo xtask kernel-table";
/// Where a table ends.
const END: &str = "<!-- end of the generated table -->";

/// The kinds of listeners that the trials `kinds::*` try, and what the table calls them.
pub(super) const KINDS: [(&str, &str); 7] = [
    ("ipv4", "`127.0.0.1`"),
    ("ipv6", "`[::1]`"),
    ("dual-stack", "`[::]`"),
    ("reuseport", "SO_REUSEPORT"),
    ("mptcp-ipv4", "MPTCP `127.0.0.1`"),
    ("mptcp-ipv6", "MPTCP `[::1]`"),
    ("unix", "UNIX socket"),
];
/// What `check` is expected to say, in the order of the columns.
const CAPABILITIES: [&str; 5] = ["steer", "steer_tc", "loopback_identity", "ingress_ifindex", "netns_cookie"];
/// What a kernel without MPTCP says about such listeners; the table of `auto` shows it.
const NO_MPTCP: &str = "no MPTCP";
/// The relays one can ask for by name.
const RELAYS: [&str; 2] = ["splice", "sockmap"];

/// The command: writes the tables into the document.
pub(crate) fn write(ws: &Workspace) -> Result<()> {
    let (old, new) = document(ws)?;
    if old != new {
        fs::write(ws.path(DOCUMENT), new).with_context(|| format!("failed to write {DOCUMENT}"))?;
    }
    Ok(())
}

/// Requires that the document has the tables that would be written.
pub(crate) fn check(ws: &Workspace) -> Result<()> {
    let (old, new) = document(ws)?;
    let lines = old.lines().zip(new.lines()).zip(1..);
    let first = lines.clone().find(|((old, new), _)| old != new).map_or(old.lines().count(), |(_, at)| at);
    ensure!(
        old == new,
        "failed to check {DOCUMENT}: line {first} is not what the kernel list and the last recorded runs give: {CURE}"
    );
    Ok(())
}

/// The document as it is, and as it should be.
fn document(ws: &Workspace) -> Result<(String, String)> {
    let manifest = Manifest::read(&ws.path(KERNELS))?;
    let seen = Seen::read(&ws.path(SEEN))?;
    let full = FullRuns::read(&ws.path(FULL))?;
    let old = fs::read_to_string(ws.path(DOCUMENT)).with_context(|| format!("failed to read {DOCUMENT}"))?;
    let tables = tables(&manifest, &seen, &full)
        .with_context(|| format!("failed to make the tables of {DOCUMENT}"))?;
    let new = fill(&old, &tables)?;
    Ok((old, new))
}

/// Every table with its name.
fn tables(manifest: &Manifest, seen: &Seen, full: &FullRuns) -> Result<[(&'static str, String); 4]> {
    let entries = manifest.kernels.iter().map(|kernel| {
        let entry = seen.of(kernel).map_err(|stale| anyhow!("kernel {}: {stale}", kernel.name))?;
        Ok((kernel, entry))
    });
    let all = entries.collect::<Result<Vec<_>>>()?;
    Ok([
        ("kernels", kernels(&manifest.kernels)),
        ("auto", per_kernel(&all, &KINDS.map(|(_, title)| title.to_owned()), auto)),
        (
            "relays",
            per_kernel(&all, &RELAYS.map(|name| format!("`--datapath {name}`")), |entry| {
                RELAYS.map(|name| relay(entry, name)).to_vec()
            }),
        ),
        ("full", full_runs(&manifest.kernels, full)),
    ])
}

/// When every trial last passed.
fn full_runs(kernels: &[Kernel], full: &FullRuns) -> String {
    let rows = kernels.iter().map(|kernel| match full.of(kernel) {
        Some(run) => vec![
            kernel.name.clone(),
            run.date.clone(),
            format!("`{}`", run.commit),
            run.passed.to_string(),
            run.skipped.to_string(),
        ],
        None => [vec![kernel.name.clone()], vec!["not recorded".to_owned(); 4]].concat(),
    });
    markdown(&["Linux", "date", "commit", "passed", "skipped"].map(str::to_owned), rows)
}

fn kernels(kernels: &[Kernel]) -> String {
    let yes_or_no = |kernel: &Kernel, name: &str| match kernel.expect.get(name) {
        Some(true) => "yes".to_owned(),
        Some(false) => "no".to_owned(),
        None => "not checked".to_owned(),
    };
    let rows = kernels.iter().map(|kernel| {
        let default = if kernel.default { "yes" } else { "no" };
        let mut cells =
            vec![kernel.name.clone(), kernel.version.clone(), kernel.suite.clone(), default.to_owned()];
        cells.extend(CAPABILITIES.iter().map(|name| yes_or_no(kernel, name)));
        cells
    });
    let capabilities = CAPABILITIES.map(|name| format!("`{name}`"));
    let titles = ["Linux", "Debian version", "suite", "default set"].map(str::to_owned);
    markdown(&[&titles[..], &capabilities].concat(), rows)
}

/// A row for each kernel; what no run was recorded of says so.
fn per_kernel(
    all: &[(&Kernel, Option<&Entry>)],
    titles: &[String],
    cells: impl Fn(&Entry) -> Vec<String>,
) -> String {
    let rows = all.iter().map(|(kernel, entry)| {
        let cells = entry.map_or_else(|| vec!["not recorded".to_owned(); titles.len()], &cells);
        [vec![kernel.name.clone()], cells].concat()
    });
    markdown(&[&["Linux".to_owned()], titles].concat(), rows)
}

/// What served each kind when nothing was asked for.
fn auto(entry: &Entry) -> Vec<String> {
    let served = |kind: &str| entry.served.get(kind).and_then(|row| row.get("auto"));
    KINDS.iter().map(|(kind, _)| served(kind).map_or("not recorded", String::as_str).to_owned()).collect()
}

/// What a relay that was asked for came to: one word where that is the same for every kind of listener.
fn relay(entry: &Entry, name: &str) -> String {
    let mut outcomes: Vec<(&str, Vec<&str>)> = Vec::new();
    for (kind, title) in KINDS {
        let Some(outcome) = entry.served.get(kind).and_then(|row| row.get(name)) else { continue };
        if outcome == NO_MPTCP {
            continue;
        }
        match outcomes.iter_mut().find(|(known, _)| known == outcome) {
            Some((_, kinds)) => kinds.push(title),
            None => outcomes.push((outcome, vec![title])),
        }
    }
    match &outcomes[..] {
        [] => "not recorded".to_owned(),
        [(outcome, _)] => (*outcome).to_owned(),
        several => {
            let parts = several.iter().map(|(outcome, kinds)| format!("{outcome}: {}", kinds.join(", ")));
            parts.collect::<Vec<_>>().join("; ")
        }
    }
}

fn markdown(titles: &[String], rows: impl Iterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule = line(&vec!["---".to_owned(); titles.len()]);
    [line(titles), rule].into_iter().chain(rows.map(|cells| line(&cells))).collect()
}

/// Replaces what stands between the marks of each table.
fn fill(text: &str, tables: &[(&str, String)]) -> Result<String> {
    let mut text = text.to_owned();
    for (name, table) in tables {
        let begin = format!("<!-- generated table: {name} -->\n");
        let parts = text.split_once(&begin).and_then(|(before, rest)| {
            let (_, after) = rest.split_once(END)?;
            Some(format!("{before}{begin}{table}{END}{after}"))
        });
        let Some(filled) = parts else {
            bail!(
                "failed to find the place of table {name} in {DOCUMENT}: expected a line {} and a line {END}: put them \
                 back, and {CURE}",
                begin.trim_end()
            );
        };
        text = filled;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::{END, KINDS, fill, tables};
    use crate::vm::{
        full::FullRuns,
        manifest::Manifest,
        seen::{Rows, Seen, take},
    };

    fn manifest() -> Manifest {
        toml::from_str(
            "[[kernel]]\nname = \"5.10\"\nversion = \"5.10.1-1\"\nsuite = \"old\"\ntimeout = 1\ndefault = true\n\
             expect = { steer = true, steer_tc = false, netns_cookie = false }\n\
             [[kernel]]\nname = \"6.1\"\nversion = \"6.1.9-1\"\nsuite = \"new\"\ntimeout = 1\n",
        )
        .unwrap()
    }

    fn seen(manifest: &Manifest) -> Seen {
        let mut rows = Rows::new();
        for (kind, _) in KINDS {
            let mptcp = kind.starts_with("mptcp");
            let outcomes = match kind {
                "unix" => vec![("auto", "splice")],
                _ if mptcp => ["auto", "splice", "sockmap"].map(|asked| (asked, "no MPTCP")).to_vec(),
                "ipv6" => vec![("auto", "steer"), ("splice", "splice"), ("sockmap", "known bugs")],
                _ => vec![("auto", "steer"), ("splice", "splice"), ("sockmap", "sockmap")],
            };
            for (requested, datapath) in outcomes {
                take(&format!("served: {kind} | {requested} | {datapath}"), &mut rows).unwrap();
            }
        }
        let mut seen = Seen::default();
        seen.put(&manifest.kernels[0], &rows).unwrap();
        seen
    }

    #[test]
    fn tables_show_what_is_known() -> anyhow::Result<()> {
        let manifest = manifest();
        let [(_, kernels), (_, auto), (_, relays), (_, full)] =
            tables(&manifest, &seen(&manifest), &FullRuns::default())?;
        assert_eq!(
            full.lines().nth(2),
            Some("| 5.10 | not recorded | not recorded | not recorded | not recorded |")
        );
        let rows: Vec<&str> = kernels.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| 5.10 | 5.10.1-1 | old | yes | yes | no | not checked | not checked | no |",
                "| 6.1 | 6.1.9-1 | new | no | not checked | not checked | not checked | not checked | not checked |"
            ]
        );
        assert_eq!(
            auto.lines().nth(2),
            Some("| 5.10 | steer | steer | steer | steer | no MPTCP | no MPTCP | splice |")
        );
        assert_eq!(auto.lines().nth(3).map(|row| row.matches("not recorded").count()), Some(KINDS.len()));
        assert_eq!(
            relays.lines().nth(2),
            Some("| 5.10 | splice | sockmap: `127.0.0.1`, `[::]`, SO_REUSEPORT; known bugs: `[::1]` |")
        );
        Ok(())
    }

    #[test]
    fn what_another_version_showed_is_no_table() {
        let mut manifest = manifest();
        let seen = seen(&manifest);
        "5.10.2-1".clone_into(&mut manifest.kernels[0].version);
        let error = format!("{:#}", tables(&manifest, &seen, &FullRuns::default()).unwrap_err());
        assert!(error.contains("kernel 5.10") && error.contains("--record 5.10"), "{error}");
    }

    #[test]
    fn only_the_tables_of_a_document_are_replaced() {
        let document =
            |table: &str| format!("# Text\n\n<!-- generated table: a -->\n{table}{END}\n\nMore.\n");
        let new = [("a", "| new |\n".to_owned())];
        for old in ["", "| old |\n| old |\n", "| new |\n"] {
            assert_eq!(fill(&document(old), &new).unwrap(), document("| new |\n"));
        }
        for broken in ["# Text\n", "<!-- generated table: a -->\n"] {
            let error = fill(broken, &new).unwrap_err().to_string();
            assert!(error.contains("table a") && error.contains(END), "{error}");
        }
    }
}
