//! Carries out the steps of a plan, and takes them back when one fails.
//!
//! Invariant: a file is replaced in one step, so that a reader, or a crash, sees the old one or the new one.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use anyhow::{Context as _, anyhow};

use super::{Facts, Plan, Step, Systemctl, UNIT};

/// Files are for everybody to read.
const MODE: u32 = 0o644;

/// Carries out the plan; `say` is told of each step that was done.
///
/// # Errors
/// When a step fails; those before it are taken back then, and what could not be is named.
pub fn carry_out(
    plan: &Plan,
    facts: &Facts,
    systemctl: &Systemctl,
    mut say: impl FnMut(&Step),
) -> anyhow::Result<()> {
    for (at, step) in plan.steps.iter().enumerate() {
        if let Err(error) = one(step, systemctl) {
            // A start that failed may have left the unit trying.
            let begun = at + usize::from(matches!(step, Step::Start | Step::Restart));
            return Err(taken_back(error, &plan.undo(begun, facts), systemctl));
        }
        say(step);
    }
    Ok(())
}

fn taken_back(error: anyhow::Error, undo: &[Step], systemctl: &Systemctl) -> anyhow::Error {
    let failed: Vec<String> =
        undo.iter().filter_map(|step| one(step, systemctl).err().map(|error| format!("{error:#}"))).collect();
    let end = match failed.is_empty() {
        true => "everything is as it was".to_owned(),
        false => format!("and taking back what was done: {}", failed.join("; ")),
    };
    anyhow!("{error:#}; {end}")
}

fn one(step: &Step, systemctl: &Systemctl) -> anyhow::Result<()> {
    match step {
        Step::MakeDirectory(path) => fs::create_dir_all(path).with_context(|| format!("failed to {step}")),
        Step::Write { path, text, .. } => write(path, text).with_context(|| format!("failed to {step}")),
        Step::Remove { path, .. } => fs::remove_file(path).with_context(|| format!("failed to {step}")),
        Step::RemoveDirectory(path) => remove_if_empty(path).with_context(|| format!("failed to {step}")),
        Step::Reload => systemctl.tell(&["daemon-reload"]),
        Step::Enable => systemctl.tell(&["enable", "--quiet", UNIT]),
        Step::Disable => systemctl.tell(&["disable", "--quiet", UNIT]),
        Step::Start => begin(systemctl, "start"),
        Step::Restart => begin(systemctl, "restart"),
        Step::Stop => systemctl.tell(&["stop", UNIT]),
    }
}

fn begin(systemctl: &Systemctl, how: &str) -> anyhow::Result<()> {
    systemctl
        .tell(&[how, UNIT])
        .with_context(|| format!("the daemon did not start: `journalctl -u {UNIT} -n 20` has what it said"))
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}.new"));
    let mut file = File::options().write(true).create(true).truncate(true).mode(MODE).open(&new)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    let written = written.and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        // What it was for has failed already.
        let _ = fs::remove_file(&new);
    }
    written
}

fn remove_if_empty(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        other => other,
    }
}
