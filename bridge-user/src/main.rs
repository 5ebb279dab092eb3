//! The `bridge-user` binary: everything is in the library.

use std::process::ExitCode;

use bridge_user::{
    Scope,
    cli::{self, Out},
};

fn main() -> ExitCode {
    if cli::complete(std::env::args_os()) {
        return ExitCode::SUCCESS;
    }
    cli::run(std::env::args_os(), Scope::of_this_thread, &Out::standard())
}
