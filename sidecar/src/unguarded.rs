//! `toolward-sidecar` with guards that can be removed: for tests only.

use std::process::ExitCode;

#[path = "main.rs"]
mod program;

fn main() -> ExitCode {
    program::main()
}
