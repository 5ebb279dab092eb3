//! The `status` verb: what is attached and whether it can serve. Changes nothing.

use std::process::ExitCode;

use anyhow::anyhow;

use super::candidates;
use crate::{
    cli::output::{FormatArgs, Out},
    model::{
        JSON_VERSION,
        escape::push_line,
        finding::{Finding, Severity, exit_code},
    },
    observe::{
        readiness::Readiness,
        report::{AttachmentReport, Report},
        snapshot,
    },
    plan,
    runner::control::{self, Answers, SilentRelay},
    scope::Scope,
};

/// What can be asked of `status`.
#[derive(clap::Args)]
pub struct Args {
    /// Attachment or service names (default: all)
    #[arg(value_name = "NAME", add = candidates::attachments())]
    names: Vec<String>,
    /// Say only what is wrong, one line for each problem, and exit 1 if there is any: for health checks
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    output: FormatArgs,
}

/// Prints the attachments that `args` name, or all.
///
/// The exit code is 1 where something steers that cannot be shown; with `--check`, also where an attachment is not
/// ready or has a finding that is an error.
///
/// # Errors
/// As [`find`]; when a relay process does not answer, after the others were printed.
pub(crate) fn run(args: &Args, scope: &Scope, out: &Out) -> anyhow::Result<ExitCode> {
    let Found { report, told, steers_unseen, silent } = find(scope, &args.names)?;
    let problems = problems(&report, &told);
    let lines = |_: &Report| {
        let mut lines = String::new();
        problems.iter().for_each(|problem| push_line(&mut lines, problem));
        lines
    };
    match args.check {
        true => out.print_as(args.output.output, &report, lines)?,
        false => out.print_as(args.output.output, &report, |report| report.to_text(out.width()))?,
    };
    // A check has said it.
    for finding in told.iter().filter(|_| !args.check) {
        out.say(&format!("{}: {}: {finding}", finding.severity, finding.subject));
    }
    let mut silent = silent.into_iter();
    let Some(first) = silent.next() else {
        let failed = steers_unseen || (args.check && !problems.is_empty());
        return Ok(ExitCode::from(u8::from(failed)));
    };
    for other in silent {
        out.say(&format!("{other:#}"));
    }
    Err(first)
}

/// What is wrong with attachments, one line each: those that are not ready, and other errors.
fn problems(report: &Report, told: &[Finding]) -> Vec<String> {
    let of_one = |entry: &AttachmentReport| -> Vec<String> {
        if entry.state != Readiness::Ready {
            let detail = entry.detail.as_deref().unwrap_or("no cause is known");
            return vec![format!("{} is {}: {detail}", entry.name, entry.state.text())];
        }
        let errors = entry.findings.iter().filter(|finding| finding.severity == Severity::Error);
        errors.map(|finding| format!("{}: {finding}", entry.name)).collect()
    };
    let others = told.iter().filter(|finding| finding.severity != Severity::Info);
    let others = others.map(|finding| format!("{}: {finding}", finding.subject));
    report.attachments.iter().flat_map(of_one).chain(others).collect()
}

/// What there is.
struct Found {
    report: Report,
    /// What of the report's findings is about no attachment, and is told beside.
    told: Vec<Finding>,
    /// Something steers that cannot be shown.
    steers_unseen: bool,
    /// The relay processes that did not answer.
    silent: Vec<anyhow::Error>,
}

/// Reports the attachments that `names` mean, or all, and which relay processes did not answer.
///
/// # Errors
/// When a name means nothing, or the state cannot be read (root is needed where bpffs is closed to others).
fn find(scope: &Scope, names: &[String]) -> anyhow::Result<Found> {
    let Report { attachments: mut all, mut findings, listener_tracking, .. } = snapshot::steered(scope)?;
    let Answers { relays, silent, findings: of_daemon } = control::ask_all(&scope.namespace);
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
    let steers_unseen = exit_code(&findings) != 0;
    // Somebody who asks for names asks for nothing else.
    findings.extend(of_daemon.into_iter().filter(|_| names.is_empty()));
    let told = findings.clone();
    findings.extend(silent.iter().filter_map(SilentRelay::finding));
    let report = Report { version: JSON_VERSION, attachments: all, findings, listener_tracking };
    Ok(Found { report, told, steers_unseen, silent })
}
