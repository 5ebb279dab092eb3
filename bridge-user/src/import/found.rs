//! Looks for forwards on this host: in the unit files of the system and of users, and among the processes.
//!
//! Invariants: read-only; a file that cannot be read is a reason to leave its unit alone, never a reason to stop; a
//! process counts once, for the one that listens, not for its children.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use super::{
    Forward, socat, socket_proxyd,
    units::{Name, Unit},
    words::{self, Variables},
};
use crate::net::{namespace::Namespace, processes::Process};

/// Where units are, the first of the same name counts.
const SYSTEM: [&str; 5] = [
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
];
const USERS: [&str; 3] = ["etc/systemd/user", "usr/local/lib/systemd/user", "usr/lib/systemd/user"];
/// A user's own, below the home directory.
const OWN: &str = ".config/systemd/user";
const SOCAT: &str = "socat";
const SOCKET_PROXYD: &str = "systemd-socket-proxyd";
/// Words that a shell takes before a command, or that run the command behind them.
const BEFORE_COMMANDS: [&str; 8] = ["exec", "do", "then", "else", "nohup", "setsid", "env", "!"];

/// A unit, or a process that belongs to none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The unit's name; none for a process that runs outside of units.
    pub unit: Option<String>,
    /// The user whose manager has the unit; none: the system's.
    pub user: Option<String>,
    /// It starts at boot, or on login.
    pub enabled: bool,
    /// It cannot be started, by somebody's decision.
    pub masked: bool,
    /// Its processes that run now.
    pub processes: Vec<i32>,
}

/// A forward, and where it comes from.
#[derive(Clone, Debug)]
pub struct Found {
    /// Where it comes from.
    pub origin: Origin,
    /// The command.
    pub command: String,
    /// What it is, or why it is left alone.
    pub forward: Result<Forward, String>,
}

/// One of systemd's managers: its directories, and whose it is.
struct Manager {
    user: Option<String>,
    directories: Vec<PathBuf>,
}

/// Everything that forwards in the namespace. `root`: where the file system begins.
pub fn look(root: &Path, namespace: &Namespace) -> Vec<Found> {
    let processes = Process::all_in(namespace, &[SOCAT, SOCKET_PROXYD]);
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for manager in managers(root) {
        for name in manager.units(&processes) {
            let units = manager.forwards(&name, root, &processes);
            seen.extend(units.iter().flat_map(|one| one.origin.processes.clone()));
            found.extend(units);
        }
    }
    found.extend(processes.iter().filter(|process| !seen.contains(&process.pid)).filter_map(outside));
    found
}

/// A process that no unit file explains: started by hand, or by a script.
fn outside(process: &Process) -> Option<Found> {
    let (program, arguments) = process.arguments.split_first()?;
    let forward = match base(program) {
        SOCAT => socat::parse(arguments),
        _ => Err("its socket unit was not found".to_owned()),
    };
    let origin = Origin { unit: process.unit.clone(), processes: vec![process.pid], ..Origin::default() };
    Some(Found { origin, command: process.arguments.join(" "), forward })
}

fn base(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

/// The system's manager, and those of the users that have units.
fn managers(root: &Path) -> Vec<Manager> {
    let below = |directories: &[&str]| directories.iter().map(|directory| root.join(directory)).collect();
    let mut managers = vec![
        Manager { user: None, directories: below(&SYSTEM) },
        Manager { user: Some("every user".to_owned()), directories: below(&USERS) },
    ];
    let accounts = fs::read_to_string(root.join("etc/passwd")).unwrap_or_default();
    for line in accounts.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        let (Some(user), Some(home)) = (fields.first(), fields.get(5)) else { continue };
        let directory = root.join(home.trim_start_matches('/')).join(OWN);
        if directory.is_dir() {
            managers.push(Manager { user: Some((*user).to_owned()), directories: vec![directory] });
        }
    }
    managers
}

impl Manager {
    /// The services there are: files, and instances that are enabled or run.
    fn units(&self, processes: &[Process]) -> BTreeSet<Name> {
        let mut names = BTreeSet::new();
        for directory in &self.directories {
            names.extend(entries(directory).into_iter().map(Name));
            names.extend(self.links(directory).into_iter().map(Name));
        }
        if self.user.is_none() {
            names.extend(processes.iter().filter_map(|process| process.unit.clone()).map(Name));
        }
        // Sockets stand for the services that they start.
        let services: Vec<Name> = names
            .iter()
            .filter(|name| name.0.ends_with(".socket") && name.template().is_some())
            .map(|name| name.with_kind("service"))
            .collect();
        names.extend(services);
        names.retain(|name| name.0.ends_with(".service") && !name.is_template());
        names
    }

    /// What is linked to from `*.wants` and `*.requires`: what is enabled.
    fn links(&self, directory: &Path) -> BTreeSet<String> {
        let wanting = |name: &String| name.ends_with(".wants") || name.ends_with(".requires");
        entries(directory)
            .into_iter()
            .filter(wanting)
            .flat_map(|name| entries(&directory.join(name)))
            .collect()
    }

    fn forwards(&self, name: &Name, root: &Path, processes: &[Process]) -> Vec<Found> {
        let Some(loaded) = self.load(name) else { return Vec::new() };
        let texts = loaded.texts.iter().map(String::as_str);
        if !texts.clone().any(|text| text.contains(SOCAT) || text.contains(SOCKET_PROXYD)) && !loaded.masked {
            return Vec::new();
        }
        let unit = Unit::parse(texts);
        let enabled = self.is_enabled(&[name, &name.with_kind("socket")]);
        let is_its = |process: &&Process| self.user.is_none() && process.unit.as_ref() == Some(&name.0);
        let origin = Origin {
            unit: Some(name.0.clone()),
            user: self.user.clone(),
            enabled,
            masked: loaded.masked,
            processes: processes.iter().filter(is_its).map(|process| process.pid).collect(),
        };
        let mut found = Vec::new();
        for start in &unit.starts {
            let commands =
                self.variables(&unit, name, root).and_then(|variables| commands(start, name, &variables));
            let forwards = match commands {
                Ok(commands) => commands.iter().flat_map(|words| self.of_command(words, name)).collect(),
                Err(why) => vec![(start.clone(), Err(why))],
            };
            found.extend(forwards.into_iter().map(|(command, forward)| Found {
                origin: origin.clone(),
                command,
                forward,
            }));
        }
        found
    }

