//! `run`: the daemon.

use anyhow::Result;
use tracing_subscriber::EnvFilter;

use crate::{
    cli::RunArgs,
    daemon::{Daemon, serve},
};

/// Runs the daemon until it is told to stop.
///
/// # Errors
///
/// When it cannot start.
pub(super) fn run(args: &RunArgs) -> Result<()> {
    log_to_stderr();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let daemon = Daemon::start(&args.config, &args.pins)?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, serve(daemon, &args.control.socket))?;
    Ok(())
}

/// The journal adds the time to what comes from a service.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        builder.without_time().with_ansi(false).init();
    } else {
        builder.init();
    }
}
