//! The `voicebot` program. The only place that exits the process.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    voicebot::cli::main()
}
