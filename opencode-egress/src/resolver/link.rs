//! The connection to the daemon, and what it says.

use std::{cell::RefCell, collections::HashMap, io, path::PathBuf, rc::Rc, time::Duration};

use tokio::{
    net::UnixStream,
    time::{MissedTickBehavior, interval, sleep},
};
use tracing::{error, info, warn};

use crate::{
    control::{
        learned::{MAX_TO_RESOLVER, ToResolver},
        lines::{self, Line, Lines},
    },
    resolver::{
        instance::{Instance, Shared},
        listen::Sockets,
        names::Names,
    },
};

/// Between two attempts to reach a daemon.
const PAUSE: Duration = Duration::from_millis(200);
/// How often counts are told.
const COUNTING: Duration = Duration::from_secs(1);

/// How the daemon is reached.
#[derive(Debug)]
pub(super) enum Daemon {
    /// It listens at this socket, and when it is gone, another one will.
    Listens(PathBuf),
    /// It made this connection, and when that is gone, all is over.
    Connected(UnixStream),
}

/// The instances, by their numbers.
pub(super) struct Instances {
    shared: Rc<Shared>,
    known: RefCell<HashMap<u32, Known>>,
}

struct Known {
    instance: Rc<Instance>,
    sockets: Sockets,
    /// Told since the connection began.
    told: bool,
}

impl Instances {
    /// None yet.
    pub(super) fn new(shared: Rc<Shared>) -> Self {
        Self { shared, known: RefCell::default() }
    }

    /// Does what the daemon says, for as long as there may be one.
    ///
    /// # Errors
    ///
    /// When a connection that was made for it fails.
    pub(super) async fn follow(&self, daemon: Daemon) -> io::Result<()> {
        let path = match daemon {
            Daemon::Connected(stream) => return self.converse(&stream).await,
            Daemon::Listens(path) => path,
        };
        let mut complain = true;
        loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => {
                    info!("connected to the daemon at {}", path.display());
                    complain = true;
                    match self.converse(&stream).await {
                        Ok(()) => {
                            warn!("the daemon is gone; what is remembered is answered, other questions fail")
                        }
                        Err(error) => error!("the connection to the daemon broke off: {error}"),
                    }
                }
                Err(error) => {
                    if complain {
                        warn!("no daemon answers at {}: {error}; trying again", path.display());
                    }
                    complain = false;
                }
            }
            sleep(PAUSE).await;
        }
    }

    /// How many questions wait for an answer.
    pub(super) fn waiting(&self) -> usize {
        self.known.borrow().values().map(|known| known.instance.waiting()).sum()
    }

    /// Reads no more questions. What was read is answered, and what comes waits in the sockets for another process.
    pub(super) fn stop(&self) {
        self.known.borrow().values().for_each(|known| known.sockets.stop());
    }

    async fn converse(&self, stream: &UnixStream) -> io::Result<()> {
        self.known.borrow_mut().values_mut().for_each(|known| known.told = false);
        let shared = Rc::clone(&self.shared);
        shared.outbox.set_connected(true);
        let talk = async {
            loop {
                let line = serde_json::to_vec(&shared.outbox.next().await)?;
                lines::send(stream, &line, &[]).await?;
            }
        };
        let ended = tokio::select! {
            ended = self.listen(stream) => ended,
            ended = talk => ended,
        };
        shared.outbox.set_connected(false);
        ended
    }

    async fn listen(&self, stream: &UnixStream) -> io::Result<()> {
        let mut lines = Lines::new(MAX_TO_RESOLVER);
        let mut counting = interval(COUNTING);
        counting.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                line = lines.next(stream) => match line? {
                    Some(line) => self.take(line)?,
                    None => return Ok(()),
                },
                _ = counting.tick() => {
                    let known = self.known.borrow();
                    let tallies = known.iter().map(|(number, known)| (*number, known.instance.tally()));
                    self.shared.outbox.take_counts(tallies);
                }
            }
        }
    }

    fn take(&self, line: Line) -> io::Result<()> {
        match serde_json::from_slice(&line.bytes)? {
            ToResolver::Upstream { servers } => self.shared.upstream.tell(servers),
            ToResolver::Instance { number, names, leased, audit, audit_until } => {
                let audit_until = if audit { audit_until.unwrap_or(u64::MAX) } else { 0 };
                self.instance(number, Names::new(&names, &leased), audit_until, line)?;
            }
            ToResolver::Gone { number } => drop(self.known.borrow_mut().remove(&number)),
            ToResolver::AllTold => self.known.borrow_mut().retain(|_, known| known.told),
            ToResolver::Learned { id, addresses } => self.shared.outbox.learned(id, addresses),
        }
        Ok(())
    }

    fn instance(&self, number: u32, names: Names, audit_until: u64, line: Line) -> io::Result<()> {
        let mut instances = self.known.borrow_mut();
        let known = instances.remove(&number);
        let (instance, sockets) = match known {
            None => (Instance::new(number, Rc::clone(&self.shared)), None),
            Some(Known { instance, sockets, told }) => {
                // Another daemon may have learned other addresses.
                if !told {
                    instance.forget_answers();
                }
                (instance, Some(sockets))
            }
        };
        instance.set_names(names, audit_until);
        let sockets = match sockets {
            Some(sockets) if line.descriptors.is_empty() => sockets,
            before => {
                let sockets = Sockets::serve(line.descriptors, Rc::clone(&instance))?;
                if let Some(before) = before {
                    before.drain();
                }
                sockets
            }
        };
        instances.insert(number, Known { instance, sockets, told: true });
        Ok(())
    }
}
