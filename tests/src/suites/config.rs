//! `config::*`: the configuration file, as `run --check-config` reads it.
//!
//! Invariant: checking changes nothing and needs nothing: no root, no engine, no bridge.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Test;
use crate::harness::cli::{Cli, binary, note_run};
use crate::harness::netns::Netns;
use crate::harness::proc::{Output, run_in};

pub(super) const TESTS: &[Test] = &[
    Test::on_host("config::is_checked_without_root", checked_without_root),
    Test::on_host("config::what_is_wrong_is_told_line_by_line", wrong_lines),
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
