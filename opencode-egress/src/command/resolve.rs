//! `resolve`: the resolver.

use std::{
    io::{self, IsTerminal as _},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    panic,
    path::Path,
    process::{self, Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
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
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .init();
    // A task that ended alone would leave its socket unread.
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        report(info);
        process::abort();
    }));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // What it takes to run is there.
    privileges::keep_to_questions().context("cannot give up system calls")?;
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

/// Starts a resolver as a child, of the program at this path, and returns the daemon's end of its connection. The child ends with that.
///
/// # Errors
///
/// When the system refuses.
pub fn start(program: &Path) -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new(program);
    command
        .args(["resolve", "--fd", &theirs.as_raw_fd().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    // It reads none of them but RUST_LOG, and they may have secrets.
    command.env_clear();
    if let Some(level) = std::env::var_os("RUST_LOG") {
        command.env("RUST_LOG", level);
    }
    // Signals of the terminal are for the command, which may still ask while it ends.
    command.process_group(0);
    // SAFETY: between fork and exec it makes one system call, on a descriptor that is open for as long as `command` is.
    unsafe { command.pre_exec(move || Ok(fcntl_setfd(&theirs, FdFlags::empty())?)) };
    let child = command.spawn()?;
    Ok((child, ours))
}
