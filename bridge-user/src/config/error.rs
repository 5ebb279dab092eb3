//! What is wrong with the file, by its lines.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::UsageError;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// The line it is about, counted from 1.
    pub(super) line: usize,
    /// What is there, what was expected, and what to do.
    pub(super) text: String,
}

/// Why a file is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("failed to read {}: {cause}: write that file, or name another one with --config", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// It is read, and these things are wrong in it, each with file and line, in the order of the lines.
    #[error("{}", .0.join("; "))]
    Wrong(Vec<String>),
}

impl ConfigError {
    /// These problems of the file at `path`.
    pub(super) fn wrong(path: &Path, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.line);
        let path = path.display();
        Self::Wrong(problems.iter().map(|Problem { line, text }| format!("{path}:{line}: {text}")).collect())
    }

    /// Each problem by itself.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Unreadable { .. } => vec![self.to_string()],
            Self::Wrong(lines) => lines.clone(),
        }
    }
}

impl From<ConfigError> for UsageError {
    fn from(error: ConfigError) -> Self {
        Self(error.to_string())
    }
}
