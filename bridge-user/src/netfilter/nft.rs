//! Running nft(8) in a network namespace.

use std::{io::Write as _, process::Stdio};

use anyhow::{Context as _, Error, bail};

use super::program;
use crate::net::namespace::Namespace;

/// Runs a script in the network namespace, as one transaction.
///
/// # Errors
/// With nft's own words when it refuses.
pub fn nft(namespace: &Namespace, script: &str) -> anyhow::Result<()> {
    let mut command = program::prepared(&["nft"]).map_err(Error::msg)?;
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
