//! The `bridge-user` binary: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    bridge_user::cli::main()
}
