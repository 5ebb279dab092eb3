//! What `attach` prints: what became of everything that was asked for.

use std::collections::HashSet;

use serde::Serialize;

use crate::{
    model::{attachment::Attachment, escape::push_line},
    observe::{
        checks::advice::{Advice, advice, widened},
        report::{AttachmentReport, Report},
        snapshot,
    },
    plan::{Intent, Refusal, request::Request},
    scope::Scope,
};

/// As `status` shows it, with what attach alone has to tell.
#[derive(Serialize)]
pub(super) struct AttachReport {
    #[serde(flatten)]
    report: Report,
    /// What is not attached, and why.
    refused: Vec<Refusal>,
    /// Every warning that people read, here or on standard error.
    warnings: Vec<String>,
    /// What is attached, as people read it. The findings of notes and warnings are not in it.
    #[serde(skip)]
    shown: String,
    /// Notes and warnings, as people read them.
    #[serde(skip)]
    notes: Vec<String>,
}

impl AttachReport {
    /// What became of `intent`, with what is relayed and the warnings that were said; text takes `width`
    /// columns.
    pub(super) fn new(
        request: &Request,
        scope: &Scope,
        intent: &Intent,
        relayed: Vec<AttachmentReport>,
        mut warnings: Vec<String>,
        width: usize,
    ) -> anyhow::Result<Self> {
        let mut report = snapshot::steered(scope)?;
        let steered: HashSet<String> =
            intent.steered.iter().chain(&intent.kept).map(Attachment::name).collect();
        report.attachments.retain(|entry| steered.contains(&entry.name));
        report.attachments.extend(relayed);
        report.attachments.sort_by(|one, other| one.name.cmp(&other.name));
        let shown = shown(&report, width);
        let mut told = advice(&request.specs, &intent.wanted().collect::<Vec<_>>());
        told.extend(widened(&intent.replaced, &intent.steered));
        told.extend(intent.left_out.iter().map(Advice::note));
        let mut notes = Vec::new();
        for Advice { line, findings } in told {
            warnings.extend(line.strip_prefix("warning: ").map(str::to_owned));
            notes.push(line);
            report.add(findings);
        }
        Ok(Self { report, refused: intent.refused.clone(), warnings, shown, notes })
    }

    /// What is attached.
    pub(super) fn attached(&self) -> &Report {
        &self.report
    }

    /// Notes and warnings.
    pub(super) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// As a table, what containers are given, notes and warnings below; nothing where nothing is attached.
    pub(super) fn to_text(&self) -> String {
        let mut text = self.shown.clone();
        self.notes.iter().for_each(|line| push_line(&mut text, line));
        text
    }
}

/// The table and what containers are given; nothing where nothing is attached.
fn shown(report: &Report, width: usize) -> String {
    if report.attachments.is_empty() {
        return String::new();
    }
    let mut text = report.to_text(width);
    let lines = report.attachments.iter().filter_map(AttachmentReport::connect_line);
    lines.for_each(|line| push_line(&mut text, &line));
    text
}
