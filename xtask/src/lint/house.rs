//! The house rules of ARCHITECTURE.md that a text shows: which module of bridge-user may use which, which crates belong
//! to one module, who prints, and where `unsafe` stands.
//!
//! Invariants: pure, texts in, problems out; comments and unit tests are not held to the rules. What is not listed here
//! is forbidden, so a new module has to be given its place.

use std::collections::BTreeSet;

use super::documents::Problem;

/// Where bridge-user's modules are.
const LIBRARY: &str = "bridge-user/src/";
/// What the crate's root offers to everybody.
const ROOT: [&str; 1] = ["UsageError"];

/// The modules, from the bottom up, with those they may use.
const MODULES: [(&str, &[&str]); 18] = [
    ("model", &[]),
    ("systemd", &[]),
    ("net", &["model"]),
    ("scope", &["net"]),
    ("netfilter", &["model", "net"]),
    ("kernel", &["model", "net", "netfilter", "scope"]),
    ("engine", &["model"]),
    ("relay", &["kernel", "model", "net"]),
    ("probe", &["kernel", "model", "net", "netfilter", "relay", "scope"]),
    ("plan", &["model", "relay"]),
    ("config", &["model", "plan", "relay"]),
    ("import", &["model", "net"]),
    ("observe", &["engine", "kernel", "model", "net", "netfilter", "plan", "probe", "relay", "scope"]),
    ("runner", &["kernel", "model", "net", "observe", "plan", "relay", "scope"]),
    ("apply", &["kernel", "model", "net", "observe", "plan", "relay", "runner", "scope"]),
    (
        "daemon",
        &[
            "apply", "config", "engine", "kernel", "model", "net", "observe", "plan", "relay", "runner",
            "scope",
        ],
    ),
    (
        "verbs",
        &[
            "apply",
            "cli",
            "config",
            "daemon",
            "engine",
            "import",
            "kernel",
            "model",
            "net",
            "netfilter",
            "observe",
            "plan",
            "probe",
            "relay",
            "runner",
            "scope",
            "systemd",
        ],
    ),
    ("cli", &["model", "observe", "plan", "scope", "verbs"]),
];

/// What only these modules may name, and why.
const OWNED: [(&[&str], &[&str], &str); 3] = [
    (&["aya::", "use aya;", "aya_obj::", "aya_log::"], &["kernel"], "eBPF is the affair of kernel/"),
    (&["bollard::", "use bollard;"], &["engine"], "engines are the affair of engine/"),
    (
        &["println!", "eprintln!", "print!", "eprint!"],
        &["cli", "verbs"],
        "library code returns values, verbs print them",
    ),
];

/// What does no I/O does not name these.
const PURE: [&str; 2] = ["model", "plan"];
const EFFECTS: [&str; 5] = ["std::fs", "std::net::Tcp", "std::net::Udp", "std::process", "tokio::"];

/// Where `unsafe` stands.
const UNSAFE: [&str; 8] = [
    "bridge-common/src/maps.rs",
    "bridge-common/src/relay.rs",
    "bridge-ebpf/src/",
    "bridge-user/src/kernel/sys.rs",
    "bridge-user/src/kernel/sys/",
    "bridge-user/src/net/proc_fd.rs",
    "bridge-user/src/net/sys.rs",
    "tests/src/harness/sys.rs",
];

/// Everything in a Rust file that is against the rules.
pub(super) fn problems(file: &str, text: &str) -> Vec<Problem> {
    let mut problems = unsafe_code(file, text);
    let Some(path) = file.strip_prefix(LIBRARY) else { return problems };
    let is_test = path.contains("tests");
    let module = path.split('/').next().unwrap_or(path).trim_end_matches(".rs");
    if is_test || ["lib", "main"].contains(&module) {
        return problems;
    }
    let code: Vec<&str> =
        text.lines().take_while(|line| *line != "#[cfg(test)]").map(without_comment).collect();
    problems.extend(foreign_modules(file, module, &code.join("\n")));
    for (at, line) in code.iter().enumerate() {
        problems.extend(foreign_names(module, line).map(|text| Problem::new(file, at + 1, text)));
    }
    problems
}

fn without_comment(line: &str) -> &str {
    if line.trim_start().starts_with("//") { "" } else { line }
}

fn unsafe_code(file: &str, text: &str) -> Vec<Problem> {
    if UNSAFE.iter().any(|place| file.starts_with(place)) {
        return Vec::new();
    }
    let is_unsafe =
        |line: &str| ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|sign| line.contains(sign));
    let found = text
        .lines()
        .map(without_comment)
        .enumerate()
        .filter(|(_, line)| is_unsafe(line) && !line.contains('"'));
    found
        .map(|(at, _)| {
            let text = format!("unsafe code, expected only in {}: move it there", UNSAFE.join(", "));
            Problem::new(file, at + 1, text)
        })
        .collect()
}

