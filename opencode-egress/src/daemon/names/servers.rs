//! The servers that denied hellos named, for `suggest`.

use std::collections::VecDeque;

use opencode_egress_common::{abi::DESTINATIONS_SHARE, reason::DropReason};

use crate::policy::{
    destination::Destination,
    suggest::{DeniedDestination, Tried},
};

/// The servers of one instance, the last one last.
#[derive(Debug, Default)]
pub(in crate::daemon) struct DeniedServers(VecDeque<DeniedDestination>);

impl DeniedServers {
    /// Takes note that a hello named a server, so often by now.
    pub(super) fn deny(&mut self, destination: Destination, server: &str, attempts: u64) {
        let same = |denied: &DeniedDestination| {
            denied.destination == destination && denied.name.as_deref() == Some(server)
        };
        if let Some(known) = self.0.iter_mut().find(|denied| same(denied)) {
            known.attempts = known.attempts.max(attempts);
            return;
        }
        // The kernel remembers no more denials.
        if self.0.len() as u64 >= DESTINATIONS_SHARE {
            self.0.pop_front();
        }
        let reason = DropReason::TlsNameNotAllowed.name().to_owned();
        let (name, tried) = (Some(server.to_owned()), Tried::default());
        self.0.push_back(DeniedDestination { destination, reason, attempts, name, tried });
    }

    /// What is known.
    pub(in crate::daemon) fn iter(&self) -> impl Iterator<Item = &DeniedDestination> {
        self.0.iter()
    }

    /// Whether some server is known that a hello to this destination named.
    pub(in crate::daemon) fn knows(&self, destination: Destination) -> bool {
        self.0.iter().any(|denied| denied.destination == destination)
    }
}
