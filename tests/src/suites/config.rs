//! `config::*`: the configuration file, as `run --check-config` reads it, and as `--save` writes it.
//!
//! Invariants: checking changes nothing and needs nothing: no root, no engine, no bridge. What is saved is what is
//! attached and serves, with exact counters; what fails leaves neither an attachment nor a changed file.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Test;
use super::refusals::{lone_host, refuse};
use crate::harness::cli::{Cli, binary, expect_usage_error, note_run};
use crate::harness::client::answers;
use crate::harness::netns::Netns;
use crate::harness::proc::{Output, run_in};
use crate::harness::rig::{Moved, Rig};
use crate::harness::service::Service;
use crate::harness::topology::{GATEWAY_A, at, local};

pub(super) const TESTS: &[Test] = &[
    Test::on_host("config::is_checked_without_root", checked_without_root),
    Test::on_host("config::what_is_wrong_is_told_line_by_line", wrong_lines),
    Test::on_host("config::what_is_attached_is_saved_and_what_is_detached_is_not", saved),
    Test::on_host("config::a_dry_run_shows_what_would_be_saved", dry_run),
    Test::on_host("config::what_cannot_be_saved_is_not_attached", not_saved),
    Test::on_host("config::what_is_refused_is_not_saved", refused_specs),
];

const NOBODY: u32 = 65534;

/// `run --check-config` by nobody, on a file with this text.
fn checked(text: &str) -> Result<Output> {
    let directory = tempfile::tempdir()?;
    // The build directory may be closed to other users.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    let program = directory.path().join("bridge-user");
    fs::copy(binary()?, &program).context("failed to copy the binary")?;
    let file = directory.path().join("config.toml");
    fs::write(&file, text)?;
    let mut command = Command::new(&program);
    command.args(["run", "--check-config", "--config"]).arg(&file).uid(NOBODY).gid(NOBODY);
    let output = run_in(&Netns::new()?, &mut command)?;
    note_run(&["run", "--check-config", "(by nobody)"], &output);
    Ok(output)
}

fn checked_without_root() -> Result<()> {
    let text = "[[attach]]\nservice = \"ollama\"\nnetworks = [\"app\", \"web-*\"]\nallow = [\"web\"]\n\
                [[attach]]\nservice = \"redis\"\nbridges = [\"br-lab\"]\n";
    let output = checked(text)?;
    output.success()?;
    let expected = "line 1: containers on app, web-* will reach ollama at port 11434 -> 127.0.0.1:11434, allow web\n\
                    line 5: containers on bridge br-lab will reach redis at port 6379 -> 127.0.0.1:6379, allow the \
                    subnets of each\n";
    ensure!(output.stdout == expected, "expected\n{expected}");
    Ok(())
}

fn wrong_lines() -> Result<()> {
    let output = checked(
        "[[attach]]\nservice = \"redis\"\nnetwroks = [\"app\"]\n[relay]\nkeepalive = \"\\u001b[2J\"\n",
    )?;
    ensure!(output.code == Some(2), "expected exit code 2");
    ensure!(output.stdout.is_empty(), "expected nothing on standard output");
    let lines: Vec<_> = output.stderr.lines().collect();
    let has = |line: &str, parts: &[&str]| parts.iter().all(|part| line.contains(part));
    let [first, second] = lines.as_slice() else { anyhow::bail!("expected two lines") };
    ensure!(has(first, &["config.toml:3: unknown key `netwroks` in [[attach]]: did you mean `networks`?"]));
    ensure!(has(second, &["config.toml:5: ", "[relay]: expected seconds"]) && !second.contains('\u{1b}'));
    let host = Netns::new()?;
    Cli::new(&host).refused(
        &["run", "--check-config", "--config", "/nonexistent/c.toml"],
        2,
        &["/nonexistent/c.toml", "--config"],
    )
}

/// A file that is not there yet, in a directory that is not either.
struct Saved {
    directory: tempfile::TempDir,
    path: String,
}

impl Saved {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("etc/config.toml").display().to_string();
        Ok(Self { directory, path })
    }

    /// The arguments, then `--save --config FILE`.
    fn with<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        [arguments, &["--save", "--config", &self.path]].concat()
    }

    fn expect(&self, text: &str) -> Result<()> {
        let found = fs::read_to_string(&self.path)?;
        ensure!(found == text, "the file has\n{found}\nexpected\n{text}");
        let entries = fs::read_dir(self.directory.path().join("etc"))?.count();
        ensure!(entries == 1, "something is left beside the file");
        Ok(())
    }
}