fn foreign_modules(file: &str, module: &str, code: &str) -> Vec<Problem> {
    let Some((_, allowed)) = MODULES.iter().find(|(name, _)| *name == module) else {
        let text =
            format!("module {module} has no place in xtask/src/lint/house.rs: say there what it may use");
        return vec![Problem::new(file, 1, text)];
    };
    let used = modules_used(code);
    let foreign = used.iter().filter(|name| {
        let name = name.as_str();
        name != module && !allowed.contains(&name) && !ROOT.contains(&name)
    });
    foreign
        .map(|name| {
            let may = if allowed.is_empty() { "no other".to_owned() } else { allowed.join(", ") };
            let text =
                format!("module {module} uses {name}, expected {may}: move what it needs, or the caller up");
            Problem::new(file, 1, text)
        })
        .collect()
}

/// The modules of the crate that a text names, alone (`crate::net::…`) or in a group (`use crate::{net::…, plan}`).
fn modules_used(code: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => used.extend(heads(group)),
            None => used.extend(Some(identifier(rest)).filter(|name| !name.is_empty())),
        }
    }
    used
}

/// The first identifier of each entry of a group, up to its closing brace.
fn heads(group: &str) -> Vec<String> {
    let (mut depth, mut start, mut heads) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                heads.extend(Some(identifier(group[start..at].trim_start())).filter(|name| !name.is_empty()));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    heads
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

fn foreign_names(module: &str, line: &str) -> Option<String> {
    for (names, owners, why) in OWNED {
        let named = names.iter().find(|name| names_it(line, name));
        if let Some(name) = named.filter(|_| !owners.contains(&module)) {
            return Some(format!(
                "{name} in module {module}, expected only in {}: {why}",
                owners.join(" and ")
            ));
        }
    }
    let effect = EFFECTS.iter().find(|effect| names_it(line, effect)).filter(|_| PURE.contains(&module))?;
    Some(format!(
        "{effect} in module {module}, expected no effects there: {} decide only",
        PURE.join(" and ")
    ))
}

/// Whether the line has the name, and not only the end of a longer one.
fn names_it(line: &str, name: &str) -> bool {
    line.match_indices(name)
        .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':'))
}

#[cfg(test)]
mod tests {
    use super::{modules_used, problems};

    fn said(file: &str, text: &str) -> Vec<String> {
        problems(file, text).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn groups_and_paths_are_read() {
        let code = "use crate::{\n    UsageError,\n    net::{links, listeners::{A, B}},\n    plan,\n};\nfn f(x: \
        crate::model::X) {}";
        let used: Vec<String> = modules_used(code).into_iter().collect();
        assert_eq!(used, ["UsageError", "model", "net", "plan"]);
    }

    #[test]
    fn a_module_uses_only_what_is_below_it() {
        assert!(said("bridge-user/src/net/x.rs", "use crate::model::port::Port;\n").is_empty());
        let [problem] = &said("bridge-user/src/model/x.rs", "use crate::{net::links};\n")[..] else {
            panic!("one")
        };
        assert!(problem.contains("module model uses net"), "{problem}");
        assert_eq!(said("bridge-user/src/attic/x.rs", "").len(), 1);
        let tests = "#[cfg(test)]\nmod tests { use crate::verbs; }\n";
        assert!(said("bridge-user/src/model/x.rs", tests).is_empty());
    }

    #[test]
    fn crates_printing_and_effects_have_their_places() {
        assert!(said("bridge-user/src/kernel/x.rs", "use aya::Ebpf;\n").is_empty());
        assert_eq!(said("bridge-user/src/relay/x.rs", "use aya::Ebpf;\n// aya::\n").len(), 1);
        assert_eq!(said("bridge-user/src/observe/x.rs", "println!(\"x\");\n").len(), 1);
        assert_eq!(said("bridge-user/src/plan/x.rs", "use std::fs;\n").len(), 1);
        assert!(said("bridge-user/src/verbs/x.rs", "println!(\"x\");\n").is_empty());
    }

    #[test]
    fn unsafe_stands_where_it_is_expected() {
        let code = "let x = unsafe { y() };\n";
        assert!(said("bridge-user/src/kernel/sys.rs", code).is_empty());
        assert_eq!(said("bridge-user/src/net/links.rs", code).len(), 1);
        assert!(said("tests/src/main.rs", "// unsafe { }\n").is_empty());
    }
}