    /// The forwards of one command, if it is one that forwards.
    fn of_command(&self, words: &[String], name: &Name) -> Vec<(String, Result<Forward, String>)> {
        let Some((program, arguments)) = words.split_first() else { return Vec::new() };
        let command = words.join(" ");
        match base(program) {
            SOCAT => vec![(command, socat::parse(arguments))],
            SOCKET_PROXYD => match self.socket_of(name) {
                Some(socket) => {
                    let forwards = socket_proxyd::forwards(&socket, arguments);
                    forwards.into_iter().map(|forward| (command.clone(), forward)).collect()
                }
                None => {
                    vec![(command, Err(format!("its socket unit {} is missing", name.with_kind("socket").0)))]
                }
            },
            _ => Vec::new(),
        }
    }

    /// The socket unit that starts a service.
    fn socket_of(&self, name: &Name) -> Option<Unit> {
        let own = name.with_kind("socket");
        let parse = |loaded: &Loaded| Unit::parse(loaded.texts.iter().map(String::as_str));
        if let Some(loaded) = self.load(&own) {
            return Some(parse(&loaded));
        }
        let sockets = self.directories.iter().flat_map(|directory| entries(directory));
        sockets
            .filter(|entry| entry.ends_with(".socket"))
            .filter_map(|entry| self.load(&Name(entry)))
            .map(|loaded| parse(&loaded))
            .find(|unit| unit.service.as_ref() == Some(&name.0))
    }

    fn variables(&self, unit: &Unit, name: &Name, root: &Path) -> Result<Variables, String> {
        let mut texts = Vec::new();
        for file in &unit.environment_files {
            let (may_miss, path) = match file.strip_prefix('-') {
                Some(path) => (true, path),
                None => (false, file.as_str()),
            };
            let path = name.expand(path)?;
            match fs::read_to_string(root.join(path.trim_start_matches('/'))) {
                Ok(text) => texts.push(text),
                Err(_) if may_miss => {}
                Err(error) => return Err(format!("its EnvironmentFile {path} cannot be read: {error}")),
            }
        }
        unit.variables(name, texts.iter().map(String::as_str))
    }

    fn is_enabled(&self, names: &[&Name]) -> bool {
        let links: BTreeSet<String> =
            self.directories.iter().flat_map(|directory| self.links(directory)).collect();
        names.iter().any(|name| links.contains(&name.0))
    }

    /// The unit's file, that of its template for an instance, and the drop-ins of both.
    fn load(&self, name: &Name) -> Option<Loaded> {
        let names: Vec<Name> = std::iter::once(name.clone()).chain(name.template()).collect();
        let paths =
            || names.iter().flat_map(|name| self.directories.iter().map(|directory| directory.join(&name.0)));
        let path = paths().find(|path| fs::symlink_metadata(path).is_ok())?;
        let is_masked = fs::canonicalize(&path).is_ok_and(|path| path == Path::new("/dev/null"));
        // What the mask hides is told of, too.
        let path = if is_masked { paths().find(|path| path.is_file())? } else { path };
        let mut texts = vec![fs::read_to_string(path).ok()?];
        let mut drop_ins = BTreeMap::new();
        for directory in self.directories.iter().rev() {
            for name in names.iter().rev() {
                let below = directory.join(format!("{}.d", name.0));
                let files = entries(&below).into_iter().filter(|file| file.ends_with(".conf"));
                drop_ins.extend(files.map(|file| (file.clone(), below.join(file))));
            }
        }
        texts.extend(drop_ins.values().filter_map(|path| fs::read_to_string(path).ok()));
        Some(Loaded { texts, masked: is_masked })
    }
}

/// A unit's texts, its own first.
struct Loaded {
    texts: Vec<String>,
    masked: bool,
}

/// The names in a directory; none where it cannot be read.
fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The commands that an `ExecStart=` runs, those of a shell's script each.
fn commands(start: &str, name: &Name, variables: &Variables) -> Result<Vec<Vec<String>>, String> {
    let mut all = Vec::new();
    for words in words::systemd(&name.expand(start)?, variables)? {
        match script(&words) {
            Some(script) if !script.contains(SOCAT) => {}
            Some(script) => all.extend(words::shell(script, variables)?.into_iter().map(without_keywords)),
            None => all.push(words),
        }
    }
    Ok(all)
}

/// The script of `sh -c SCRIPT`.
fn script(words: &[String]) -> Option<&str> {
    let (program, arguments) = words.split_first()?;
    if !["sh", "bash", "dash", "ash"].contains(&base(program)) {
        return None;
    }
    let is_script =
        |option: &String| option.starts_with('-') && !option.starts_with("--") && option.ends_with('c');
    let at = arguments.iter().position(is_script)?;
    arguments.get(at + 1).map(String::as_str)
}

fn without_keywords(mut words: Vec<String>) -> Vec<String> {
    let before = words.iter().take_while(|word| BEFORE_COMMANDS.contains(&base(word)));
    words.drain(..before.count());
    words
}

#[cfg(test)]
#[path = "found_tests.rs"]
mod tests;
