//! The `opencode-egress` command. What it does is in the library.

use std::{env, io, process::ExitCode};

use clap::Parser as _;
use opencode_egress::command::{
    self,
    args::{Cli, Command},
};

/// What `exec` ends with where it fails itself, as env(1) and others do: it passes its command's status on.
const EXEC_FAILED: u8 = 125;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error)
            if error.use_stderr() && env::args_os().nth(1).is_some_and(|command| command == "exec") =>
        {
            // When standard error is closed, nobody asks.
            let _ = error.print();
            return ExitCode::from(EXEC_FAILED);
        }
        Err(error) => error.exit(),
    };
    match command::run(&cli.command) {
        Ok(code) => code,
        // `events --follow | head`: who read has enough.
        Err(error) if error.downcast_ref().is_some_and(is_closed) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("opencode-egress: {error:#}");
            ExitCode::from(if matches!(cli.command, Command::Exec(_)) { EXEC_FAILED } else { 1 })
        }
    }
}

fn is_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}
