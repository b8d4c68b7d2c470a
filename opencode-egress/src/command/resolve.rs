//! `resolve`: the resolver.

use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

use anyhow::{Context as _, Result, bail};
use rustix::io::fcntl_getfd;
use tracing_subscriber::EnvFilter;

use crate::{
    command::args::ResolveArgs,
    resolver::{Connection, privileges, serve},
};

/// Answers questions until it is told to stop.
///
/// # Errors
///
/// When it cannot give up its privileges, or the connection that was made for it breaks off.
pub(super) fn resolve(args: &ResolveArgs) -> Result<()> {
    let connection = match args.fd {
        Some(number) => Connection::Descriptor(inherited(number)?),
        None => Connection::Path(args.control.clone()),
    };
    privileges::drop_all().context("cannot give up privileges")?;
    let level = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(level)
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, serve(connection, args.resolv_conf.clone())).context("the resolver ends")
}

/// A descriptor that the parent process left open for this one.
fn inherited(number: RawFd) -> Result<OwnedFd> {
    if number <= 2 {
        bail!("--fd {number} is a standard stream; it has to be a socket that is connected to the daemon");
    }
    // SAFETY: nothing of this process has opened anything yet but the standard streams, so nothing of it owns this number; one that is
    // not open is found out in the next line, and not closed.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    if let Err(errno) = fcntl_getfd(&descriptor) {
        std::mem::forget(descriptor);
        return Err(errno).with_context(|| format!("--fd {number} is not open"));
    }
    Ok(descriptor)
}
