//! The servers that denied hellos named, for `suggest`.

use std::num::NonZeroUsize;

use lru::LruCache;
use opencode_egress_common::abi::DESTINATIONS_SHARE;

use crate::policy::destination::Destination;

/// The kernel remembers no more denials of an instance.
#[expect(clippy::cast_possible_truncation, reason = "it is a thousand")]
const MOST: NonZeroUsize = NonZeroUsize::new(DESTINATIONS_SHARE as usize).unwrap();

/// The servers of one instance, by where the hellos went and by the number that the kernel has for the name. How often, the kernel remembers.
#[derive(Debug)]
pub(in crate::daemon) struct DeniedServers(LruCache<(Destination, u16), String>);

impl Default for DeniedServers {
    fn default() -> Self {
        Self(LruCache::new(MOST))
    }
}

impl DeniedServers {
    /// Takes note that a hello named a server, of which the kernel has this number.
    pub(in crate::daemon) fn deny(&mut self, destination: Destination, tag: u16, server: &str) {
        self.0.put((destination, tag), server.to_owned());
    }

    /// The server of this number that a hello to a destination named; `None`: no line has told it.
    pub(in crate::daemon) fn name_of(&self, destination: Destination, tag: u16) -> Option<&str> {
        self.0.peek(&(destination, tag)).map(String::as_str)
    }
}
