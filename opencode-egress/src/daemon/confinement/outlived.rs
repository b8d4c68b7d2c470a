//! What is left of cgroups that are gone: their sockets, which somebody else has by now or the kernel still empties.
//!
//! A socket is judged by the links of the cgroup that it was made in, for as long as it exists: the kernel keeps a removed
//! cgroup's links attached until its last socket is closed. So their pins stay until then, and nobody can hand a socket out
//! of its policy.

use std::{collections::HashSet, path::Path};

use tracing::warn;

use crate::{
    cgroups::Services,
    daemon::{
        confinement::gone::Outlived,
        error::DaemonError,
        state::{Confinement, Daemon},
    },
    kernel::{hooks::ATTACH_ORDER, loader::Loaded, pins::LinkDirectory},
    policy::InstanceName,
    report::human::error_chain,
};

/// How many of them are looked at in a turn: however many there are, a turn takes some milliseconds.
const LOOKS: usize = 1024;

impl Daemon {
    /// Removes the links of the cgroups that the kernel has let go of. Not being able to look is no reason to let go.
    pub(in crate::daemon) fn look_after_outlived(&mut self, services: &Services) -> Result<(), DaemonError> {
        let (mut there, mut linked) = (HashSet::new(), HashSet::new());
        for links in self.confinement.pins.all_links()? {
            linked.insert(links.cgroup);
            let known = self.confinement.outlived.contains_key(&links.cgroup);
            if known || self.is_gone(&links, services) {
                there.insert(links.cgroup);
                if !known {
                    self.find_outlived(links);
                }
            }
        }
        if let Err(error) = self.loaded.maps.keep_confined(|cgroup| linked.contains(&cgroup)) {
            warn!("cgroups that are gone take room in the kernel: {}", error_chain(&error));
        }
        let Confinement { outlived, next_look, .. } = &mut self.confinement;
        outlived.retain(|cgroup, _| there.contains(cgroup));
        let mut due: Vec<_> = outlived.range(*next_look..).map(|(cgroup, _)| *cgroup).take(LOOKS).collect();
        // The next turn goes on behind these, or begins again.
        *next_look = if due.len() < LOOKS { 0 } else { due.last().map_or(0, |last| last + 1) };
        due.retain(|cgroup| outlived.get(cgroup).is_some_and(|gone| remove_if_over(&gone.links)));
        for cgroup in due {
            outlived.remove(&cgroup);
        }
        Ok(())
    }

    /// Whether a cgroup is none of those that its unit has.
    pub(super) fn is_gone(&self, links: &LinkDirectory, services: &Services) -> bool {
        match self.confinement.hierarchy.has(services.get(&links.unit), links.cgroup) {
            Ok(there) => !there,
            Err(error) => {
                warn!("the links of {} stay: {}", links.unit, error_chain(&error));
                false
            }
        }
    }

    fn find_outlived(&mut self, links: LinkDirectory) {
        self.confinement.confined.remove(&links.cgroup);
        self.confinement.let_go.remove(&links.cgroup);
        if remove_if_over(&links) {
            return;
        }
        let instance = self.loaded.maps.instance_of(links.cgroup);
        // An earlier daemon's program may be of an older build.
        if instance.is_some()
            && let Err(error) = renew(&self.loaded, &links)
        {
            warn!("sockets of an earlier start of {} are judged by an older build: {error}", links.unit);
        }
        let gone = Outlived {
            instance: instance.and_then(|index| self.numbers.name_of(index)).cloned(),
            denials: self.loaded.maps.denials_of(links.cgroup),
            links,
        };
        self.confinement.outlived.insert(gone.links.cgroup, gone);
    }

    /// The cgroups of an instance that are gone and of which there are sockets.
    pub(super) fn outlived(&self, name: &InstanceName) -> Vec<u64> {
        let gone = self.confinement.outlived.iter().filter(|(_, gone)| gone.instance.as_ref() == Some(name));
        gone.map(|(cgroup, _)| *cgroup).collect()
    }

    /// Takes the policies of instances whose policies are others now out of force at predecessors, whose links judge sockets that
    /// can have no other links: everything is denied to those. What can have this version's links has them by now.
    pub(in crate::daemon) fn retire_predecessors(&self, has_another: impl Fn(&InstanceName) -> bool) {
        for predecessor in &self.confinement.predecessors {
            predecessor.retire(&has_another);
        }
    }

    /// These, and those that predecessors' links confine.
    pub(in crate::daemon) fn all_outlived(&self, name: &InstanceName) -> Result<Vec<u64>, DaemonError> {
        let mut cgroups = self.outlived(name);
        for predecessor in &self.confinement.predecessors {
            cgroups.extend(predecessor.cgroups_of(name)?);
        }
        Ok(cgroups)
    }

    /// Cgroups of an instance to which everything is denied, whatever its policy: predecessors' links confine them.
    pub(in crate::daemon) fn retired_cgroups(&self, name: &InstanceName) -> Result<Vec<u64>, DaemonError> {
        let mut cgroups = vec![];
        for predecessor in self.confinement.predecessors.iter().filter(|earlier| earlier.is_retired(name)) {
            cgroups.extend(predecessor.cgroups_of(name)?);
        }
        Ok(cgroups)
    }

    /// How often something was denied to such sockets of an instance, since this daemon knows of them.
    pub(super) fn outlived_denials(&self, name: &InstanceName) -> u64 {
        let denials = |cgroup: u64| {
            let before = self.confinement.outlived.get(&cgroup)?.denials;
            Some(u64::from(self.loaded.maps.denials_of(cgroup).wrapping_sub(before)))
        };
        self.outlived(name).into_iter().filter_map(denials).sum()
    }
}

impl Confinement {
    /// The instances by whose policies such sockets are judged.
    pub(super) fn outlived_instances(&self) -> impl Iterator<Item = &InstanceName> {
        self.outlived.values().filter_map(|gone| gone.instance.as_ref())
    }
}

/// Removes the links of a cgroup that is gone, if the kernel has let go of it, and returns whether.
pub(super) fn remove_if_over(links: &LinkDirectory) -> bool {
    let removed = match links.is_over() {
        Ok(false) => return false,
        Ok(true) => links.remove(),
        Err(error) => Err(error),
    };
    if let Err(error) = &removed {
        warn!("links of {} that is gone stay: {}", links.unit, error_chain(error));
    }
    removed.is_ok()
}

fn renew(loaded: &Loaded, links: &LinkDirectory) -> Result<(), DaemonError> {
    for hook in ATTACH_ORDER {
        if let Some(link) = links.link(hook)? {
            let gone = Path::new(links.unit.as_str());
            loaded.programs.renew(hook, &link, gone)?;
        }
    }
    Ok(())
}
