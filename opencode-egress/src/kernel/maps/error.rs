use std::io;

use aya::maps::MapError;

/// What can go wrong with a map.
#[derive(Debug, thiserror::Error)]
pub enum MapsError {
    /// It is not in the object.
    #[error("the eBPF object has no map {0}; it was built from other sources, build both again")]
    Missing(&'static str),
    /// It is there but of another kind: the object, or a pin, of another version.
    #[error(
        "the map {name} is of another kind than this program's; a pin of another version, or not ours: remove it, or its directory"
    )]
    Other {
        /// The map.
        name: &'static str,
        /// What differs.
        #[source]
        source: Box<MapError>,
    },
    /// The kernel refused an operation.
    #[error("cannot {action} the map {name}")]
    Operation {
        /// What was tried.
        action: &'static str,
        /// The map.
        name: &'static str,
        /// What the kernel said.
        #[source]
        source: Box<MapError>,
    },
    /// The kernel refused rules.
    #[error("cannot {action} the map TRIES")]
    Tries {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Somebody else wrote to the kernel's maps.
    #[error(
        "the rules in the kernel are not those that this daemon put there; somebody else wrote to the map TRIES. Restart the daemon, which puts the policy file in force"
    )]
    Replaced,
    /// The kernel does not let the map be mapped into memory.
    #[error("cannot map {name} into memory")]
    Mmap {
        /// The map.
        name: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Whether an entry was there to be removed, or replaced: somebody else may have been first. (aya passes on what the system said.)
pub(super) fn was_there(result: Result<(), MapError>) -> Result<bool, MapError> {
    match result {
        Ok(()) => Ok(true),
        Err(MapError::KeyNotFound) => Ok(false),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

impl MapsError {
    pub(in crate::kernel) fn operation(
        action: &'static str,
        name: &'static str,
    ) -> impl FnOnce(MapError) -> Self {
        move |source| Self::Operation { action, name, source: Box::new(source) }
    }

    pub(super) fn tries(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Tries { action, source }
    }
}
