//! What the kernel remembers of denials, whatever the log left out.

use std::collections::BTreeMap;

use opencode_egress_common::reason::DropReason;

use crate::{
    control::request::RememberedDenials,
    daemon::{error::DaemonError, state::Daemon},
    policy::{
        destination::Destination,
        suggest::{DeniedDestination, DeniedName},
    },
};

impl Daemon {
    /// Everything that was denied to an instance, as far as the kernel remembers: each destination once for each reason. And the names that it
    /// asked for and no rule lists, as far as this daemon does.
    ///
    /// # Errors
    ///
    /// When there is no such instance, or the kernel refuses.
    pub fn seen(&self, name: &str) -> Result<RememberedDenials, DaemonError> {
        let index = self.instance(&self.known(name)?)?.index;
        let seen = self.loaded.maps.seen(index)?;
        let remembered = seen.len();
        let mut destinations: BTreeMap<(Destination, u8), u64> = BTreeMap::new();
        for (key, denials) in seen {
            if let Some(destination) = Destination::of(&key.flow()) {
                *destinations.entry((destination, key.reason)).or_default() += denials.attempts;
            }
        }
        let names = self.names.of.get(&index);
        let destinations = destinations.into_iter().filter_map(|((destination, reason), attempts)| {
            let reason = DropReason::from_number(reason)?;
            let by_hello = reason == DropReason::TlsNameNotAllowed;
            // These come with the servers' names below.
            if by_hello && names.is_some_and(|names| names.servers.knows(destination)) {
                return None;
            }
            let reason = reason.name().to_owned();
            let name =
                names.filter(|_| !by_hello).and_then(|names| names.name_of_denied(destination.address));
            Some(DeniedDestination { destination, reason, attempts, name: name.map(ToString::to_string) })
        });
        let asked = names.map(|names| names.questions.unlisted()).unwrap_or_default();
        let asked = asked.into_iter().map(|(name, attempts)| DeniedName { name, attempts });
        let servers = names.into_iter().flat_map(|names| names.servers.iter().cloned());
        let destinations = destinations.chain(servers).collect();
        Ok(RememberedDenials { destinations, names: asked.collect(), remembered })
    }
}
