//! The subcommands.

pub mod args;
mod arguments;
mod assets;
mod attach;
mod check;
mod client;
mod exec;
mod learn;
mod leases;
mod metrics;
mod presets;
mod print;
pub mod resolve;
mod run;
mod suggest;
mod top;
mod why;

use std::process::ExitCode;

use anyhow::Result;

use crate::command::args::Command;

/// Runs a subcommand.
///
/// # Errors
///
/// When the subcommand cannot do its work; each says why, and what to do.
pub fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Exec(args) => return exec::exec(args),
        Command::Check(args) => return check::check(args),
        Command::Run(args) => run::run(args)?,
        Command::Resolve(args) => resolve::resolve(args)?,
        Command::Attach(args) => attach::attach(args)?,
        Command::Status(args) => client::status(args)?,
        Command::Top(args) => top::top(args)?,
        Command::Explain(args) => client::explain(args)?,
        Command::Why(args) => why::why(args)?,
        Command::Names(args) => client::names(args)?,
        Command::Events(args) => client::events(args)?,
        Command::Metrics(args) => metrics::metrics(args)?,
        Command::Suggest(args) => suggest::suggest(args)?,
        Command::Presets(args) => presets::presets(args)?,
        Command::Reload(args) => client::reload(args)?,
        Command::Detach(args) => client::detach(args)?,
        Command::Learn(args) => learn::learn(args)?,
        Command::Allow(args) => leases::allow(args)?,
        Command::Revoke(args) => leases::revoke(args)?,
        Command::Leases(args) => leases::leases(args)?,
        Command::Completions { shell } => assets::completions(*shell)?,
        Command::Man { directory } => assets::man(directory)?,
    }
    Ok(ExitCode::SUCCESS)
}
