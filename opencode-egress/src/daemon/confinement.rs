//! Units: confining them when they ask, when they were forgotten, and letting go of what is gone.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use opencode_egress_common::reason::Hook;
use tracing::{error, info, warn};

use super::{Daemon, DaemonError, error_chain};
use crate::{
    cgroup::{Cgroup, unit_of},
    loader::{ATTACH_ORDER, Loaded},
    pins::LinkDirectory,
    policy::{InstanceName, UnitName},
};

impl Daemon {
    /// Confines the listed units that run without all links, and removes the pins of cgroups that are gone.
    /// What cannot be confined is logged and shown by `status`; the next call tries again.
    pub fn reconcile(&mut self) {
        let services = self.hierarchy.services();
        for links in self.pins.all_links() {
            self.remove_if_dead(&links, services.get(&links.unit));
        }
        let instances = self.instances.iter().filter(|(_, instance)| !instance.detached);
        let units: Vec<_> = instances
            .flat_map(|(name, instance)| {
                instance.policy.units.iter().map(|unit| (name.clone(), unit.clone()))
            })
            .collect();
        for (name, unit) in units {
            let Some(path) = services.get(&unit) else { continue };
            if let Err(error) = self.confine_late(&name, &unit, path) {
                error!("{unit} is running and not confined: {}", error_chain(&error));
            }
        }
        if let Err(error) = self.replace_other_versions(&services) {
            warn!("what another version of opencode-egress pinned stays: {}", error_chain(&error));
        }
    }

    /// Takes away the links of other ABI versions where this one's are in place: new before old, so that the
    /// unit is confined all the time. A unit that is not this policy's keeps the old ones until it stops.
    fn replace_other_versions(&self, services: &BTreeMap<UnitName, PathBuf>) -> Result<(), DaemonError> {
        for version in self.pins.of_other_versions() {
            for links in version.all_links() {
                let new = self.pins.all_links().into_iter().find(|new| new.is_for_the_same(&links));
                if new.is_some_and(|new| new.count() == ATTACH_ORDER.len()) {
                    info!("{}: the links of another version are replaced", links.unit);
                    links.remove()?;
                } else {
                    self.remove_if_dead(&links, services.get(&links.unit));
                }
            }
            version.remove_if_unused()?;
        }
        Ok(())
    }

    fn confine_late(&mut self, name: &InstanceName, unit: &UnitName, path: &Path) -> Result<(), DaemonError> {
        let cgroup = self.hierarchy.open(path)?;
        if !cgroup.is_populated() {
            return Ok(());
        }
        let made = self.confine(name, unit, &cgroup)?;
        if made == 0 {
            return Ok(());
        }
        if made < ATTACH_ORDER.len() {
            warn!("{made} links of {unit} were gone; somebody removed them, and they are back");
        } else if self.is_confined_by_another_version(unit, &cgroup) {
            info!("{unit} was confined by another version and is taken over");
        } else {
            warn!("{unit} was running before it was confined; what it had open is judged from now on");
            // A unit without `attach` is late at every start, and one entry says so.
            if let Some(instance) = self.instances.get_mut(name)
                && !instance.late.contains(unit)
            {
                instance.late.push(unit.clone());
            }
        }
        self.reset_denied(name)
    }

    fn is_confined_by_another_version(&self, unit: &UnitName, cgroup: &Cgroup) -> bool {
        let old = self.pins.of_other_versions().into_iter().flat_map(|version| version.all_links());
        old.into_iter().any(|links| links.unit == *unit && links.cgroup == cgroup.id())
    }

    /// Confines a cgroup of a unit, and returns how many links that took: 0 when it was already.
    fn confine(
        &mut self,
        name: &InstanceName,
        unit: &UnitName,
        cgroup: &Cgroup,
    ) -> Result<usize, DaemonError> {
        let index = self.instance(name)?.index;
        let directory = self.pins.links(unit, cgroup.id())?;
        let mut missing = vec![];
        for hook in ATTACH_ORDER {
            if !directory.has(hook)? {
                missing.push(hook);
            }
        }
        if missing.is_empty() && self.loaded.maps.scope_instance(cgroup.id()) == Some(index) {
            return Ok(0);
        }
        let attach = |loaded: &mut Loaded, hook: Hook, cgroup: &Cgroup| {
            missing.contains(&hook).then(|| loaded.programs.attach(hook, cgroup)).transpose()
        };
        for (hook, link) in self.loaded.confine(cgroup, index, attach)? {
            if let Some(link) = link {
                directory.pin(hook, &link)?;
            }
        }
        Ok(missing.len())
    }

    /// Confines the unit of a process that says it belongs to `name`.
    ///
    /// # Errors
    ///
    /// When it does not, or the kernel refuses.
    pub fn attach(&mut self, name: &str, pid: u32) -> Result<(UnitName, u32), DaemonError> {
        let name = self.known(name)?;
        let path = self.hierarchy.of_process(pid)?;
        let Some((unit, unit_path)) = unit_of(&path) else {
            return Err(DaemonError::NoUnit { pid, cgroup: path });
        };
        if !self.instance(&name)?.policy.units.contains(&unit) {
            return Err(DaemonError::NotListed { unit, name });
        }
        let cgroup = self.hierarchy.open(&unit_path)?;
        for links in self.pins.all_links().into_iter().filter(|links| links.unit == unit) {
            self.remove_if_dead(&links, Some(&unit_path));
        }
        self.confine(&name, &unit, &cgroup)?;
        let generation = self.loaded.maps.current(self.instance(&name)?.index).generation();
        if let Some(instance) = self.instances.get_mut(&name) {
            instance.late.retain(|late| late != &unit);
            instance.detached = false;
        }
        info!("{unit} is confined, instance {name}, generation {generation}");
        Ok((unit, generation))
    }

    /// Takes the links of an instance's units away. They come back when a unit starts or at a reload.
    ///
    /// # Errors
    ///
    /// When a pin cannot be removed.
    pub fn detach(&mut self, name: &str) -> Result<Vec<UnitName>, DaemonError> {
        let name = self.known(name)?;
        let units = self.instance(&name)?.policy.units.clone();
        if let Some(instance) = self.instances.get_mut(&name) {
            instance.detached = true;
        }
        let mut detached = vec![];
        for directory in self.pins.all_links().into_iter().filter(|links| units.contains(&links.unit)) {
            directory.remove()?;
            warn!("{} is no longer confined: detached on request", directory.unit);
            detached.push(directory.unit);
        }
        Ok(detached)
    }

    /// Removes the links of a cgroup that is not the one at `path`, where the unit is now.
    fn remove_if_dead(&self, links: &LinkDirectory, path: Option<&PathBuf>) {
        let cgroup = path.and_then(|path| self.hierarchy.open(path).ok());
        if cgroup.is_none_or(|cgroup| cgroup.id() != links.cgroup)
            && let Err(error) = links.remove()
        {
            warn!("{}", error_chain(&error));
        }
    }
}
