//! What the commands that ask the daemon have in common.

use std::path::PathBuf;

use clap::Args;

/// Where the daemon answers.
pub const CONTROL_SOCKET: &str = "/run/opencode-egress/control.sock";

/// Where to reach the daemon.
#[derive(Debug, Args)]
pub struct ControlArgs {
    /// The daemon's socket
    #[arg(long, value_name = "PATH", default_value = CONTROL_SOCKET)]
    pub socket: PathBuf,
}

/// Arguments of a command that reads from the daemon.
#[derive(Debug, Args)]
pub struct ReadArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where to reach the daemon.
    #[command(flatten)]
    pub control: ControlArgs,
}
