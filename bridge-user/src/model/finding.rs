//! Findings: what is worth telling about an attachment, a relay process or the host, as data. Pure.
//!
//! Invariants: the code and severity of a finding are those of one [`Code`] of [`super::codes`]; what people read is
//! its cause and its cure; a warning or an error always has a cure.

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Serialize};

/// How much a finding matters; a later one matters more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Nothing is wrong; somebody may want to know.
    Info,
    /// Something does not work and may mend itself, or works otherwise than one would think.
    Warning,
    /// Something does not work until somebody does something.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// A kind of finding, and what docs/troubleshooting.md says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// Its stable name, in kebab-case.
    pub name: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// The verb that finds it.
    pub verb: &'static str,
    /// What people see.
    pub symptom: &'static str,
    /// What it means.
    pub cause: &'static str,
    /// How to see it for oneself; may be empty.
    pub see: &'static str,
    /// What to do; may be empty where nothing is wrong.
    pub cure: &'static str,
    /// The version that had it first.
    pub since: &'static str,
}

impl Code {
    /// A finding of this kind. `cure` may be empty where nothing is wrong.
    pub fn finding(
        &self,
        subject: impl Into<String>,
        cause: impl Into<String>,
        cure: impl Into<String>,
    ) -> Finding {
        Finding {
            code: Cow::Borrowed(self.name),
            severity: self.severity,
            subject: subject.into(),
            evidence: None,
            cause: cause.into(),
            cure: cure.into(),
        }
    }
}

/// One thing that was found. Displayed as "cause: cure", or as the cause alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The [`Code`]'s name. A relay process of another version may tell of one that this version does not have.
    pub code: Cow<'static, str>,
    /// How much it matters.
    pub severity: Severity,
    /// What it is about: an attachment, a relay process or a capability, by name.
    pub subject: String,
    /// The fact it was judged by, where that is more than the cause says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
    /// What is so, with its values.
    pub cause: String,
    /// What to do next.
    pub cure: String,
}

impl Finding {
    /// The same, with the fact it was judged by.
    #[must_use]
    pub fn with_evidence(self, evidence: impl Into<String>) -> Self {
        Self { evidence: Some(evidence.into()), ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)?;
        if self.cure.is_empty() { Ok(()) } else { write!(f, ": {}", self.cure) }
    }
}

/// The exit code of a verb that fails for what it found: 1 for an error, else 0.
pub fn exit_code<'a>(findings: impl IntoIterator<Item = &'a Finding>) -> u8 {
    let worst = findings.into_iter().map(|finding| finding.severity).max();
    u8::from(worst == Some(Severity::Error))
}

#[cfg(test)]
#[path = "finding_tests.rs"]
mod tests;
