//! The resolver: what answers the instances' questions, in a process of its own that is allowed nothing else.
//!
//! It reads what agents write, so it has no privileges, and what it says to the daemon the daemon checks again. Its sockets are made
//! and kept by the daemon: one that ends leaves unread questions to the next.
//!
//! ```text
//! listen      a datagram, or a message on a connection
//!   question  one name and type, class IN; anything else is refused at once
//!   instance  is it listed? is the answer remembered? is the same asked already?
//!   upstream  the question asked anew: name and type, and nothing else that the client wrote
//!   reply     the addresses at the end of the aliases
//!   outbox    learned by the daemon, and only then
//!   answer    told
//! ```
//!
//! What is answered:
//!
//! | question | answer | asked |
//! |---|---|---|
//! | A, AAAA of a listed name | its addresses, at its own name: no aliases | yes |
//! | HTTPS, SVCB of a listed name | empty | no |
//! | any other type of a listed name | empty, and reported | no |
//! | any other name: also `localhost`, addresses' names (`in-addr.arpa`), a name with a search domain behind it | no such name, and reported | no |
//! | an address that no name may bring | empty | yes |
//! | several questions in one message, records besides, unreadable | `FORMERR`, and reported | no |
//! | another class than IN | `REFUSED`, and reported | no |
//! | another operation than a query | `NOTIMP`, and reported | no |
//! | a message that is an answer, or has no whole header | none | no |
//! | no server answers, or too many questions wait | `SERVFAIL` | |
//! | the daemon is gone, or silent for two seconds | what is remembered, else no such name | no |
//!
//! In audit mode everything is asked, what is not listed also while no daemon is there, and what would be refused is reported. A lease of a
//! name, or of audit mode, ends by itself. Questions go to servers by UDP, and by TCP where an answer is too long for that; not over TLS.

pub mod answer;
mod cache;
mod instance;
mod link;
mod listen;
mod names;
mod outbox;
pub mod privileges;
pub mod question;
pub mod reply;
mod servers;
mod upstream;

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    path::PathBuf,
    pin::pin,
    rc::Rc,
    time::Duration,
};

use sd_notify::{NotifyState, notify};
use tokio::{
    net::UnixStream,
    signal::unix::{SignalKind, signal},
    time::{interval, sleep, timeout},
};

use crate::resolver::{
    instance::Shared,
    link::{Daemon, Instances},
    outbox::Outbox,
    servers::Servers,
    upstream::Upstream,
};

/// How long questions that were read may take to be answered when it is told to stop.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// How often the watchdog is told that it lives.
const TICK: Duration = Duration::from_secs(5);

/// Where the daemon is.
#[derive(Debug)]
pub enum Connection {
    /// It listens at this path; when it is gone, the next one will.
    Path(PathBuf),
    /// It is at the other end of this socket, and the resolver is its child.
    Descriptor(OwnedFd),
}

/// Answers questions until it is told to stop, or until a daemon whose child it is has ended.
///
/// # Errors
///
/// When the system refuses.
pub async fn serve(connection: Connection, resolv_conf: PathBuf) -> io::Result<()> {
    let daemon = match connection {
        Connection::Path(path) => Daemon::Listens(path),
        Connection::Descriptor(descriptor) => {
            let stream = StdUnixStream::from(descriptor);
            stream.set_nonblocking(true)?;
            Daemon::Connected(UnixStream::from_std(stream)?)
        }
    };
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let upstream = Upstream::new(Servers::of_file(resolv_conf));
    let instances = Instances::new(Rc::new(Shared { upstream, outbox: Outbox::default() }));
    let mut following = pin!(instances.follow(daemon));
    let mut tick = interval(TICK);
    let _ = notify(&[NotifyState::Ready]);
    loop {
        tokio::select! {
            ended = &mut following => return ended,
            _ = tick.tick() => drop(notify(&[NotifyState::Watchdog])),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    let _ = notify(&[NotifyState::Stopping]);
    instances.stop();
    let answered = async {
        while instances.waiting() > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        ended = &mut following => ended,
        // What is not answered by then is asked again.
        _ = timeout(LAST_ANSWERS, answered) => Ok(()),
    }
}
