//! Running the daemon: the control socket, the ring buffer, signals, time.

pub mod exposition;
mod socket;

use std::{cell::RefCell, fs, io, os::fd::AsFd as _, path::Path, rc::Rc, sync::Arc, time::Duration};

use libsystemd::daemon::{NotifyState, notify};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Interest, unix::AsyncFd},
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::{OwnedSemaphorePermit, Semaphore, broadcast},
    time::{Instant, interval, sleep, timeout},
};
use tracing::{error, info, warn};

use crate::{
    control::request::{MAX_REQUEST, Reply, Request},
    daemon::{
        serve::exposition::{MetricsAddress, MetricsListener},
        state::Daemon,
    },
    report::{denial::LoggedDenial, human::error_chain, metrics::exposition},
};

/// How long a client may take to say what it wants, and to take what it is told.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How many clients are answered at a time; the others wait.
const CLIENTS: usize = 128;
/// How many of them may follow events, which takes as long as they like. There is always room for `attach`.
const FOLLOWERS: usize = CLIENTS / 2;
/// How often folded lines are looked for.
const TICK: Duration = Duration::from_secs(1);
/// How often units without links, and links without units, are looked for when nothing rings.
const RECONCILE: Duration = Duration::from_secs(5);
/// At most this often when something does: a look at a thousand units takes tens of milliseconds.
const PAUSE: Duration = Duration::from_millis(100);

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
) -> io::Result<()> {
    let (mut reload, mut stop) = (signal(SignalKind::hangup())?, signal(SignalKind::terminate())?);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let ring = daemon.loaded.events.as_fd().try_clone_to_owned()?;
    // SAFETY: the AsyncFd owns the descriptor, so it is open and the same one as long as that lives.
    let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE)? };
    let bell = daemon.confinement.watch.as_fd().try_clone_to_owned()?;
    // SAFETY: as above.
    let bell = unsafe { AsyncFd::register_with_interest(bell, Interest::READABLE)? };
    let mut quiet_until = Box::pin(sleep(Duration::ZERO));
    let (sender, _) = broadcast::channel(1024);
    let clients = Arc::new(Semaphore::new(CLIENTS));
    let followers = Semaphore::new(FOLLOWERS);
    let server = Rc::new(Server { daemon: RefCell::new(daemon), events: sender, clients, followers });
    let mut tick = interval(TICK);
    let mut reconcile = interval(RECONCILE);
    let mut left_out_told = Instant::now();
    if let Some(address) = metrics {
        Rc::clone(&server).serve_metrics(address).await;
    }
    // What an earlier daemon left in the ring.
    server.publish(Daemon::take_events);
    let _ = notify(false, &[NotifyState::Ready]);
    info!("ready, listening on {}", socket.display());
    loop {
        tokio::select! {
            connection = accept(&listener, &server.clients) => match connection {
                Ok((stream, permit)) => drop(tokio::task::spawn_local(Rc::clone(&server).answer(stream, permit))),
                // Too many open files, perhaps. Nothing of that is a reason to end.
                Err(error) => {
                    warn!("cannot take a client of the control socket: {error}");
                    sleep(PAUSE).await;
                }
            },
            ready = ring.readable() => {
                ready?.clear_ready();
                server.publish(Daemon::take_events);
            }
            ready = async { (&mut quiet_until).await; bell.readable().await } => {
                ready?.clear_ready();
                quiet_until.as_mut().reset(Instant::now() + PAUSE);
                let mut daemon = server.daemon.borrow_mut();
                daemon.confinement.watch.drain();
                daemon.reconcile();
            }
            _ = tick.tick() => {
                let _ = notify(false, &[NotifyState::Watchdog]);
                server.daemon.borrow_mut().find_late();
                // A predecessor's ring wakes nobody.
                server.publish(Daemon::take_events);
                server.publish(Daemon::take_folded);
                let mut daemon = server.daemon.borrow_mut();
                if left_out_told.elapsed() >= daemon.interval() {
                    daemon.log_left_out();
                    left_out_told = Instant::now();
                }
                daemon.flush_debug_log();
            }
            _ = reconcile.tick() => server.daemon.borrow_mut().reconcile(),
            _ = reload.recv() => {
                let _ = notify(false, &[NotifyState::Reloading]);
                // Success and failure are logged where they happen.
                let _ = server.daemon.borrow_mut().reload();
                let _ = notify(false, &[NotifyState::Ready]);
            }
            _ = stop.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    let _ = notify(false, &[NotifyState::Stopping]);
    // Units that stop with the daemon do so before it, and what they had goes with them.
    server.daemon.borrow_mut().reconcile();
    info!("stopping; what is confined stays confined");
    fs::remove_file(socket)
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

/// Waits for room and then for a client.
async fn accept(
    listener: &UnixListener,
    clients: &Arc<Semaphore>,
) -> io::Result<(UnixStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(clients).acquire_owned().await.map_err(io::Error::other)?;
    Ok((listener.accept().await?.0, permit))
}

struct Server {
    daemon: RefCell<Daemon>,
    events: broadcast::Sender<LoggedDenial>,
    clients: Arc<Semaphore>,
    followers: Semaphore,
}

impl Server {
    fn publish(&self, take: fn(&mut Daemon) -> Vec<LoggedDenial>) {
        for event in take(&mut self.daemon.borrow_mut()) {
            // Nobody follows: nobody is told.
            let _ = self.events.send(event);
        }
    }

    /// What is confined does not depend on whether anybody counts it, so a daemon without metrics goes on.
    async fn serve_metrics(self: Rc<Self>, address: &MetricsAddress) {
        match MetricsListener::bind(address).await {
            Ok(listener) => {
                info!("metrics are at {address}");
                tokio::task::spawn_local(listener.serve(move || {
                    let status = self.daemon.borrow().status().map_err(|error| error_chain(&error))?;
                    exposition(&status).map_err(|error| error_chain(&error))
                }));
            }
            Err(error) => error!(
                "no metrics, for {address} cannot be served until the daemon is started again: {error}"
            ),
        }
    }

    async fn answer(self: Rc<Self>, mut stream: UnixStream, _permit: OwnedSemaphorePermit) {
        if let Err(error) = self.converse(&mut stream).await {
            warn!("a client of the control socket went away: {error}");
        }
    }

    async fn converse(&self, stream: &mut UnixStream) -> io::Result<()> {
        let peer = stream.peer_cred()?;
        let mut line = vec![];
        let mut reader = BufReader::new((&mut *stream).take(MAX_REQUEST));
        let Ok(read) = timeout(REQUEST_TIMEOUT, reader.read_until(b'\n', &mut line)).await else {
            let reply = Reply::Error("no request came in time".to_owned());
            return send(stream, &reply).await;
        };
        read?;
        let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
        let request = match Request::parse(&line) {
            Ok(request) => request,
            Err(error) => return send(stream, &Reply::Error(error_chain(&error))).await,
        };
        if let Some(refusal) = self.refusal(peer.uid(), pid, &request) {
            warn!("refused a request of process {pid}: {refusal}");
            return send(stream, &Reply::Error(refusal)).await;
        }
        match request {
            Request::Events { instance, follow } => self.stream_events(stream, instance, follow).await,
            request => {
                let reply = self.reply(request, pid);
                send(stream, &reply).await
            }
        }
    }

    fn refusal(&self, uid: u32, pid: u32, request: &Request) -> Option<String> {
        if uid != 0 {
            return Some(format!("only root may ask; you are user {uid}"));
        }
        let own = matches!(request, Request::Attach { .. } | Request::AttachFailed { .. });
        (!own && self.daemon.borrow().is_confined(pid))
            .then(|| "a process of a confined unit may ask for nothing but `attach`".to_owned())
    }

    fn reply(&self, request: Request, pid: u32) -> Reply {
        let mut daemon = self.daemon.borrow_mut();
        let reply = match request {
            Request::Attach { instance } => daemon
                .attach(&instance, pid)
                .map(|(unit, generation)| Reply::Attached { unit: unit.to_string(), generation }),
            Request::AttachFailed { instance, why } => {
                daemon.remember_failure(&instance, pid, &why);
                Ok(Reply::End)
            }
            Request::Status => daemon.status().map(|status| Reply::Status(Box::new(status))),
            Request::Explain { instance, destination } => {
                daemon.explain(&instance, destination).map(Reply::Explained)
            }
            Request::RememberedDenials { instance } => daemon.seen(&instance).map(Reply::RememberedDenials),
            Request::Reload => daemon.reload().map(|changes| Reply::Reloaded { changes }),
            Request::Detach { instance } => daemon
                .detach(&instance)
                .map(|units| Reply::Detached { units: units.iter().map(ToString::to_string).collect() }),
            Request::Events { .. } => Ok(Reply::End),
        };
        reply.unwrap_or_else(|error| Reply::Error(error_chain(&error)))
    }

    async fn stream_events(
        &self,
        stream: &mut UnixStream,
        instance: Option<String>,
        follow: bool,
    ) -> io::Result<()> {
        let Ok(_permit) = self.followers.try_acquire() else {
            let refusal = format!("{FOLLOWERS} clients follow events already; end one of them");
            return send(stream, &Reply::Error(refusal)).await;
        };
        let mut coming = self.events.subscribe();
        let recent = self.daemon.borrow().recent(instance.as_deref());
        let recent = match recent {
            Ok(recent) => recent,
            Err(error) => return send(stream, &Reply::Error(error_chain(&error))).await,
        };
        for event in recent {
            send(stream, &Reply::Event(event)).await?;
        }
        if !follow {
            return send(stream, &Reply::End).await;
        }
        loop {
            let event = tokio::select! {
                event = coming.recv() => event,
                // A client has said all that it has to say: it can only go away.
                _ = stream.read_u8() => return Ok(()),
            };
            match event {
                Ok(event) if instance.as_ref().is_none_or(|name| *name == event.instance) => {
                    send(stream, &Reply::Event(event)).await?;
                }
                // A reader that is too slow misses some here; the journal has them.
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return send(stream, &Reply::End).await,
            }
        }
    }
}

async fn send(stream: &mut UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    // A client that does not read what it asked for is not waited for.
    timeout(REQUEST_TIMEOUT, stream.write_all(&line)).await.map_err(|_| io::ErrorKind::TimedOut)?
}
