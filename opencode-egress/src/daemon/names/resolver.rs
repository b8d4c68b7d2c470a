//! Who answers questions: the resolver's connection, from the daemon's side.

use std::os::fd::OwnedFd;

use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::{InstanceNames, Names};
use crate::{control::learned::ToResolver, kernel::instance::InstanceIndex, policy::Mode};

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

    fn tell(&mut self, message: ToResolver, sockets: Vec<OwnedFd>) {
        let Some(sender) = &self.current else { return };
        if sender.try_send(Told { message, sockets }).is_err() {
            self.current = None;
        }
    }

    pub(super) fn tell_instance(&mut self, index: InstanceIndex, names: &InstanceNames) {
        let (message, sockets) = instance(index, names);
        self.tell(message, sockets);
    }

    pub(super) fn tell_gone(&mut self, index: InstanceIndex) {
        self.tell(ToResolver::Gone { number: index.number() }, vec![]);
    }

    /// Says what became of an answer.
    pub(in crate::daemon) fn tell_learned(&mut self, id: u64, addresses: Vec<std::net::IpAddr>) {
        self.tell(ToResolver::Learned { id, addresses }, vec![]);
    }

    /// Says whom to ask.
    pub(in crate::daemon) fn tell_upstream(&mut self, servers: &[std::net::SocketAddr]) {
        self.tell(ToResolver::Upstream { servers: servers.to_vec() }, vec![]);
    }
}

fn instance(index: InstanceIndex, names: &InstanceNames) -> (ToResolver, Vec<OwnedFd>) {
    let message = ToResolver::Instance {
        number: index.number(),
        names: names.rules.iter().map(|compiled| compiled.rule.pattern().to_string()).collect(),
        audit: names.mode == Mode::Audit,
    };
    let sockets = names.sockets.descriptors().filter_map(|socket| socket.try_clone_to_owned().ok());
    (message, sockets.collect())
}

impl Names {
    /// Takes a resolver that connected in the place of the one before, and has it told everything.
    pub(in crate::daemon) fn connect(&mut self) -> Receiver<Told> {
        let (sender, receiver) = channel(WAITING);
        self.resolvers.current = Some(sender);
        let servers = self.settings.upstream.clone();
        self.resolvers.tell_upstream(&servers);
        for (index, names) in &self.of {
            self.resolvers.tell_instance(*index, names);
        }
        self.resolvers.tell(ToResolver::AllTold, vec![]);
        receiver
    }
}
