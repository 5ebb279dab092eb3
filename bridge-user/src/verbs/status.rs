//! The `status` verb: what is attached and whether it can serve. Changes nothing.

use std::process::ExitCode;

use anyhow::anyhow;

use crate::{
    cli::output::{FormatArgs, Out},
    model::{JSON_VERSION, finding::exit_code},
    observe::{report::Report, snapshot},
    plan,
    runner::control::{self, Answers, SilentRelay},
    scope::Scope,
};

/// What can be asked of `status`.
#[derive(clap::Args)]
pub struct Args {
    /// Attachment or service names (default: all)
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    output: FormatArgs,
}

/// Prints the attachments that `args` name, or all.
///
/// The exit code is 1 where something steers that cannot be shown.
///
/// # Errors
/// As [`find`]; when a relay process does not answer, after the others were printed.
pub(crate) fn run(args: &Args, scope: &Scope, out: &Out) -> anyhow::Result<ExitCode> {
    let (report, silent) = find(scope, &args.names)?;
    out.print_as(args.output.output, &report, Report::to_text)?;
    let beside: Vec<_> =
        report.findings.iter().filter(|finding| finding.subject.starts_with("net:")).collect();
    for finding in &beside {
        out.say(&format!("{}: {finding}", finding.severity));
    }
    let mut silent = silent.into_iter();
    let Some(first) = silent.next() else { return Ok(ExitCode::from(exit_code(&report.findings))) };
    for other in silent {
        out.say(&format!("{other:#}"));
    }
    Err(first)
}

/// Reports the attachments that `names` mean, or all, and which relay processes did not answer.
///
/// # Errors
/// When a name means nothing, or the state cannot be read (root is needed where bpffs is closed to others).
fn find(scope: &Scope, names: &[String]) -> anyhow::Result<(Report, Vec<anyhow::Error>)> {
    let Report { attachments: mut all, mut findings, listener_tracking, .. } = snapshot::steered(scope)?;
    let Answers { relays, silent } = control::ask_all(&scope.namespace);
    all.extend(relays.into_iter().flat_map(|(_, entries)| entries));
    all.sort_by(|one, other| one.name.cmp(&other.name));
    for name in names {
        if !all.iter().any(|entry| entry.is_meant_by(name)) {
            let known = plan::known(all.iter().map(|entry| &entry.name));
            let error = anyhow!("failed to show {name}: no attachment or service has this name: {known}");
            return Err(silent.into_iter().next().unwrap_or(error));
        }
    }
    all.retain(|entry| names.is_empty() || names.iter().any(|name| entry.is_meant_by(name)));
    findings.extend(silent.iter().filter_map(SilentRelay::finding));
    Ok((Report { version: JSON_VERSION, attachments: all, findings, listener_tracking }, silent))
}
