//! `run`: the daemon.

use anyhow::{Context as _, Result};
use libsystemd::logging::connected_to_journal;
use tracing_subscriber::{
    EnvFilter,
    fmt::{self, format},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::{
    command::args::RunArgs,
    daemon::{
        Daemon,
        serve::{listen, serve},
    },
};

/// Runs the daemon until it is told to stop.
///
/// # Errors
///
/// When it cannot start.
pub(super) fn run(args: &RunArgs) -> Result<()> {
    log();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let socket = &args.control.socket;
    let entered = runtime.enter();
    // Before anything is applied: where another daemon answers, nothing is. Who asks meanwhile waits.
    let listener = listen(socket).with_context(|| format!("cannot listen at {}", socket.display()))?;
    let copies = socket.parent().unwrap_or(socket);
    let daemon = Daemon::start(&args.config, &args.pins, copies);
    drop(entered);
    let daemon = daemon.inspect_err(|_| {
        // It is stale then, and the next daemon takes its place in any case.
        let _ = std::fs::remove_file(socket);
    })?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, serve(daemon, listener, socket, args.metrics.as_ref()))?;
    Ok(())
}

/// To the journal itself where stderr goes there, so that priorities and fields arrive; else to stderr.
fn log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    if connected_to_journal()
        && let Ok(journal) = tracing_journald::layer()
    {
        return registry.with(journal.with_field_prefix(None)).init();
    }
    // The message says it all; the fields are the journal's.
    let message = format::debug_fn(|writer, field, value| match field.name() {
        "message" => write!(writer, "{value:?}"),
        _ => Ok(()),
    });
    let stderr = fmt::layer().fmt_fields(message).with_writer(std::io::stderr).with_target(false);
    registry.with(stderr).init();
}
