//! `--save`: attach and detach write to the configuration what they do.
//!
//! Invariants: a file that is wrong is refused before anything is done. An attach is written beside the file first,
//! then made, then put into the file's place: whichever fails, the ones before are as they were. A detach is put into
//! the file first, so that whoever follows it does not attach again; what fails after that leaves less attached.

use std::path::PathBuf;

use crate::{
    UsageError,
    cli::output::Out,
    config::{self, Edit, Held},
    model::spec::ServiceSpec,
    plan::{Intent, request::Request},
};

/// Options of verbs that can write to the configuration.
#[derive(clap::Args)]
pub(super) struct SaveArgs {
    /// Write it to the configuration, too, so that it stays so
    #[arg(long)]
    save: bool,
    /// The configuration that --save writes to
    #[arg(long, value_name = "FILE", requires = "save", default_value = config::PATH)]
    config: PathBuf,
}

impl SaveArgs {
    /// The configuration, kept from others until it is changed; nothing without `--save`.
    ///
    /// # Errors
    /// When it cannot be read or written, or is wrong.
    pub(super) fn open(&self) -> anyhow::Result<Option<Saving>> {
        if !self.save {
            return Ok(None);
        }
        let held = Held::open(&self.config)?;
        config::parse(&self.config, held.text()).map_err(UsageError::from)?;
        Ok(Some(Saving { path: self.config.clone(), held, outcome: Outcome::Unchanged }))
    }

    /// What would be changed for what is intended, a sentence each.
    ///
    /// # Errors
    /// When the configuration cannot be read, is wrong, or cannot be changed so.
    pub(super) fn steps(&self, request: &Request, intent: &Intent) -> anyhow::Result<Vec<String>> {
        if !self.save {
            return Ok(Vec::new());
        }
        let text = config::text(&self.config)?;
        let specs = attached(request, intent);
        if specs.is_empty() {
            return Ok(Vec::new());
        }
        let edit = config::save(&self.config, &text, request, &specs);
        Ok(edit.map_err(config::EditError::into_error)?.steps)
    }
}

/// The services of the request that are attached somewhere.
fn attached(request: &Request, intent: &Intent) -> Vec<ServiceSpec> {
    let is_attached =
        |spec: &&ServiceSpec| intent.wanted().chain(&intent.kept).any(|state| state.is_of(spec));
    request.specs.iter().filter(is_attached).cloned().collect()
}

/// A change of the configuration that is under way.
pub(super) struct Saving {
    path: PathBuf,
    held: Held,
    outcome: Outcome,
}

/// What becomes of the file.
enum Outcome {
    /// It stays as it is.
    Unchanged,
    /// It has what was to be saved.
    SaysSo,
    /// Another text is beside it.
    Changed,
    /// Nothing is attached.
    NothingToSave,
}

impl Saving {
    /// Writes what is intended beside the file.
    ///
    /// # Errors
    /// When it cannot be written, or the file has a section that only a person can change.
    pub(super) fn write(&mut self, request: &Request, intent: &Intent) -> anyhow::Result<()> {
        let specs = attached(request, intent);
        self.outcome = if specs.is_empty() { Outcome::NothingToSave } else { Outcome::SaysSo };
        if specs.is_empty() {
            return Ok(());
        }
        let edit = config::save(&self.path, self.held.text(), request, &specs);
        self.draft(edit.map_err(config::EditError::into_error)?)
    }

    /// Writes beside the file what is left without these names. Returns those that the file has.
    ///
    /// # Errors
    /// When it cannot be written, or a name means what only a person can take out.
    pub(super) fn forget(&mut self, names: &[String]) -> anyhow::Result<Vec<String>> {
        let forgotten = config::forget(&self.path, self.held.text(), names);
        let config::Forgotten { edit, known } = forgotten.map_err(config::EditError::into_error)?;
        self.draft(edit)?;
        Ok(known)
    }

    /// Writes beside the file what is left when nothing is to be attached.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn forget_all(&mut self) -> anyhow::Result<()> {
        let edit = config::forget_all(&self.path, self.held.text());
        self.draft(edit.map_err(config::EditError::into_error)?)
    }

    fn draft(&mut self, edit: Edit) -> anyhow::Result<()> {
        if !edit.steps.is_empty() {
            self.held.write(&edit.text)?;
            self.outcome = Outcome::Changed;
        }
        Ok(())
    }

    /// Puts it into the file's place, and says so.
    ///
    /// # Errors
    /// When that fails; the file is as it was then.
    pub(super) fn finish(self, out: &Out) -> anyhow::Result<()> {
        let path = self.path.display();
        match self.outcome {
            Outcome::Unchanged => {}
            Outcome::SaysSo => out.say(&format!("{path} says so already")),
            Outcome::NothingToSave => out.say("nothing is attached, so nothing is saved"),
            Outcome::Changed => {
                self.held.replace()?;
                out.say(&format!("saved in {path}"));
            }
        }
        Ok(())
    }
}
