//! The instances' numbers in the maps: when one is free for another instance.

use std::collections::BTreeSet;

use opencode_egress_common::{abi::MAX_INSTANCES, reason::Hook};

use crate::{
    daemon::{error::DaemonError, policies::InstancePolicies, state::Daemon},
    kernel::{instance::InstanceIndex, pins::LinkDirectory, registry::InstanceNumbersError},
    policy::InstanceName,
};

impl Daemon {
    /// Gives each instance of a policy file that can be applied a number.
    ///
    /// # Errors
    ///
    /// When there are too few, and then none of them has a new one; or the kernel refuses.
    pub(in crate::daemon) fn claim_numbers(
        &mut self,
        policies: &InstancePolicies,
    ) -> Result<(), DaemonError> {
        let names = policies.keys().collect();
        match self.numbers.claim(&names) {
            Err(InstanceNumbersError::Full { .. }) => {
                self.make_room(policies)?;
                Ok(self.numbers.claim(&names)?)
            }
            claimed => Ok(claimed?),
        }
    }

    /// Takes policies out of force, and frees their numbers, of the instances that a file does not have and of which nothing is
    /// left. They would go after it is applied; here all numbers are taken and it has others. Where that is not enough, nothing
    /// changes.
    fn make_room(&mut self, policies: &InstancePolicies) -> Result<(), DaemonError> {
        let in_use = self.numbers_in_use()?;
        let goes = |name: &InstanceName, index: &InstanceIndex| {
            !policies.contains_key(name) && !in_use.contains(index)
        };
        let gone: Vec<_> = self.numbers.known().iter().filter(|(name, index)| goes(name, index)).collect();
        let new = policies.keys().filter(|name| !self.numbers.known().contains_key(*name)).count();
        if new + self.numbers.known().len() >= MAX_INSTANCES as usize + gone.len() {
            return Ok(());
        }
        let indexes: Vec<_> = gone.iter().map(|(_, index)| **index).collect();
        let names: Vec<_> = gone.iter().map(|(name, _)| (*name).clone()).collect();
        self.loaded.maps.retire(&indexes)?;
        for name in names {
            self.instances.remove(&name);
        }
        self.free_numbers()
    }

    /// Frees the numbers that no policy has, no cgroup, live or gone with sockets left, and no predecessor.
    pub(in crate::daemon) fn free_numbers(&mut self) -> Result<(), DaemonError> {
        let unknown = |name: &&InstanceName| !self.instances.contains_key(*name);
        // Nearly always there is none, and then nothing else is looked at.
        if self.numbers.known().keys().all(|name| !unknown(&name)) {
            return Ok(());
        }
        let in_use = self.numbers_in_use()?;
        let free =
            self.numbers.known().iter().filter(|(name, index)| unknown(name) && !in_use.contains(index));
        let free: Vec<_> = free.map(|(name, index)| (name.clone(), *index)).collect();
        if free.is_empty() {
            return Ok(());
        }
        // What waits in the ring, and what was folded, is told under the name that it was denied to.
        loop {
            let (waiting, more) = self.take_events();
            self.denials.unpublished.extend(waiting);
            if !more {
                break;
            }
        }
        for (_, index) in &free {
            self.end_folds(*index);
            self.denials.folds.forget(*index);
            self.denials.journal.forget(index.number());
        }
        let indexes: BTreeSet<_> = free.iter().map(|(_, index)| *index).collect();
        let in_force = indexes.iter().filter(|index| self.loaded.maps.current(**index).slot() != 0);
        self.loaded.maps.retire(&in_force.copied().collect::<Vec<_>>())?;
        self.loaded.maps.forget(&indexes)?;
        for (name, _) in &free {
            self.numbers.release(name)?;
        }
        Ok(())
    }

    /// Counts an instance's sockets from 0 again, where nothing of it is confined. Its count is 0 then, unless sockets closed while no
    /// link saw it, after a `detach`, or another program on the cgroup denied some that were counted.
    pub(super) fn count_sockets_anew(&mut self, index: InstanceIndex) -> Result<(), DaemonError> {
        let Self { loaded, confinement, .. } = self;
        if loaded.maps.open_sockets(index)? == 0 {
            return Ok(());
        }
        let counts = |links: &LinkDirectory| -> Result<bool, DaemonError> {
            Ok(loaded.maps.instance_of(links.cgroup) == Some(index)
                && links.link(Hook::SockRelease)?.is_some())
        };
        for links in confinement.pins.all_links()? {
            if counts(&links)? {
                return Ok(());
            }
        }
        Ok(loaded.maps.count_sockets_anew(index)?)
    }

    /// The numbers that cgroups have, and those of the instances that predecessors confine.
    fn numbers_in_use(&self) -> Result<BTreeSet<InstanceIndex>, DaemonError> {
        let links = self.confinement.pins.all_links()?;
        let mut in_use: BTreeSet<_> =
            links.iter().filter_map(|links| self.loaded.maps.instance_of(links.cgroup)).collect();
        for predecessor in &self.confinement.predecessors {
            let names = predecessor.confining()?;
            in_use.extend(names.into_iter().filter_map(|name| self.numbers.known().get(&name)).copied());
        }
        Ok(in_use)
    }
}
