//! What a person sees while a command works: a spinner on a terminal, plain lines everywhere else.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// All spinners, so that several can run at a time and lines can be printed above them.
static SPINNERS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Steps quicker than this are not worth a line unless the user asked for the details.
const WORTH_A_LINE: Duration = Duration::from_millis(900);

/// How much a command says about steps that had nothing to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    /// Every step gets a line.
    Every,
    /// Only steps that took a while get one.
    OnlyWork,
}

/// One step of a longer job.
pub(crate) struct Step {
    bar: ProgressBar,
    name: String,
    started: Instant,
    detail: Detail,
}

impl Step {
    /// Shows that `name` has begun.
    pub(crate) fn start(name: impl Into<String>, detail: Detail) -> Self {
        let name = name.into();
        let bar = SPINNERS.add(ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(name.clone());
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar, name, started: Instant::now(), detail }
    }

    /// Shows what the step is doing right now.
    pub(crate) fn note(&self, message: &str) {
        self.bar.set_message(message.trim().to_owned());
    }

    /// Prints a line that stays, above the spinner.
    pub(crate) fn say(&self, message: &str) {
        self.ask(message, || ());
    }

    /// The same, and then runs `question` with the spinners out of the way: it has the terminal to itself.
    pub(crate) fn ask<T>(&self, message: &str, question: impl FnOnce() -> T) -> T {
        SPINNERS.suspend(|| {
            eprintln!("  ..  {}: {message}", self.name);
            question()
        })
    }

    /// Ends the step well.
    pub(crate) fn done(self, outcome: &str) {
        self.bar.finish_and_clear();
        let took = self.started.elapsed();
        if self.detail == Detail::OnlyWork && took < WORTH_A_LINE {
            return;
        }
        SPINNERS.suspend(|| eprintln!("  ok  {}: {outcome}{}", self.name, seconds(took)));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn seconds(took: Duration) -> String {
    if took < WORTH_A_LINE { String::new() } else { format!(" ({:.1} s)", took.as_secs_f64()) }
}

/// Prints a result on stdout, above the spinners.
pub(crate) fn result(text: &str) {
    SPINNERS.suspend(|| println!("{text}"));
}

/// Prints the heading of a part of a command.
pub(crate) fn heading(text: &str) {
    eprintln!("== {text}");
}

/// Prints rows in aligned columns; the first row is the header.
pub(crate) fn table(rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max())
        .map(Option::unwrap_or_default)
        .collect();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        println!("{}", cells.join("  ").trim_end());
    }
}
