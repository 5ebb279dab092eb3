//! `shells::*`: what bash, zsh and fish propose, and what they make of the hints that are to be pasted.
//!
//! Invariant: each shell is the real one, with its stock configuration, loads what `completions` prints, and asks as it
//! does when somebody types; the harness only takes the place of the keyboard and the screen.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::Test;
use crate::harness::cli::{Cli, binary};
use crate::harness::docker::Engine;
use crate::harness::netns::Netns;
use crate::harness::proc::run_in;

pub(super) const TESTS: &[Test] = &[
    Test::on_host("shells::bash_completes", || completes(Shell::Bash)),
    Test::on_host("shells::zsh_completes", || completes(Shell::Zsh)),
    Test::on_host("shells::fish_completes", || completes(Shell::Fish)),
    Test::on_host("shells::completions_need_nothing", need_nothing),
    Test::on_host("shells::hints_can_be_pasted", pasted),
];

/// What is typed, and a part of what is proposed then.
const PROPOSED: [(&[&str], &str); 15] = [
    (&[""], "attach"),
    (&["st"], "status"),
    (&["attach", "re"], "redis"),
    (&["attach", "redis", "po"], "postgres"),
    (&["attach", "--foreground", "oll"], "ollama"),
    (&["attach", "redis", "--netw"], "--network"),
    (&["attach", "redis", "--network", "app"], "appnet"),
    (&["attach", "redis", "--network", "appnet", "--network", ""], "bridge"),
    (&["attach", "redis", "--bridge", "doc"], "docker0"),
    (&["attach", "7001", "--container", "wor"], "worker"),
    (&["attach", "7001", "--allow", "wor"], "worker"),
    (&["attach", "redis", "--identity", "l"], "loopback"),
    (&["detach", "bri"], "bridge-redis-6379"),
    (&["status", ""], "bridge-redis-6379"),
    (&["events", "--container", ""], "worker"),
];

#[derive(Clone, Copy)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Shell {
    const ALL: [Self; 3] = [Self::Bash, Self::Zsh, Self::Fish];

    fn name(self) -> &'static str {
        match self {
            Self::Bash => "bash",
            Self::Zsh => "zsh",
            Self::Fish => "fish",
        }
    }

    /// A file where the shell looks for completions, and what prints the proposals for the words in its arguments, the
    /// last of which is being typed.
    fn harness(self) -> (&'static str, &'static str) {
        match self {
            Self::Bash => (
                "bridge-user",
                r#"source "$SCRIPTS/bridge-user"; set -- bridge-user "$@"
                   COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_TYPE=9; COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
                   handler=$(complete -p bridge-user | sed 's/.* -F \([^ ]*\) .*/\1/')
                   "$handler" bridge-user "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
                   printf '%s\n' "${COMPREPLY[@]}""#,
            ),
            // The first completion in a zsh loads the file and wants an answer of it.
            Self::Zsh => (
                "_bridge-user",
                r#"fpath=("$SCRIPTS" $fpath); autoload -Uz _bridge-user; compdef() { }
                   _describe() { print -rl -- "${(@P)argv[3]}" }
                   words=(bridge-user "$@"); CURRENT=$#words; _bridge-user"#,
            ),
            Self::Fish => (
                "bridge-user.fish",
                r#"source "$SCRIPTS/bridge-user.fish"; complete --do-complete "bridge-user $argv""#,
            ),
        }
    }

    fn command(self, code: &str) -> Command {
        let mut command = Command::new(self.name());
        match self {
            Self::Bash => command.args(["--norc", "--noprofile", "-c", code, "bash"]),
            Self::Zsh => command.args(["-f", "-c", code, "zsh"]),
            Self::Fish => command.args(["--no-config", "-c", code]),
        };
        command
    }
}

/// A directory in which the shell finds the binary and the script that it prints.
fn installed(shell: Shell, netns: &Netns) -> Result<TempDir> {
    let directory = tempfile::tempdir()?;
    symlink(binary()?, directory.path().join("bridge-user")).context("failed to link the binary")?;
    let scripts = directory.path().join("scripts");
    std::fs::create_dir(&scripts)?;
    let script = Cli::new(netns).ok(&["completions", shell.name()])?;
    std::fs::write(scripts.join(shell.harness().0), script)?;
    Ok(directory)
}

fn proposals(shell: Shell, netns: &Netns, directory: &Path, docker: &str, words: &[&str]) -> Result<String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = shell.command(shell.harness().1);
    command
        .args(words)
        .env("PATH", format!("{}:{path}", directory.display()))
        .env("SCRIPTS", directory.join("scripts"))
        .env("HOME", directory)
        .env("DOCKER_HOST", docker);
    let output = run_in(netns, &mut command)?;
    output.success().with_context(|| format!("{} at {words:?}", shell.name()))?;
    Ok(output.stdout)
}

fn completes(shell: Shell) -> Result<()> {
    let engine = Engine::start()?;
    engine.docker(&["network", "create", "appnet"])?;
    engine.container("worker", &["--network", "appnet"])?;
    engine.cli().ok(&["attach", "redis"])?;
    let directory = installed(shell, &engine.host)?;
    for (words, expected) in PROPOSED {
        let said = proposals(shell, &engine.host, directory.path(), &engine.endpoint(), words)?;
        // zsh and fish say what it is behind a colon or a tab.
        let found = said.lines().any(|line| line.split([':', '\t']).next().map(str::trim) == Some(expected));
        ensure!(found, "{} does not propose {expected} after {words:?}: {said:?}", shell.name());
    }
    Ok(())
}

/// Neither rights nor an engine: what cannot be found out is not proposed, and nothing is said.
fn need_nothing() -> Result<()> {
    let netns = Netns::new()?;
    for shell in Shell::ALL {
        let directory = installed(shell, &netns)?;
        for words in [&["attach", "--network", ""][..], &["detach", ""], &["attach", "--nonsense", ""]] {
            proposals(shell, &netns, directory.path(), "unix:///nonexistent/docker.sock", words)?;
        }
    }
    for shell in ["elvish", "powershell"] {
        ensure!(!Cli::new(&netns).ok(&["completions", shell])?.is_empty(), "no script for {shell}");
    }
    Ok(())
}

fn pasted() -> Result<()> {
    let netns = Netns::new()?;
    for (typed, meant) in
        [("::1:80", "[::1]:80"), ("80:[::1]", "80:[::1]:80"), ("redis:7000:6379", "redis=7000:6379")]
    {
        let refusal = Cli::new(&netns).run(&["attach", typed, "--bridge", "br-a"])?.stderr;
        let hint = refusal.rsplit("write `").next().and_then(|rest| rest.split('`').next());
        let hint = hint.with_context(|| format!("no hint in {refusal}"))?;
        for shell in Shell::ALL {
            let output = run_in(&netns, &mut shell.command(&format!("printf '%s\\n' {hint}")))?;
            output.success()?;
            ensure!(output.stdout.trim() == meant, "{} makes {output:?} of {hint}", shell.name());
        }
    }
    Ok(())
}
