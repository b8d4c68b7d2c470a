//! `run`: the daemon.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{
    command::args::RunArgs,
    daemon::{
        Daemon,
        serve::{hangups, listen, serve},
    },
    report::journal::Journal,
};

/// How long the lines that say why the daemon did not start may take to be written.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Runs the daemon until it is told to stop.
///
/// # Errors
///
/// When it cannot start.
pub(super) fn run(args: &RunArgs) -> Result<()> {
    give_back_large_blocks();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let entered = runtime.enter();
    // Before anything that takes time: a signal that asks for a reload must not end what is about to start.
    let hangups = hangups().context("cannot handle SIGHUP")?;
    let journal = Journal::start().context("cannot start to log")?;
    journal.take_own_lines();
    let socket = &args.control.socket;
    // Nothing is applied where another daemon answers. Clients that connect meanwhile wait.
    let listener = listen(socket).with_context(|| format!("cannot listen at {}", socket.display()))?;
    let copies = socket.parent().unwrap_or(socket);
    let daemon = Daemon::start(&args.config, &args.pins, copies, journal.clone());
    drop(entered);
    let daemon = daemon.inspect_err(|_| {
        // Nobody listens there any more. Should it stay, the next daemon replaces it.
        let _ = std::fs::remove_file(socket);
        journal.flush(LAST_LINES);
    })?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, serve(daemon, listener, socket, args.metrics.as_ref(), hangups))?;
    // A reload that is under way is not waited for.
    runtime.shutdown_background();
    Ok(())
}

/// Has malloc give large blocks back to the system when they are freed. By itself it keeps those of the size of one that was
/// freed before (mallopt(3), `M_MMAP_THRESHOLD`): after a reload of a million rules, several times what they take.
fn give_back_large_blocks() {
    // SAFETY: it sets a number, and there is no other thread yet that could allocate.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024)
    };
}
