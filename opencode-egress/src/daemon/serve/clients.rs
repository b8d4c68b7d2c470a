//! Those who ask at the control socket: one request each, and its answer.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::OwnedFd,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::{OwnedSemaphorePermit, Semaphore, broadcast, oneshot},
    task::{spawn_blocking, spawn_local},
    time::timeout,
};
use tracing::{error, info, warn};

use crate::{
    control::{
        caller::Caller,
        request::{Reply, Request},
    },
    daemon::{
        error::DaemonError,
        leases::{Change, LeaseOutcome},
        policies::Applied,
        serve::{
            exposition::{MetricsAddress, MetricsListener},
            receive::receive,
            reload::{Outcome, Reloads},
        },
        state::Daemon,
    },
    policy::lease::Grantor,
    report::{denial::LoggedDenial, human::error_chain, metrics::exposition},
};

/// How long a client may take to say what it wants, and to take what it is told.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How many clients are answered at a time; the others wait.
const CLIENTS: usize = 128;
/// How many of them may follow events, which takes as long as they like. There is always room for `attach`.
const FOLLOWERS: usize = CLIENTS / 2;

/// The daemon, and those whom it answers.
pub(super) struct Server {
    pub(super) daemon: Rc<RefCell<Daemon>>,
    /// Held while a policy file is read.
    file: Rc<Semaphore>,
    reloads: Rc<Reloads>,
    /// Leases that are over are being ended.
    ends_leases: Cell<bool>,
    events: broadcast::Sender<LoggedDenial>,
    pub(super) clients: Arc<Semaphore>,
    followers: Semaphore,
}

impl Server {
    pub(super) fn new(daemon: Daemon) -> Self {
        let file = Rc::new(Semaphore::new(1));
        Self {
            daemon: Rc::new(RefCell::new(daemon)),
            reloads: Rc::new(Reloads::new(Rc::clone(&file))),
            file,
            ends_leases: Cell::new(false),
            events: broadcast::channel(1024).0,
            clients: Arc::new(Semaphore::new(CLIENTS)),
            followers: Semaphore::new(FOLLOWERS),
        }
    }

    /// Logs events that are there. Returns whether more are.
    pub(super) fn take_events(&self) -> bool {
        let (events, more) = self.daemon.borrow_mut().take_events();
        self.publish(events);
        more
    }

    /// Logs what was folded.
    pub(super) fn take_folded(&self) {
        let events = self.daemon.borrow_mut().take_folded();
        self.publish(events);
    }

    pub(super) fn publish(&self, events: Vec<LoggedDenial>) {
        for event in events {
            // Nobody follows: nobody is told.
            let _ = self.events.send(event);
        }
    }

    /// Begins a reload, or has one follow that which runs.
    pub(super) fn reload(&self) -> oneshot::Receiver<Outcome> {
        self.reloads.ask(&self.daemon)
    }

    /// What is confined does not depend on whether anybody counts it, so a daemon without metrics goes on.
    pub(super) async fn serve_metrics(self: Rc<Self>, address: &MetricsAddress) {
        match MetricsListener::bind(address).await {
            Ok(listener) => {
                info!("metrics are at {address}");
                spawn_local(listener.serve(move || {
                    let status = self.daemon.borrow_mut().status().map_err(|error| error_chain(&error))?;
                    exposition(&status).map_err(|error| error_chain(&error))
                }));
            }
            Err(error) => error!(
                "no metrics, for {address} cannot be served until the daemon is started again: {error}"
            ),
        }
    }

    pub(super) async fn answer(
        self: Rc<Self>,
        mut stream: UnixStream,
        caller: io::Result<Caller>,
        _permit: OwnedSemaphorePermit,
    ) {
        let conversation = async { self.converse(&mut stream, caller?).await };
        if let Err(error) = conversation.await {
            warn!("a client of the control socket went away: {error}");
        }
    }

    async fn converse(&self, stream: &mut UnixStream, caller: Caller) -> io::Result<()> {
        let Ok(received) = timeout(REQUEST_TIMEOUT, receive(stream)).await else {
            let reply = Reply::Error("no request came in time".to_owned());
            return send(stream, &reply).await;
        };
        let (line, descriptor) = received?;
        let request = match Request::parse(&line) {
            Ok(request) => request,
            Err(error) => return send(stream, &Reply::Error(error_chain(&error))).await,
        };
        if let Some(refusal) = self.refusal(&caller, &request) {
            warn!("refused a request of process {}: {refusal}", caller.pid);
            return send(stream, &Reply::Error(refusal)).await;
        }
        match request {
            Request::Events { instance, follow, leases } => {
                self.stream_events(stream, instance, follow, leases).await
            }
            request => {
                let reply = self.reply(request, caller, descriptor).await;
                send(stream, &reply).await
            }
        }
    }

    fn refusal(&self, caller: &Caller, request: &Request) -> Option<String> {
        if caller.uid != 0 {
            return Some(format!("only root may ask; you are user {}", caller.uid));
        }
        if matches!(request, Request::Attach { .. } | Request::AttachFailed { .. }) {
            return None;
        }
        if let Err(error) = &caller.cgroup {
            return Some(error_chain(error));
        }
        self.daemon
            .borrow()
            .is_confined(caller)
            .then(|| "a process of a confined unit may ask for nothing but `attach`".to_owned())
    }