fn saved() -> Result<()> {
    let (rig, file) = (Rig::new()?, Saved::new()?);
    let _service = Service::start(&rig.net.host, local(7001))?;
    let attach = ["attach", "web=7001", "--bridge", "br-a"];
    let say = |arguments: &[&str]| -> Result<String> {
        let output = rig.cli().run(&file.with(arguments))?;
        output.success().map(|()| output.stderr)
    };
    let section = "[[attach]]\nservice = \"web=7001\"\nbridges = [\"br-a\"]\n";
    ensure!(say(&attach)?.contains("saved in"));
    file.expect(section)?;
    rig.expect("br-a-web-7001", Moved::accepted(1), || answers(&rig.net.a1, at(GATEWAY_A, 7001)))?;
    ensure!(say(&attach)?.contains("says so already"));
    file.expect(section)?;
    let text = format!("# Ours.\n\n{section}\n# More.\n[relay]\nkeepalive = 30 # seconds\n");
    fs::write(&file.path, &text)?;
    say(&[&attach[..], &["--identity", "loopback"]].concat())?;
    file.expect(&text.replace("[\"br-a\"]\n", "[\"br-a\"]\nidentity = \"loopback\"\n"))?;
    say(&["detach", "br-a-web-7001"])?;
    file.expect("# Ours.\n\n# More.\n[relay]\nkeepalive = 30 # seconds\n")?;
    ensure!(rig.cli().status()?.is_empty(), "something is still attached");
    // What is only in the file is known by its name, too.
    fs::write(&file.path, &text)?;
    say(&["detach", "web"])?;
    let unknown = file.with(&["detach", "web"]);
    rig.cli().refused(&unknown, 1, &["web", "no attachment or service has this name"])
}

fn dry_run() -> Result<()> {
    let (rig, file) = (Rig::new()?, Saved::new()?);
    let arguments = file.with(&["attach", "web=7001", "--bridge", "br-a", "--dry-run"]);
    let shown = rig.cli().ok(&arguments)?;
    let step = format!("write {}: add a section for web on bridge br-a", file.path);
    ensure!(shown.lines().last().is_some_and(|line| line.ends_with(&step)), "the last step is another one");
    let json = rig.cli().json(&arguments)?;
    ensure!(json["configuration"] == serde_json::json!([step]), "JSON has {}", json["configuration"]);
    ensure!(!fs::exists(file.directory.path().join("etc"))?, "a dry run wrote something");
    rig.net.host.nothing_pinned()
}

/// Whatever is wrong with the file is found before anything is attached.
fn not_saved() -> Result<()> {
    let (host, file) = (lone_host()?, Saved::new()?);
    let attach = file.with(&["attach", "7001", "--bridge", "br-a"]);
    fs::write(file.directory.path().join("etc"), "no directory")?;
    refuse(&host, &attach, 1, &["failed to", "etc"])?;
    fs::remove_file(file.directory.path().join("etc"))?;
    fs::create_dir(file.directory.path().join("etc"))?;
    fs::write(&file.path, "[[attach]]\nservise = \"7001\"\n")?;
    refuse(&host, &attach, 2, &["config.toml:2", "did you mean `service`?"])?;
    let other = "[[attach]]\nservice = \"other=7001\"\nbridges = [\"br-a\"]\n";
    fs::write(&file.path, other)?;
    refuse(&host, &attach, 1, &["line 1 of", "port 7001 of bridge br-a for other", "detach other --save"])?;
    file.expect(other)?;
    let alone = Cli::new(&host).run(&["attach", "7001", "--bridge", "br-a", "--config", &file.path])?;
    expect_usage_error(&alone, &["--save"])
}

fn refused_specs() -> Result<()> {
    let (rig, file) = (Rig::new()?, Saved::new()?);
    let attach = |specs: &[&'static str]| {
        rig.cli().run(&file.with(&[&["attach", "--bridge", "br-a"], specs].concat()))
    };
    let output = attach(&["7001:unix:/run/x.sock"])?;
    ensure!(output.code == Some(1) && output.stderr.contains("nothing is attached, so nothing is saved"));
    ensure!(!fs::exists(&file.path)?, "what is refused is saved");
    let output = attach(&["7001:unix:/run/x.sock", "7002"])?;
    ensure!(output.code == Some(1) && output.stderr.contains("saved in"));
    file.expect("[[attach]]\nservice = \"7002\"\nbridges = [\"br-a\"]\n")
}
