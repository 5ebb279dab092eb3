//! The steps that install or remove the unit, in order, and those that take them back. Pure.
//!
//! Invariants: a plan for what is there already is empty; undoing leaves files, and whether the unit starts at boot and
//! runs, as they were.

use std::{fmt, path::PathBuf};

use anyhow::bail;

use super::{EXAMPLE_CONFIG, Facts, Found, UNIT, unit_for};

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make a directory.
    MakeDirectory(PathBuf),
    /// Write a file.
    Write {
        /// Where.
        path: PathBuf,
        /// What is in it from now on.
        text: String,
        /// What was in it.
        old: Option<String>,
    },
    /// Remove a file.
    Remove {
        /// Which.
        path: PathBuf,
        /// What was in it.
        old: String,
    },
    /// Remove a directory if nothing is in it.
    RemoveDirectory(PathBuf),
    /// Have the manager read the units again.
    Reload,
    /// Have it start the unit at boot.
    Enable,
    /// Not any more.
    Disable,
    /// Start it now.
    Start,
    /// Start it anew.
    Restart,
    /// Stop it.
    Stop,
}

/// What to do, and what to tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// What stays as it is, and why.
    pub notes: Vec<String>,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MakeDirectory(path) => write!(f, "make directory {}", path.display()),
            Self::Write { path, old: None, .. } => write!(f, "write {}", path.display()),
            Self::Write { path, old: Some(_), .. } => write!(f, "replace {}", path.display()),
            Self::Remove { path, .. } => write!(f, "remove {}", path.display()),
            Self::RemoveDirectory(path) => write!(f, "remove directory {} if it is empty", path.display()),
            Self::Reload => f.write_str("reload the units (systemctl daemon-reload)"),
            Self::Enable => write!(f, "start {UNIT} at every boot (systemctl enable)"),
            Self::Disable => write!(f, "start {UNIT} at boot no more (systemctl disable)"),
            Self::Start => write!(f, "start {UNIT} now (systemctl start)"),
            Self::Restart => write!(f, "restart {UNIT} (systemctl restart)"),
            Self::Stop => write!(f, "stop {UNIT} (systemctl stop)"),
        }
    }
}

/// The steps that make the unit start the binary, now and at every boot.
///
/// # Errors
/// When the unit is somebody else's, or was masked.
pub fn install(facts: &Facts) -> anyhow::Result<Plan> {
    let at = facts.places.unit.display();
    if facts.state.masked {
        bail!("failed to install {UNIT}: it is masked: run `systemctl unmask {UNIT}` first");
    }
    let mut plan = Plan::default();
    let is_new_unit = match &facts.unit {
        Found::Foreign => bail!(
            "failed to install {UNIT}: {at} is there and was not written by `bridge-user systemd install`: remove it, \
             and use `systemctl edit {UNIT}` for what it changes"
        ),
        Found::Missing if facts.packaged => false,
        Found::Missing => plan.write(facts, None),
        Found::Ours(text) if *text == unit_for(&facts.binary) => false,
        Found::Ours(text) => plan.write(facts, Some(text.clone())),
    };
    plan.add_config(facts);
    if is_new_unit {
        plan.steps.push(Step::Reload);
    }
    if !facts.state.enabled {
        plan.steps.push(Step::Enable);
    }
    match facts.state.active {
        false => plan.steps.push(Step::Start),
        true if is_new_unit || facts.runs_another => plan.steps.push(Step::Restart),
        true => {}
    }
    Ok(plan)
}

/// The steps that remove what [`install`] wrote.
pub fn uninstall(facts: &Facts) -> Plan {
    let mut plan = Plan::default();
    if facts.state.active {
        plan.steps.push(Step::Stop);
    }
    if facts.state.enabled {
        plan.steps.push(Step::Disable);
    }
    match &facts.unit {
        Found::Ours(text) => {
            plan.steps.push(Step::Remove { path: facts.places.unit.clone(), old: text.clone() });
            plan.steps.push(Step::Reload);
        }
        Found::Foreign => plan.notes.push(format!(
            "{} stays: it was not written by `bridge-user systemd install`",
            facts.places.unit.display()
        )),
        Found::Missing => {}
    }
    if facts.has_additions {
        plan.notes.push(format!(
            "{} stays: what was added to the unit there is an administrator's",
            facts.places.additions.display()
        ));
    }
    if facts.packaged {
        plan.notes.push("the unit and its configuration are a package's: remove the package".to_owned());
        return plan;
    }
    plan.remove_config(facts);
    plan
}

impl Plan {
    /// True: the unit's file changes.
    fn write(&mut self, facts: &Facts, old: Option<String>) -> bool {
        let text = unit_for(&facts.binary);
        self.steps.push(Step::Write { path: facts.places.unit.clone(), text, old });
        true
    }

    fn add_config(&mut self, facts: &Facts) {
        if facts.config.is_some() {
            return;
        }
        let path = facts.places.config.clone();
        if let Some(directory) = path.parent().filter(|_| !facts.has_config_directory) {
            self.steps.push(Step::MakeDirectory(directory.to_owned()));
        }
        self.steps.push(Step::Write { path, text: EXAMPLE_CONFIG.to_owned(), old: None });
    }

    fn remove_config(&mut self, facts: &Facts) {
        let path = &facts.places.config;
        match &facts.config {
            Some(text) if text == EXAMPLE_CONFIG => {
                self.steps.push(Step::Remove { path: path.clone(), old: text.clone() });
                self.steps.extend(path.parent().map(|directory| Step::RemoveDirectory(directory.to_owned())));
            }
            Some(_) => self.notes.push(format!("{} stays: it was changed", path.display())),
            None => {}
        }
    }

    /// The steps that take back the first `done` ones: what runs is stopped and files are put back before the manager
    /// reads them again, and what ran before runs again at the end.
    pub(super) fn undo(&self, done: usize, facts: &Facts) -> Vec<Step> {
        let done = &self.steps[..done.min(self.steps.len())];
        let has = |step: Step| done.contains(&step);
        let mut undo = Vec::new();
        if has(Step::Start) && !facts.state.active {
            undo.push(Step::Stop);
        }
        if has(Step::Enable) {
            undo.push(Step::Disable);
        }
        let files: Vec<Step> = done.iter().rev().filter_map(inverse).collect();
        let is_reloaded = files.iter().any(|step| step.path() == Some(&facts.places.unit));
        undo.extend(files);
        if is_reloaded {
            undo.push(Step::Reload);
        }
        if has(Step::Disable) {
            undo.push(Step::Enable);
        }
        if facts.state.active && (has(Step::Stop) || has(Step::Restart)) {
            undo.push(Step::Restart);
        }
        undo
    }
}

impl Step {
    fn path(&self) -> Option<&PathBuf> {
        match self {
            Self::Write { path, .. } | Self::Remove { path, .. } => Some(path),
            _ => None,
        }
    }
}

/// What puts a file or directory back.
fn inverse(step: &Step) -> Option<Step> {
    match step.clone() {
        Step::MakeDirectory(path) => Some(Step::RemoveDirectory(path)),
        Step::RemoveDirectory(path) => Some(Step::MakeDirectory(path)),
        Step::Write { path, text, old: None } => Some(Step::Remove { path, old: text }),
        Step::Write { path, text, old: Some(old) } => Some(Step::Write { path, text: old, old: Some(text) }),
        Step::Remove { path, old } => Some(Step::Write { path, text: old, old: None }),
        _ => None,
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
