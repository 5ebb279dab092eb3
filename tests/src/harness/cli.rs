//! Runs the binary under test inside a namespace and reads what it prints.
//!
//! Invariants: every run has a deadline and goes into the transcript; `status` is read as JSON by
//! the contract's field names, and a missing field is an error, never a default.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::counts::{Moved, Strays};
use super::netns::Netns;
use super::proc::{Output, run_in};
use super::sys::unblock_signals_in;
use super::transcript::note;

/// The binary under test: `BRIDGE_USER`, else beside this binary, else `/bin/bridge-user`.
pub(crate) fn binary() -> Result<PathBuf> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        if let Some(named) = std::env::var_os("BRIDGE_USER") {
            return Some(PathBuf::from(named)).filter(|path| path.is_file());
        }
        let beside = std::env::current_exe().ok().map(|path| path.with_file_name("bridge-user"));
        let candidates = [beside, Some(PathBuf::from("/bin/bridge-user"))];
        candidates.into_iter().flatten().find(|path| path.is_file())
    });
    found
        .clone()
        .context("no bridge-user binary: build it with `cargo xtask build` or set BRIDGE_USER to its path")
}

/// The command line of the binary under test, bound to one namespace.
pub(crate) struct Cli<'a> {
    netns: &'a Netns,
    docker: Option<String>,
}

impl<'a> Cli<'a> {
    /// Runs inside `netns`; Docker is not reachable unless [`Cli::with_docker`] says where it is.
    pub(crate) fn new(netns: &'a Netns) -> Self {
        Self { netns, docker: None }
    }

    /// Points the binary at a Docker engine (`unix://…`).
    pub(crate) fn with_docker(mut self, endpoint: &str) -> Self {
        self.docker = Some(endpoint.to_owned());
        self
    }

    /// Packets of no connection that the binary's namespace knows of.
    pub(crate) fn strays(&self) -> Result<Strays> {
        Strays::of_host(self.netns)
    }

    /// The prepared command, for trials that start it themselves.
    pub(crate) fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary()?);
        command.args(arguments).env_remove("RUST_LOG");
        command.env("DOCKER_HOST", self.docker.as_deref().unwrap_or("unix:///nonexistent/docker.sock"));
        Ok(command)
    }

    /// Starts it with both output pipes, for runs that go on.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Result<Child> {
        note(format!("$ bridge-user {} &", arguments.join(" ")));
        let mut command = self.command(arguments)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        unblock_signals_in(&mut command);
        self.start(&mut command)
    }

    /// Starts a prepared command, for runs that go on.
    pub(crate) fn start(&self, command: &mut Command) -> Result<Child> {
        self.netns.spawn(command).context("failed to start bridge-user")
    }

    /// Runs to the end, whatever the exit code.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<Output> {
        let output = run_in(self.netns, &mut self.command(arguments)?)?;
        note_run(arguments, &output);
        Ok(output)
    }

    /// Runs and expects exit code 0; returns stdout.
    pub(crate) fn ok(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run(arguments)?;
        output.success().with_context(|| format!("bridge-user {}", arguments.join(" ")))?;
        Ok(output.stdout)
    }

    /// Runs and expects a refusal (see [`expect_refusal`]).
    pub(crate) fn refused(&self, arguments: &[&str], code: i32, needles: &[&str]) -> Result<()> {
        let output = self.run(arguments)?;
        expect_refusal(&output, code, needles).with_context(|| format!("bridge-user {}", arguments.join(" ")))
    }

    /// Runs with `--output json` and parses stdout, which must be one version 1 document.
    pub(crate) fn json(&self, arguments: &[&str]) -> Result<Value> {
        let stdout = self.ok(&[arguments, &["--output", "json"]].concat())?;
        document(&stdout)
    }

    /// Every attachment `status` shows.
    pub(crate) fn status(&self) -> Result<Vec<Attachment>> {
        attachments(&self.ok(&["status", "--output", "json"])?)
    }

    /// The one attachment called `name`.
    pub(crate) fn attachment(&self, name: &str) -> Result<Attachment> {
        let all = self.status()?;
        let names: Vec<_> = all.iter().map(|attachment| attachment.name.clone()).collect();
        let found = all.into_iter().find(|attachment| attachment.name == name);
        found.with_context(|| format!("status shows no attachment {name}, only {names:?}"))
    }
}

/// A JSON document of the binary.
pub(crate) fn document(stdout: &str) -> Result<Value> {
    let value: Value = serde_json::from_str(stdout).with_context(|| format!("not JSON: {stdout}"))?;
    ensure!(value["version"] == 1, "the document is not version 1: {stdout}");
    Ok(value)
}

/// The attachments in what `status --output json` printed.
pub(crate) fn attachments(stdout: &str) -> Result<Vec<Attachment>> {
    let document = document(stdout)?;
    let list = document["attachments"].as_array().context("status has no attachments list")?;
    list.iter().map(Attachment::parse).collect()
}

/// Adds a finished run to the transcript.
pub(crate) fn note_run(arguments: &[&str], output: &Output) {
    let Output { code, stdout, stderr } = output;
    note(format!("$ bridge-user {} -> {code:?}\n{stdout}{stderr}", arguments.join(" ")));
}

