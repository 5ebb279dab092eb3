//! What processes that go on tell: lines on standard error, which a service manager keeps.

use std::io::Write as _;

use log::{Level, LevelFilter};

use crate::model::escape::escaped;

/// Writes what is logged, of this level and worse, to standard error from now on. Beside a journal, each line begins
/// with its priority (sd-daemon(3)).
pub(crate) fn to_stderr(level: LevelFilter) {
    let has_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let format = move |out: &mut env_logger::fmt::Formatter, record: &log::Record<'_>| {
        let prefix = if has_journal { priority(record.level()) } else { "" };
        writeln!(out, "{prefix}{}", escaped(&format!("bridge-user: {}", record.args())))
    };
    // Only the program itself: libraries tell nothing that anybody could act on.
    env_logger::Builder::new().filter_module("bridge_user", level).format(format).init();
}

fn priority(level: Level) -> &'static str {
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}
