//! Running the daemon: the control socket, the ring buffer, signals, time.

mod clients;
pub mod exposition;
mod receive;
mod reload;
mod resolver;
mod socket;
mod why;

use std::{
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use sd_notify::{NotifyState, notify};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::{UnixListener, UnixStream},
    signal::unix::{Signal, SignalKind, signal},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{spawn_local, yield_now},
    time::{Instant, interval, sleep},
};
use tracing::{info, warn};

use crate::{
    control::{caller::Caller, learned::resolver_socket, request::why_socket},
    daemon::{
        serve::{clients::Server, exposition::MetricsAddress, resolver::take_resolvers, why::answer_why},
        state::Daemon,
    },
};

/// How often folded lines are looked for.
const TICK: Duration = Duration::from_secs(1);
/// How often units without links, and links without units, are looked for when inotify says nothing.
const RECONCILE: Duration = Duration::from_secs(5);
/// How long after one look the next one comes at the earliest, when inotify does: a look at a thousand units takes tens of
/// milliseconds.
const PAUSE: Duration = Duration::from_millis(100);
/// How long the last lines may take to be written.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Signals that ask for a reload, from now on. Until then they end the process, as any that does not handle them.
///
/// # Errors
///
/// When they cannot be had.
pub fn hangups() -> io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// Serves those who come to `listener`, at the path `socket`, until told to stop. Everything that is confined stays so afterwards.
///
/// # Errors
///
/// When a signal cannot be had.
pub async fn serve(
    daemon: Daemon,
    listener: UnixListener,
    socket: &Path,
    metrics: Option<&MetricsAddress>,
    mut hangups: Signal,
) -> io::Result<()> {
    let (mut stop, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let ring = readable(daemon.loaded.events.as_fd().try_clone_to_owned()?)?;
    let resets = readable(daemon.loaded.resets.as_fd().try_clone_to_owned()?)?;
    let bell = daemon.confinement.watch.bell().map(|bell| bell.try_clone_to_owned().and_then(readable));
    let bell = bell.transpose()?;
    let mut quiet_until = Box::pin(sleep(Duration::ZERO));
    let server = Rc::new(Server::new(daemon));
    let mut tick = interval(TICK);
    let mut reconcile = interval(RECONCILE);
    let mut left_out_told = Instant::now();
    if let Some(address) = metrics {
        Rc::clone(&server).serve_metrics(address).await;
    }
    let resolvers = listen_for_resolvers(socket)?;
    drop(spawn_local(take_resolvers(Rc::clone(&server), resolvers)));
    // Whoever connects is asked for its cgroup: the instances' own users reach this.
    let whys = socket::listen(&why_socket(socket), 0o666)?;
    drop(spawn_local(answer_why(Rc::clone(&server), whys)));
    // What an earlier daemon left in the ring.
    let mut more_events = server.take_events();
    let _ = notify(&[NotifyState::Ready]);
    info!("ready, listening on {}", socket.display());
    loop {
        tokio::select! {
            connection = accept(&listener, &server.clients) => match connection {
                Ok((stream, permit)) => {
                    let caller = Caller::of(&stream, &server.daemon.borrow().confinement.hierarchy);
                    drop(spawn_local(Rc::clone(&server).answer(stream, caller, permit)));
                }
                // Too many open files, perhaps. Nothing of that is a reason to end.
                Err(error) => {
                    warn!("cannot take a client of the control socket: {error}");
                    sleep(PAUSE).await;
                }
            },
            // Programs wait for this, and it is little work.
            ready = resets.readable() => {
                let mut ready = ready?;
                if !server.daemon.borrow_mut().take_resets() {
                    ready.clear_ready();
                }
            }
            ready = ring.readable(), if !more_events => {
                ready?.clear_ready();
                more_events = server.take_events();
            }
            // A turn each for those who ask, and for what is left in the ring.
            () = yield_now(), if more_events => more_events = server.take_events(),
            ready = async { (&mut quiet_until).await; rings(bell.as_ref()).await } => {
                ready?;
                quiet_until.as_mut().reset(Instant::now() + PAUSE);
                let mut daemon = server.daemon.borrow_mut();
                daemon.confinement.watch.drain();
                daemon.reconcile();
            }
            _ = tick.tick() => {
                let _ = notify(&[NotifyState::Watchdog]);
                server.daemon.borrow_mut().find_late();
                // A predecessor's ring wakes nobody.
                more_events |= server.take_events();
                server.take_folded();
                server.end_leases();
                let mut daemon = server.daemon.borrow_mut();
                if left_out_told.elapsed() >= daemon.interval() {
                    daemon.log_left_out();
                    left_out_told = Instant::now();
                }
                daemon.forget_oldest();
                daemon.forget_names();
                daemon.flush_debug_log();
            }
            _ = reconcile.tick() => {
                let mut daemon = server.daemon.borrow_mut();
                daemon.reconcile();
                daemon.remember_children();
            }
            _ = hangups.recv() => {
                let _ = notify(&[NotifyState::Reloading]);
                let reloaded = server.reload();
                // Success and failure are logged where they happen.
                drop(spawn_local(async { reloaded.await.map(|_| notify(&[NotifyState::Ready])) }));
            }
            _ = stop.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    let _ = notify(&[NotifyState::Stopping]);
    // Units that stop with the daemon do so before it, and what they had goes with them.
    server.daemon.borrow_mut().reconcile();
    info!("stopping; what is confined stays confined");
    server.daemon.borrow().denials.journal.flush(LAST_LINES);
    for beside in [resolver_socket(socket), why_socket(socket)] {
        let _ = fs::remove_file(beside);
    }
    fs::remove_file(socket)
}

fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the AsyncFd owns the descriptor, so it is open and the same one as long as that lives.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}

/// Waits for the bell: for ever, where there is none.
async fn rings(bell: Option<&AsyncFd<OwnedFd>>) -> io::Result<()> {
    match bell {
        Some(bell) => bell.readable().await.map(|mut ready| ready.clear_ready()),
        None => std::future::pending().await,
    }
}

/// Listens at the control socket.
///
/// # Errors
///
/// When another daemon does, or the system refuses.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    socket::listen(path, 0o600)
}

/// The socket to which the resolver connects, beside the control socket. Whoever connects is asked for its unit, not for its user: that is
/// one that systemd makes up.
fn listen_for_resolvers(control: &Path) -> io::Result<UnixListener> {
    socket::listen(&resolver_socket(control), 0o666)
}

/// Waits for room and then for a client.
async fn accept(
    listener: &UnixListener,
    clients: &Arc<Semaphore>,
) -> io::Result<(UnixStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(clients).acquire_owned().await.map_err(io::Error::other)?;
    Ok((listener.accept().await?.0, permit))
}
