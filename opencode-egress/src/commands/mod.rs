//! One file a subcommand.

mod check;
mod exec;

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::Command;

/// Runs a subcommand.
///
/// # Errors
///
/// Its own.
pub fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Exec(args) => return exec::exec(args),
        Command::Check(args) => check::check(args)?,
        _ => anyhow::bail!("not built yet"),
    }
    Ok(ExitCode::SUCCESS)
}
