//! `prism`: one data-access layer for every backend.

use std::process::ExitCode;

fn main() -> ExitCode {
    prism_core::cli::run(prism_core::serve::run)
}
