//! `tests/kernels-seen.toml`: which datapath served which kind of listener, as the trials `kinds::*` found it inside
//! each kernel. Written by `cargo xtask vm --record`; every other run is compared with it.
//!
//! Invariants: an entry belongs to one package version of its kernel; it is complete, or not written.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::vm::{
    console::Scope,
    manifest::{Kernel, Manifest},
    record,
    table::KINDS,
};

const HEADER: &str = "\
# What the trials `kinds::*` found inside the kernels of kernels.toml: kind of listener, datapath asked for, and what
# served it. Written by `cargo xtask vm --record KERNEL... -- kinds`; do not edit.
";

/// How the suite marks what a kernel showed.
const MARK: &str = "served: ";

/// Kind of listener; datapath asked for; datapath that served it, or why none did.
pub(super) type Rows = BTreeMap<String, BTreeMap<String, String>>;

/// The whole file.
#[derive(Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Seen {
    #[serde(rename = "kernel", default)]
    kernels: Vec<Entry>,
}

/// What one kernel showed.
#[derive(Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    name: String,
    version: String,
    /// What was served.
    pub(super) served: Rows,
}

/// Takes in one line of the suite. Lines without the mark are none of its business.
///
/// # Errors
/// When a marked line cannot be read.
pub(super) fn take(line: &str, rows: &mut Rows) -> Result<(), String> {
    let Some(text) = line.strip_prefix(MARK) else { return Ok(()) };
    let fields: Vec<&str> = text.split(" | ").map(str::trim).collect();
    let ([kind, requested, datapath], true) = (&fields[..], fields.iter().all(|field| !field.is_empty()))
    else {
        return Err(format!("expected {MARK}KIND | REQUESTED | DATAPATH, found {line}"));
    };
    let row = rows.entry((*kind).to_owned()).or_default();
    row.insert((*requested).to_owned(), (*datapath).to_owned());
    Ok(())
}

impl Seen {
    /// Reads the file; without one, nothing was seen.
    pub(super) fn read(path: &Path) -> Result<Self> {
        record::read(path)
    }

    /// Writes the file.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        record::write(path, HEADER, self)
    }

    /// What this kernel showed, if it was ever asked.
    ///
    /// # Errors
    /// When it was another version of it.
    pub(super) fn of(&self, kernel: &Kernel) -> Result<Option<&Entry>, String> {
        let found = self.kernels.iter().find(|entry| entry.name == kernel.name);
        match found {
            Some(entry) if entry.version != kernel.version => Err(format!(
                "tests/kernels-seen.toml has what version {} showed, and tests/kernels.toml names {}: {}",
                entry.version,
                kernel.version,
                cure(&kernel.name)
            )),
            found => Ok(found),
        }
    }

    /// Puts what a kernel showed in the place of what is there.
    pub(super) fn put(&mut self, kernel: &Kernel, rows: &Rows) -> Result<()> {
        let kinds: Vec<&str> = rows.keys().map(String::as_str).collect();
        let mut known = KINDS.map(|(kind, _)| kind);
        known.sort_unstable();
        ensure!(
            kinds == known,
            "failed to record kernel {}: it showed listeners of kind {kinds:?}, expected {known:?}: {}",
            kernel.name,
            cure(&kernel.name)
        );
        self.kernels.retain(|entry| entry.name != kernel.name);
        let (name, version) = (kernel.name.clone(), kernel.version.clone());
        self.kernels.push(Entry { name, version, served: rows.clone() });
        Ok(())
    }

    /// Keeps the order of the kernel list, and only what is in it.
    pub(super) fn align(&mut self, manifest: &Manifest) {
        let place = |name: &str| manifest.kernels.iter().position(|kernel| kernel.name == name);
        self.kernels.retain(|entry| place(&entry.name).is_some());
        self.kernels.sort_by_key(|entry| place(&entry.name));
    }

    /// Whatever this run showed that is not in the file, and, where everything ran, the other way round.
    pub(super) fn differences(&self, kernel: &Kernel, rows: &Rows, scope: Scope) -> Vec<String> {
        if rows.is_empty() && scope == Scope::Part {
            return Vec::new();
        }
        let recorded = match self.of(kernel) {
            Ok(Some(entry)) => &entry.served,
            Ok(None) => {
                return vec![format!(
                    "tests/kernels-seen.toml has nothing of kernel {}: {}",
                    kernel.name,
                    cure(&kernel.name)
                )];
            }
            Err(stale) => return vec![stale],
        };
        let all: BTreeSet<(&str, &str)> = keys(recorded).chain(keys(rows)).collect();
        let differs = |(kind, requested)| {
            let (expected, seen) = (cell(recorded, kind, requested), cell(rows, kind, requested));
            let left_out = seen.is_none() && scope == Scope::Part;
            (expected != seen && !left_out).then(|| {
                format!(
                    "kernel {}, {kind} listener, --datapath {requested}: expected {} (tests/kernels-seen.toml), \
                     seen {}: if that is right, {}",
                    kernel.name,
                    expected.unwrap_or("nothing"),
                    seen.unwrap_or("nothing"),
                    cure(&kernel.name)
                )
            })
        };
        all.into_iter().filter_map(differs).collect()
    }
}

