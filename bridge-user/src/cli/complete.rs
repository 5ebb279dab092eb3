//! Shell completion: the scripts that shells load, and the answers to what these ask while somebody types.
//!
//! Invariants: completing changes nothing, and never fails: what cannot be found out is not proposed. The scripts ask
//! the binary itself, so what they propose is of the version that runs.

use std::ffi::OsString;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::{CompleteEnv, Shell, env::Shells};

use super::Cli;

/// Set by the scripts, to the shell's name.
const VARIABLE: &str = "BRIDGE_USER_COMPLETE";
const BINARY: &str = "bridge-user";
/// zsh calls a file of its fpath like a function at the first completion, and wants an answer then, too.
const ZSH_AUTOLOAD: &str =
    "\nif [[ $funcstack[1] == _bridge-user ]]; then\n    _clap_dynamic_completer_bridge_user \"$@\"\nfi\n";

/// Answers a shell that asks what can follow. False: nobody asks, this is an ordinary run.
pub fn complete(arguments: impl IntoIterator<Item = OsString>) -> bool {
    let here = std::env::current_dir().ok();
    let asked = CompleteEnv::with_factory(Cli::command).var(VARIABLE);
    // A shell of no known kind, or one that is gone, gets no answer.
    asked.try_complete(arguments, here.as_deref()).unwrap_or(true)
}

/// What the shell has to load.
pub(super) fn script(shell: Shell) -> anyhow::Result<Vec<u8>> {
    let shells = Shells::builtins();
    let name = shell.to_string();
    let completer = shells.completer(&name).with_context(|| format!("failed to complete in {name}"))?;
    let mut script = Vec::new();
    completer.write_registration(VARIABLE, BINARY, BINARY, BINARY, &mut script)?;
    if shell == Shell::Zsh {
        script.extend(ZSH_AUTOLOAD.as_bytes());
    }
    Ok(script)
}
