//! What the kernel remembers of denials, whatever the log left out.

use opencode_egress_common::reason::DropReason;

use crate::{
    control::request::RememberedDenials,
    daemon::{error::DaemonError, state::Daemon},
    policy::{destination::Destination, suggest::DeniedDestination},
};

impl Daemon {
    /// Every destination that was denied to an instance, as far as the kernel remembers.
    ///
    /// # Errors
    ///
    /// When there is no such instance, or the kernel refuses.
    pub fn seen(&self, name: &str) -> Result<RememberedDenials, DaemonError> {
        let index = self.instance(&self.known(name)?)?.index;
        let seen = self.loaded.maps.seen()?;
        let of_all_instances = seen.len();
        let own = seen.into_iter().filter(|(key, _)| key.instance == index.number());
        let destinations = own
            .flat_map(|(key, seen)| {
                let denied = |reason: DropReason| {
                    let destination = Destination::of(&key.flow())?;
                    let reason = reason.name().to_owned();
                    Some(DeniedDestination { destination, reason, attempts: seen.attempts })
                };
                seen.reasons().filter_map(denied).collect::<Vec<_>>()
            })
            .collect();
        Ok(RememberedDenials { destinations, of_all_instances })
    }
}
