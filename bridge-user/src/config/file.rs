//! The file on the disk: read, and replaced as a whole.
//!
//! Invariants: who reads it sees the old text or the new one, whatever happens meanwhile; of several who change it,
//! each starts from what the one before wrote. The new file has the mode and the owner of the old one. A symbolic link
//! stays one, and what it leads to is changed.

use std::{
    fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use rustix::fs::{FlockOperation, flock};

/// Mode of a new file.
const FILE_MODE: u32 = 0o644;
/// Mode of a new directory.
const DIR_MODE: u32 = 0o755;
/// Mode of the new text until it is in place.
const DRAFT_MODE: u32 = 0o600;

/// The text of the file; nothing where there is none.
///
/// # Errors
/// When there is one that cannot be read.
pub fn text(path: &Path) -> anyhow::Result<String> {
    let failed = || format!("failed to read {}", path.display());
    match fs::read(path) {
        Ok(bytes) => {
            String::from_utf8(bytes).context("expected UTF-8, as TOML is: save it so").with_context(failed)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(failed),
    }
}

/// The file, kept from others who would change it, until this is dropped.
///
/// That is a lock on the draft beside it, which nobody else can open. A draft that a killed process left is used again.
pub struct Held {
    /// Where the file really is.
    path: PathBuf,
    /// What it was when it was read, if it was there.
    before: Option<Metadata>,
    text: String,
    draft: PathBuf,
    file: File,
}

impl Held {
    /// Waits until nobody else changes the file, and reads it. Makes the directory if that is missing.
    ///
    /// # Errors
    /// When it cannot be read, or nothing can be written beside it.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let path = resolved(path)?;
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            bail!("failed to write {}: expected the path of a file", path.display())
        };
        let failed = || format!("failed to write in {}", directory.display());
        DirBuilder::new().recursive(true).mode(DIR_MODE).create(directory).with_context(failed)?;
        let draft = directory.join(format!(".{}.new", name.to_string_lossy()));
        let file = lock(&draft).with_context(failed)?;
        let before = fs::metadata(&path).ok();
        let text = text(&path)?;
        Ok(Self { path, before, text, draft, file })
    }

    /// What it says.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Writes the new text beside the file, so that only [`Self::replace`] is left to be done.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&mut self, text: &str) -> anyhow::Result<()> {
        self.write_draft(text).with_context(|| format!("failed to write {}", self.draft.display()))
    }

    fn write_draft(&mut self, text: &str) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all(text.as_bytes())?;
        self.file.sync_all()
    }

    /// Puts what was written into the file's place.
    ///
    /// # Errors
    /// When the file is not the one that was read any more, or cannot be replaced.
    pub fn replace(self) -> anyhow::Result<()> {
        let failed = || format!("failed to replace {}", self.path.display());
        let now = fs::metadata(&self.path).ok();
        let stamp =
            |at: &Option<Metadata>| at.as_ref().map(|at| (at.ino(), at.len(), at.mtime(), at.mtime_nsec()));
        ensure!(
            stamp(&now) == stamp(&self.before),
            "{}: somebody else changed it meanwhile: try again",
            failed()
        );
        self.adopt_mode().with_context(failed)?;
        fs::rename(&self.draft, &self.path).with_context(failed)?;
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        File::open(directory).and_then(|directory| directory.sync_all()).with_context(failed)
    }
}

impl Held {
    /// Only now: as long as the draft is of root alone, nobody else can lock it.
    fn adopt_mode(&self) -> io::Result<()> {
        if let Some(before) = &self.before {
            fchown(&self.file, Some(before.uid()), Some(before.gid()))?;
        }
        let mode = self.before.as_ref().map_or(FILE_MODE, |before| before.mode() & 0o7777);
        self.file.set_permissions(Permissions::from_mode(mode))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // After a rename the draft is not there any more, and another one's is not ours.
        if is_ours(&self.file, &self.draft) {
            let _ = fs::remove_file(&self.draft);
        }
    }
}

/// What the path leads to.
fn resolved(path: &Path) -> anyhow::Result<PathBuf> {
    match fs::canonicalize(path) {
        Ok(path) => Ok(path),
        Err(error) if error.kind() == ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => {
            std::path::absolute(path).with_context(|| format!("failed to write {}", path.display()))
        }
        Err(error) => bail!(
            "failed to find what {} leads to: {error}: mend that, or name another file with --config",
            path.display()
        ),
    }
}

/// The draft, made if need be, which nobody else has.
fn lock(draft: &Path) -> anyhow::Result<File> {
    loop {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .mode(DRAFT_MODE)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
        let file = options.open(draft).with_context(|| format!("failed to open {}", draft.display()))?;
        let found = file.metadata()?;
        ensure!(
            found.is_file() && found.nlink() <= 1 && found.uid() == rustix::process::geteuid().as_raw(),
            "{} is of somebody else: remove it",
            draft.display()
        );
        flock(&file, FlockOperation::LockExclusive)?;
        if is_ours(&file, draft) {
            return Ok(file);
        }
    }
}

/// Whether the path still leads to this file.
fn is_ours(file: &File, path: &Path) -> bool {
    let same = |one: &Metadata, other: &Metadata| (one.dev(), one.ino()) == (other.dev(), other.ino());
    let there = fs::symlink_metadata(path).ok();
    file.metadata().ok().zip(there).is_some_and(|(file, there)| same(&file, &there))
}
