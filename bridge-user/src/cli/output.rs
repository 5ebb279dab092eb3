//! Where results and errors go, and in which form.
//!
//! Invariants: what is written is written whole before the verb goes on; a reader of standard output that went away
//! (`| head`) is no error; what cannot be written to standard error is lost, for there is nobody else to tell.

use std::{
    io::{self, ErrorKind, Write},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use clap::ValueEnum;
use rustix::termios::tcgetwinsize;
use serde::Serialize;

use crate::model::escape::push_line;

/// Columns where standard output is no terminal.
const WIDTH: usize = 80;

type Stream = Arc<Mutex<dyn Write + Send>>;

/// Where a verb prints: the process's standard output and error, or what a caller put in their place. Clones print to
/// the same place.
#[derive(Clone)]
pub struct Out {
    stdout: Stream,
    stderr: Stream,
    width: usize,
}

/// What became of text for standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Printed {
    /// It was written.
    All,
    /// Nobody reads any more.
    ReaderGone,
}

impl Out {
    /// The process's own.
    pub fn standard() -> Self {
        let width = tcgetwinsize(io::stdout()).map_or(0, |size| usize::from(size.ws_col));
        Self { width: if width == 0 { WIDTH } else { width }, ..Self::new(io::stdout(), io::stderr()) }
    }

    /// Prints to these.
    pub fn new(stdout: impl Write + Send + 'static, stderr: impl Write + Send + 'static) -> Self {
        Self { stdout: Arc::new(Mutex::new(stdout)), stderr: Arc::new(Mutex::new(stderr)), width: WIDTH }
    }

    /// How many columns a line of standard output has.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Prints a result.
    pub(crate) fn print(&self, text: &str) -> anyhow::Result<Printed> {
        self.print_bytes(text.as_bytes())
    }

    /// Prints a result that may be no text.
    pub(crate) fn print_bytes(&self, bytes: &[u8]) -> anyhow::Result<Printed> {
        let mut stdout = self.stdout.lock().unwrap_or_else(PoisonError::into_inner);
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Ok(()) => Ok(Printed::All),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Printed::ReaderGone),
            Err(error) => Err(error).context("failed to write to standard output"),
        }
    }

    /// Prints a result in the form that was asked for.
    pub(crate) fn print_as<T: Serialize>(
        &self,
        format: Format,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<Printed> {
        let text = match format {
            Format::Text => text(value),
            Format::Json => format!("{}\n", serde_json::to_string(value).context("failed to write JSON")?),
        };
        self.print(&text)
    }

    /// Tells a person something, as one line on standard error.
    pub(crate) fn say(&self, line: &str) {
        self.complain(&[&format!("bridge-user: {line}")]);
    }

    /// Tells a person what failed, as one line whatever a cause contains (the verifier's log has many).
    pub(crate) fn say_error(&self, chain: &str) {
        self.say(&chain.split_whitespace().collect::<Vec<_>>().join(" "));
    }

    /// Writes lines to standard error.
    pub(crate) fn complain(&self, lines: &[&str]) {
        let mut text = String::new();
        lines.iter().for_each(|line| push_line(&mut text, line));
        let mut stderr = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = stderr.write_all(text.as_bytes());
    }
}

/// The form results are printed in: for people, or for programs.
#[derive(Clone, Copy, Default, ValueEnum)]
pub(crate) enum Format {
    #[default]
    Text,
    Json,
}

/// The option of verbs that print results in either form.
#[derive(clap::Args)]
pub(crate) struct FormatArgs {
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Format,
}
