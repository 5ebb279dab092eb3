//! `transcripts::*`: what README and docs/guide.md show is what a run prints.
//!
//! Invariants: a transcript is what real parts print in this run: bridge-user, redis-cli, a Docker engine; only what
//! differs from run to run is replaced. `BRIDGE_RECORD=1` writes the files below docs/transcripts, otherwise they are
//! compared; that the documents show those files is for `cargo xtask lint`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Test;
use crate::harness::docker::Engine;
use crate::harness::image;
use crate::harness::proc::{Output, run_in};
use crate::harness::redis::Redis;

pub(super) const TESTS: &[Test] = &[
    Test::on_host("transcripts::attach", || recorded("attach", attach)),
    Test::on_host("transcripts::dry_run", || recorded("dry-run", dry_run)),
    Test::on_host("transcripts::allow", || recorded("allow", allow)),
];

/// Makes the files in place of comparing them.
const RECORD: &str = "BRIDGE_RECORD";
/// Redis's password, which its stock configuration wants of clients that are not local.
const PASSWORD: &str = "REDISCLI_AUTH=secret";

/// A console on the engine's host.
struct Console<'a> {
    engine: &'a Engine,
    text: String,
}

impl Console<'_> {
    fn bridge_user(&mut self, arguments: &[&str]) -> Result<()> {
        let output = self.engine.cli().run(arguments)?;
        output.success()?;
        self.show(&format!("sudo bridge-user {}", arguments.join(" ")), &output);
        Ok(())
    }

    /// Runs `docker`, which may fail, as what it runs may.
    fn docker(&mut self, arguments: &[&str]) -> Result<()> {
        let output = self.engine.docker_output(arguments)?;
        self.show(&format!("docker {}", arguments.join(" ")), &output);
        Ok(())
    }

    fn redis_cli(&mut self, arguments: &[&str]) -> Result<()> {
        let output = run_in(&self.engine.host, Command::new("redis-cli").args(arguments))?;
        output.success()?;
        self.show(&format!("redis-cli {}", arguments.join(" ")), &output);
        Ok(())
    }

    fn show(&mut self, command: &str, output: &Output) {
        self.text.push_str(&format!("$ {command}\n"));
        self.text.push_str(&normalised(&output.stdout));
        self.text.push_str(&normalised(&output.stderr));
    }
}

/// Runs `body` beside a stock Redis on the host, and compares or records what its console shows.
fn recorded(name: &str, body: fn(&mut Console<'_>) -> Result<()>) -> Result<()> {
    let engine = Engine::start()?;
    let _redis = Redis::start(&engine.host, 6379, &[])?;
    image::with_program(&engine, "redis", "redis-cli")?;
    let mut console = Console { engine: &engine, text: String::new() };
    body(&mut console)?;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../docs/transcripts/{name}.txt"));
    let failed = |verb: &str| format!("failed to {verb} docs/transcripts/{name}.txt");
    if std::env::var_os(RECORD).is_some_and(|value| value == "1") {
        return std::fs::write(&file, &console.text).with_context(|| failed("write"));
    }
    let kept = std::fs::read_to_string(&file).with_context(|| failed("read"))?;
    ensure!(
        kept == console.text,
        "docs/transcripts/{name}.txt is not what is printed now: record it with {RECORD}=1, and copy it into the \
         documents that show it:\n{}",
        console.text
    );
    Ok(())
}

fn attach(console: &mut Console<'_>) -> Result<()> {
    console.redis_cli(&["config", "set", "requirepass", "secret"])?;
    console.bridge_user(&["attach", "redis"])?;
    console.docker(&["run", "--rm", "--env", PASSWORD, "redis", "redis-cli", "-h", "172.17.0.1", "ping"])?;
    console.bridge_user(&["status"])?;
    console.bridge_user(&["detach", "redis"])
}

/// Something is attached already, so that only the attachment itself is to be made.
fn dry_run(console: &mut Console<'_>) -> Result<()> {
    console.engine.cli().ok(&["attach", "redis"])?;
    console.bridge_user(&["attach", "web=8080:3000", "--dry-run"])
}

fn allow(console: &mut Console<'_>) -> Result<()> {
    let engine = console.engine;
    run_in(&engine.host, Command::new("redis-cli").args(["config", "set", "requirepass", "secret"]))?
        .success()?;
    for name in ["worker", "stranger"] {
        engine
            .docker(&["run", "--detach", "--name", name, "--env", PASSWORD, "redis", "sleep", "1000000"])?;
    }
    console.bridge_user(&["attach", "redis", "--allow", "worker"])?;
    for name in ["worker", "stranger"] {
        console.docker(&["exec", name, "redis-cli", "-h", "172.17.0.1", "ping"])?;
    }
    console.bridge_user(&["status"])?;
    console.bridge_user(&["events"])
}

/// Replaces what differs from run to run: a namespace's inode, process ids, times, and the ports that clients were
/// given.
fn normalised(text: &str) -> String {
    let line = |line: &str| {
        let line = digits_after(line, "/sys/fs/bpf/bridge-user/", "4026532177");
        let line = digits_after(&line, "(pid ", "812");
        format!("{}\n", event(&line, "2026-01-02T03:04:05.678Z", "40112"))
    };
    text.lines().map(line).collect()
}

/// Puts `new` in the place of the digits behind each `before`.
fn digits_after(line: &str, before: &str, new: &str) -> String {
    let mut parts = line.split(before);
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        text = format!("{text}{before}{}{rest}", if rest.len() < part.len() { new } else { "" });
    }
    text
}

/// Puts `time` and `port` in the place of TIME and PORT in an event, `TIME WARN … ADDRESS:PORT -> …`.
fn event(line: &str, time: &str, port: &str) -> String {
    let parts = line.split_once(' ').and_then(|(_, rest)| rest.split_once(" -> "));
    let is_event = |client: &str| client.starts_with("WARN ") || client.starts_with("DEBUG ");
    let Some((client, rest)) = parts.filter(|(client, _)| is_event(client)) else { return line.to_owned() };
    let address = client.trim_end_matches(|c: char| c.is_ascii_digit());
    if address.ends_with(':') { format!("{time} {address}{port} -> {rest}") } else { line.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_varies_is_replaced() {
        let event = "2027-12-31T23:59:59.001Z WARN denied 172.17.0.3:57098 -> 172.17.0.1:6379: source not in the \
                     allow-list\n";
        let same =
            event.replace("57098", "40112").replace("2027-12-31T23:59:59.001", "2026-01-02T03:04:05.678");
        assert_eq!(normalised(event), same);
        let step =
            "attach bridge-web-8080 in /sys/fs/bpf/bridge-user/4026531840: 172.17.0.1:8080 on docker0\n";
        assert_eq!(normalised(step), step.replace("4026531840", "4026532177"));
        let summary = "containers will reach web at 172.17.0.1:8080 -> 127.0.0.1:3000\n";
        assert_eq!(normalised(summary), summary);
        assert_eq!(
            normalised("register redis-server (pid 7) on 127.0.0.1:6379"),
            "register redis-server (pid 812) on 127.0.0.1:6379\n"
        );
        assert_eq!(normalised("nothing of the kind\n"), "nothing of the kind\n");
    }
}
