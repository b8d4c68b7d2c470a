//! The `opencode-egress` command. What it does is in the library.

use std::{io, process::ExitCode};

use clap::Parser as _;
use opencode_egress::command::{
    self,
    args::{Cli, Command},
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match command::run(&cli.command) {
        Ok(code) => code,
        // `events --follow | head`: who read has enough.
        Err(error) if error.downcast_ref().is_some_and(is_closed) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("opencode-egress: {error:#}");
            // `exec` passes its command's status on, so its own failure is what env(1) and others use.
            ExitCode::from(if matches!(cli.command, Command::Exec(_)) { 125 } else { 1 })
        }
    }
}

fn is_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}
