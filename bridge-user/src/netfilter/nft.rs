//! Running nft(8) in a network namespace.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use crate::net::namespace::Namespace;

/// nft(8) with nothing of the caller's environment: cron's PATH has no sbin, and a variable can change what it does.
fn program() -> anyhow::Result<Command> {
    const DIRECTORIES: [&str; 5] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin"];
    let found = DIRECTORIES.iter().map(|dir| Path::new(dir).join("nft")).find(|path| path.is_file());
    let path = found.with_context(|| {
        format!("cannot find nft in {}: install the package nftables", DIRECTORIES.join(", "))
    })?;
    let mut command = Command::new(path);
    command.env_clear().env("LC_ALL", "C");
    Ok(command)
}

/// Runs a script in the network namespace, as one transaction.
///
/// # Errors
/// With nft's own words when it refuses.
pub fn nft(namespace: &Namespace, script: &str) -> anyhow::Result<()> {
    let mut command = program()?;
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut nft = namespace.run(|| command.spawn())?.context("cannot run nft")?;
    // Closed at the end of the statement, which is the end of the script.
    nft.stdin.take().context("nft has no standard input")?.write_all(script.as_bytes())?;
    let output = nft.wait_with_output()?;
    if !output.status.success() {
        bail!("nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
