//! A cgroup that is gone, and is remembered for the sockets that outlived it.

use crate::{kernel::pins::LinkDirectory, policy::InstanceName};

/// A cgroup that is gone and of which there were sockets at the last look.
pub(in crate::daemon) struct Outlived {
    pub(super) links: LinkDirectory,
    /// By whose policy they are judged. `None`: the maps that say so are gone, and the links judge by them all the same.
    pub(super) instance: Option<InstanceName>,
    /// Denials of the cgroup when it was found to be gone.
    pub(super) denials: u32,
}