fn cure(kernel: &str) -> String {
    format!("run cargo xtask vm --record {kernel} -- kinds")
}

/// Every kind with everything that was asked for.
fn keys(rows: &Rows) -> impl Iterator<Item = (&str, &str)> {
    rows.iter().flat_map(|(kind, row)| row.keys().map(move |requested| (kind.as_str(), requested.as_str())))
}

fn cell<'a>(rows: &'a Rows, kind: &str, requested: &str) -> Option<&'a str> {
    rows.get(kind)?.get(requested).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::{Rows, Seen, take};
    use crate::vm::{console::Scope, manifest::Manifest, table::KINDS};

    fn manifest() -> Manifest {
        let kernel = |name| {
            format!("[[kernel]]\nname = \"{name}\"\nversion = \"{name}.9-1\"\nsuite = \"s\"\ntimeout = 1\n")
        };
        toml::from_str(&(kernel("5.10") + &kernel("6.1"))).unwrap()
    }

    fn rows(datapath: &str) -> Rows {
        let mut rows = Rows::new();
        for (kind, _) in KINDS {
            take(&format!("served: {kind} | auto | {datapath}"), &mut rows).unwrap();
        }
        rows
    }

    #[test]
    fn lines_are_taken_or_refused() {
        let mut rows = Rows::new();
        take("test kinds::ipv4 ... ok", &mut rows).unwrap();
        assert!(rows.is_empty());
        take("served: ipv4 | sockmap | known bugs", &mut rows).unwrap();
        assert_eq!(rows["ipv4"]["sockmap"], "known bugs");
        for bad in ["served: ipv4 | auto", "served: ipv4 |  | steer", "served: a | b | c | d", "served: "] {
            let error = take(bad, &mut rows).unwrap_err();
            assert!(error.contains("KIND | REQUESTED | DATAPATH") && error.contains(bad), "{error}");
        }
    }

    #[test]
    fn what_was_recorded_is_read_back_in_the_order_of_the_kernels() -> anyhow::Result<()> {
        let manifest = manifest();
        let [old, new] = &manifest.kernels[..] else { panic!("two kernels") };
        let mut seen = Seen::default();
        seen.put(new, &rows("steer"))?;
        seen.put(old, &rows("splice"))?;
        seen.put(new, &rows("steer-tc"))?;
        seen.align(&manifest);
        assert_eq!(seen.kernels.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>(), ["5.10", "6.1"]);
        assert_eq!(seen.of(new).unwrap().unwrap().served, rows("steer-tc"));
        let path = tempfile::tempdir()?;
        let path = path.path().join("seen.toml");
        assert_eq!(Seen::read(&path)?, Seen::default());
        seen.write(&path)?;
        assert_eq!(Seen::read(&path)?, seen);
        Ok(())
    }

    #[test]
    fn half_a_run_is_not_recorded() {
        let manifest = manifest();
        let mut part = rows("steer");
        part.remove("unix");
        let error = Seen::default().put(&manifest.kernels[0], &part).unwrap_err().to_string();
        assert!(error.contains("kernel 5.10") && error.contains("-- kinds"), "{error}");
    }

    #[test]
    fn a_run_is_compared_with_what_was_recorded() {
        let manifest = manifest();
        let kernel = &manifest.kernels[1];
        let mut seen = Seen::default();
        seen.put(kernel, &rows("steer")).unwrap();
        for scope in [Scope::Whole, Scope::Part] {
            assert!(seen.differences(kernel, &rows("steer"), scope).is_empty());
        }
        assert!(seen.differences(kernel, &Rows::new(), Scope::Part).is_empty());
        assert_eq!(seen.differences(kernel, &Rows::new(), Scope::Whole).len(), KINDS.len());
        let mut other = rows("steer");
        other.get_mut("ipv6").unwrap().insert("auto".into(), "splice".into());
        assert_eq!(
            seen.differences(kernel, &other, Scope::Part),
            [
                "kernel 6.1, ipv6 listener, --datapath auto: expected steer (tests/kernels-seen.toml), seen splice: \
              if that is right, run cargo xtask vm --record 6.1 -- kinds"
            ]
        );
        other.insert("new".into(), other["unix"].clone());
        let new = &seen.differences(kernel, &other, Scope::Whole)[1];
        assert!(new.contains("new listener") && new.contains("expected nothing"), "{new}");
        let unknown = seen.differences(&manifest.kernels[0], &rows("steer"), Scope::Part);
        assert!(unknown.len() == 1 && unknown[0].contains("has nothing of kernel 5.10"), "{unknown:?}");
    }

    #[test]
    fn another_version_is_to_be_recorded_again() {
        let mut manifest = manifest();
        let mut seen = Seen::default();
        seen.put(&manifest.kernels[1], &rows("steer")).unwrap();
        "6.1.10-1".clone_into(&mut manifest.kernels[1].version);
        let [stale] = &seen.differences(&manifest.kernels[1], &rows("steer"), Scope::Part)[..] else {
            panic!("one difference")
        };
        assert!(stale.contains("6.1.9-1") && stale.contains("6.1.10-1") && stale.contains("--record 6.1"));
    }
}