/// A refusal: the exit code, nothing on stdout, and one line on stderr that starts with the
/// program's name, contains every needle, and says what to do next.
pub(crate) fn expect_refusal(output: &Output, code: i32, needles: &[&str]) -> Result<()> {
    ensure!(output.code == Some(code), "exit code {:?} instead of {code}: {}", output.code, output.stderr);
    ensure!(output.stdout.is_empty(), "a refusal printed to stdout: {}", output.stdout);
    let mut lines = output.stderr.lines();
    let line = lines.next().context("a refusal printed nothing to stderr")?;
    ensure!(lines.next().is_none(), "a refusal is one line, not: {}", output.stderr);
    ensure!(line.starts_with("bridge-user: "), "a refusal starts with the program's name, not: {line}");
    for needle in needles {
        ensure!(
            line.to_lowercase().contains(&needle.to_lowercase()),
            "the refusal does not say {needle:?}: {line}"
        );
    }
    ensure!(has_next_step(line), "the refusal names no next step: {line}");
    Ok(())
}

/// A usage error of the argument parser: exit code 2, the program's name first, every needle, and
/// where to read more. It may show a usage line below.
pub(crate) fn expect_usage_error(output: &Output, needles: &[&str]) -> Result<()> {
    let text = &output.stderr;
    ensure!(output.code == Some(2), "exit code {:?} instead of 2: {text}", output.code);
    ensure!(output.stdout.is_empty(), "a usage error printed to stdout: {}", output.stdout);
    ensure!(text.starts_with("bridge-user: "), "a usage error starts with the program's name, not: {text}");
    for needle in needles.iter().chain(&["--help"]) {
        ensure!(text.contains(needle), "the usage error does not say {needle:?}: {text}");
    }
    Ok(())
}

/// Whether a message tells its reader something to do, or what was expected instead.
fn has_next_step(line: &str) -> bool {
    const STEPS: &str = "use |try |choose |stop |run |mount|known |must |detach |create |give |see |add |start |set \
                         |pass |as root|name one|name another|expected |let |leave |list|connect it|needs |: allow ";
    let line = line.to_lowercase();
    STEPS.split('|').any(|step| line.contains(step))
}

/// What was found about an attachment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Finding {
    pub(crate) code: String,
    pub(crate) severity: String,
    pub(crate) cause: String,
    pub(crate) cure: String,
}

impl Finding {
    /// Every finding of an attachment or a document. Whatever is wrong has a cure.
    pub(crate) fn list(holder: &Value) -> Result<Vec<Self>> {
        let list = holder["findings"].as_array();
        let list = list.with_context(|| format!("no list of findings: {holder}"))?;
        list.iter().map(Self::parse).collect()
    }

    fn parse(value: &Value) -> Result<Self> {
        let text = |key: &str| {
            let found = value[key].as_str().map(str::to_owned);
            found.with_context(|| format!("finding without the text {key}: {value}"))
        };
        let finding = Self {
            code: text("code")?,
            severity: text("severity")?,
            cause: text("cause")?,
            cure: text("cure")?,
        };
        ensure!(!text("subject")?.is_empty() && !finding.cause.is_empty(), "about what, and why: {value}");
        match finding.severity.as_str() {
            "info" => {}
            "warning" | "error" => ensure!(!finding.cure.is_empty(), "a finding without a cure: {value}"),
            _ => bail!("a finding of another severity: {value}"),
        }
        Ok(finding)
    }
}

/// One attachment as `status --output json` describes it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attachment {
    pub(crate) name: String,
    pub(crate) datapath: String,
    pub(crate) state: String,
    pub(crate) allow: Vec<String>,
    pub(crate) gateways: Vec<String>,
    pub(crate) counters: Moved,
    pub(crate) findings: Vec<Finding>,
    /// The whole object, for fields only one trial looks at.
    pub(crate) raw: Value,
}

impl Attachment {
    fn parse(value: &Value) -> Result<Self> {
        let text = |key: &str| {
            let found = value[key].as_str().map(str::to_owned);
            found.with_context(|| format!("attachment without the text {key}: {value}"))
        };
        let texts = |key: &str| -> Result<Vec<String>> {
            let list = value[key]
                .as_array()
                .with_context(|| format!("attachment without the list {key}: {value}"))?;
            list.iter().map(|item| item.as_str().map(str::to_owned).context("not a text")).collect()
        };
        let count = |key: &str| {
            let found = value["counters"][key].as_u64();
            found.with_context(|| format!("attachment without the counter {key}: {value}"))
        };
        let counters = Moved {
            accepted: count("accepted")?,
            denied: count("denied")?,
            no_listener: count("no_listener")?,
        };
        Ok(Self {
            name: text("name")?,
            datapath: text("datapath")?,
            state: text("state")?,
            allow: texts("allow")?,
            gateways: texts("gateways")?,
            counters,
            findings: Finding::list(value)?,
            raw: value.clone(),
        })
    }

    /// How many SYNs came to a stage.
    pub(crate) fn stage(&self, name: &str) -> Result<u64> {
        let count = self.raw["counters"]["stages"][name].as_u64();
        count.with_context(|| format!("{} has no stage {name}: {}", self.name, self.raw))
    }

    /// Requires that something is wrong with it, and that it is this and nothing else.
    pub(crate) fn expect_finding(&self, code: &str) -> Result<()> {
        let wrong = self.findings.iter().filter(|finding| finding.severity != "info");
        let codes: Vec<_> = wrong.map(|finding| finding.code.as_str()).collect();
        ensure!(codes == [code], "{} has the findings {codes:?} instead of {code}: {}", self.name, self.raw);
        let detail = self.raw["detail"].as_str().unwrap_or_default();
        let found = self.findings.iter().find(|finding| finding.code == code);
        let said = found.map(|finding| format!("{}: {}", finding.cause, finding.cure));
        ensure!(said.as_deref() == Some(detail), "the detail is {detail:?} instead of {said:?}");
        Ok(())
    }
}
