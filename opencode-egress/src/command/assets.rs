//! `completions` and `man`: what packagers install beside the program, made from its command line.

use std::{fs, io::Write as _, path::Path};

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::command::args::Cli;

/// Prints a shell's completions.
pub(super) fn completions(shell: Shell) -> Result<()> {
    let mut script = vec![];
    clap_complete::generate(shell, &mut Cli::command(), env!("CARGO_PKG_NAME"), &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}

/// Writes the manual pages, one for each subcommand and one for all.
pub(super) fn man(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), directory))
        .with_context(|| format!("cannot write the manual pages into {}", directory.display()))
}
