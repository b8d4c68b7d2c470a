//! Who answers questions: the resolver's connection, from the daemon's side.

use std::os::fd::OwnedFd;

use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::control::learned::ToResolver;

/// Lines that wait for a resolver which does not read them. One that has so many is let go of; when it comes again, it is told all.
const WAITING: usize = 8 * 1024;

/// A line for the resolver, and the sockets that come with it.
pub(in crate::daemon) struct Told {
    pub(in crate::daemon) message: ToResolver,
    pub(in crate::daemon) sockets: Vec<OwnedFd>,
}

/// The resolver that is connected: one, the last that came.
#[derive(Default)]
pub(in crate::daemon) struct Resolvers {
    current: Option<Sender<Told>>,
}

impl Resolvers {
    /// Whether one is connected.
    pub(in crate::daemon) fn is_there(&self) -> bool {
        self.current.as_ref().is_some_and(|sender| !sender.is_closed())
    }

    /// Lets go of the one that is connected for another, which is told from now on.
    pub(super) fn replace(&mut self) -> Receiver<Told> {
        let (sender, receiver) = channel(WAITING);
        self.current = Some(sender);
        receiver
    }

    /// Has it told something, if there is one.
    pub(super) fn tell(&mut self, told: Told) {
        let Some(sender) = &self.current else { return };
        if sender.try_send(told).is_err() {
            self.current = None;
        }
    }

    /// The same, without sockets.
    pub(in crate::daemon) fn tell_alone(&mut self, message: ToResolver) {
        self.tell(Told { message, sockets: vec![] });
    }
}