    async fn reply(&self, request: Request, caller: Caller, descriptor: Option<OwnedFd>) -> Reply {
        let reply = match request {
            Request::Attach { instance } => {
                let attached = self.daemon.borrow_mut().attach(&instance, caller, descriptor);
                attached.map(|(unit, generation)| Reply::Attached { unit: unit.to_string(), generation })
            }
            Request::AttachFailed { instance, why } => {
                self.daemon.borrow_mut().remember_failure(&instance, caller.name(), &why);
                Ok(Reply::End)
            }
            Request::Status => {
                self.daemon.borrow_mut().status().map(|status| Reply::Status(Box::new(status)))
            }
            Request::Explain { instance, destination } => {
                // It is never closed.
                let _one = self.file.acquire().await;
                let task = self.daemon.borrow().begin_explain(&instance, destination);
                match spawn_blocking(move || task.run()).await {
                    Ok(explained) => explained.map(|explanation| Reply::Explained(Box::new(explanation))),
                    Err(error) => return Reply::Error(format!("the explanation broke off: {error}")),
                }
            }
            Request::Names { instance } => self.daemon.borrow().known_names(&instance).map(Reply::Names),
            Request::RememberedDenials { instance } => {
                self.daemon.borrow().seen(&instance).map(Reply::RememberedDenials)
            }
            Request::Reload => {
                return match self.reload().await {
                    Ok(Ok(Applied { changes, not_reset })) => Reply::Reloaded { changes, not_reset },
                    Ok(Err(error)) => Reply::Error(error),
                    Err(_) => Reply::Error("the daemon stops".to_owned()),
                };
            }
            Request::Detach { instance } => {
                let detached = self.daemon.borrow_mut().detach(&instance);
                detached
                    .map(|units| Reply::Detached { units: units.iter().map(ToString::to_string).collect() })
            }
            Request::Allow { instance, grants, time, hard, reason, sudo_user } => {
                let by = Grantor { uid: caller.uid, login_uid: caller.login_uid, sudo_user };
                let change = Change::Grant { kind: grants, time, hard, reason, by };
                let granted = self.change_leases(&instance, change).await;
                granted.map(|LeaseOutcome { lease, replaced, notes, .. }| Reply::Granted {
                    lease,
                    replaced,
                    notes,
                })
            }
            Request::Revoke { instance, grants, sudo_user } => {
                let by = Grantor { uid: caller.uid, login_uid: caller.login_uid, sudo_user };
                let revoked = self.change_leases(&instance, Change::Revoke { kind: grants, by }).await;
                revoked.map(|LeaseOutcome { lease, until_next_packet, notes, .. }| Reply::Revoked {
                    lease,
                    until_next_packet,
                    not_reset: notes,
                })
            }
            Request::Leases { instance } => {
                self.daemon.borrow().leases(instance.as_deref()).map(Reply::Leases)
            }
            Request::Events { .. } => Ok(Reply::End),
        };
        reply.unwrap_or_else(|error| Reply::Error(error_chain(&error)))
    }

    /// Changes an instance's leases. One change, or reload, at a time.
    async fn change_leases(&self, instance: &str, change: Change) -> Result<LeaseOutcome, DaemonError> {
        // It is never closed.
        let _one = self.file.acquire().await;
        let task = self.daemon.borrow().begin_lease_change(instance, change)?;
        let changed = spawn_blocking(move || task.run()).await;
        let changed = changed.unwrap_or_else(|error| Err(DaemonError::BrokenOff(error.to_string())));
        self.daemon.borrow_mut().end_lease_change(changed)
    }

    /// Ends the leases that are over. To be called every second.
    pub(super) fn end_leases(self: &Rc<Self>) {
        self.daemon.borrow_mut().write_leases_again();
        if self.daemon.borrow().next_over().is_none() || self.ends_leases.replace(true) {
            return;
        }
        let server = Rc::clone(self);
        spawn_local(async move {
            loop {
                let Some(name) = server.daemon.borrow().next_over() else { break };
                // Success and failure are logged there.
                match server.change_leases(name.as_str(), Change::End).await {
                    Ok(_) | Err(DaemonError::NothingOver { .. }) => {}
                    Err(_) => server.daemon.borrow_mut().end_leases_later(&name),
                }
            }
            server.ends_leases.set(false);
        });
    }

    async fn stream_events(
        &self,
        stream: &mut UnixStream,
        instance: Option<String>,
        follow: bool,
        leases: bool,
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
        let is_asked = |of: &str| instance.as_ref().is_none_or(|name| *name == of);
        let (of_leases, mut leases_coming) = self.daemon.borrow().lease_events();
        let of_leases = of_leases.into_iter().filter(|event| leases && is_asked(&event.instance));
        let mut recent: Vec<_> =
            recent.into_iter().map(|event| (event.time, Reply::Event(Box::new(event)))).collect();
        recent.extend(of_leases.map(|event| (event.time, Reply::Lease(Box::new(event)))));
        recent.sort_by_key(|(time, _)| *time);
        for (_, event) in recent {
            send(stream, &event).await?;
        }
        if !follow {
            return send(stream, &Reply::End).await;
        }
        loop {
            let event = tokio::select! {
                event = coming.recv() => event,
                event = leases_coming.recv(), if leases => {
                    if let Some(event) = event.ok().filter(|event| is_asked(&event.instance)) {
                        send(stream, &Reply::Lease(Box::new(event))).await?;
                    }
                    continue;
                }
                // A client has said all that it has to say: it can only go away.
                _ = stream.read_u8() => return Ok(()),
            };
            match event {
                Ok(event) if is_asked(&event.instance) => {
                    send(stream, &Reply::Event(Box::new(event))).await?;
                }
                // A reader that is too slow misses some here; the journal has them.
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return send(stream, &Reply::End).await,
            }
        }
    }
}

pub(super) async fn send(stream: &mut UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    // A client that does not read what it asked for is not waited for.
    timeout(REQUEST_TIMEOUT, stream.write_all(&line)).await.map_err(|_| io::ErrorKind::TimedOut)?
}
