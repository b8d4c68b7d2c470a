//! Units: confining them when they ask, when they were forgotten, and letting go of what is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use opencode_egress_common::reason::Hook;
use tracing::{error, info, warn};

use super::{Daemon, DaemonError, Instance, error_chain};
use crate::{
    cgroup::{Cgroup, Services, unit_of},
    journal::{CONFINED_LATE_ID, DETACHED_ID, LINKS_RESTORED_ID, NOT_CONFINED_ID},
    loader::{ATTACH_ORDER, Loaded},
    maps::InstanceIndex,
    pins::LinkDirectory,
    policy::{InstanceName, UnitName},
};

/// A unit's `attach` comes this soon after its cgroup.
const TIME_TO_ASK: Duration = Duration::from_secs(5);

/// What it took to confine a cgroup.
#[derive(Clone, Copy)]
struct Confined {
    /// Links that were there.
    there: usize,
    /// Links that were made: 0 when all were there.
    made: usize,
}

impl Daemon {
    /// Confines the units that have a cgroup without all links, and removes the pins of cgroups that are gone. What
    /// cannot be confined is logged and shown by `status`; the next call tries again.
    pub fn reconcile(&mut self) {
        // Watched first, so that what comes after the look rings the bell.
        let followed = self.follow().err().map(|error| error_chain(&error));
        if let Some(why) = followed.as_ref().filter(|why| self.not_followed.as_ref() != Some(why)) {
            warn!("what comes and goes is found within seconds, not at once: {why}");
        }
        self.not_followed = followed;
        if let Err(error) = self.look_after_units() {
            error!("cannot look after units: {}", error_chain(&error));
        }
    }

    fn look_after_units(&mut self) -> Result<(), DaemonError> {
        self.restore_maps()?;
        let services = self.hierarchy.services()?;
        for links in self.pins.all_links()? {
            self.remove_if_dead(&links, &services);
        }
        self.find_unlisted()?;
        let instances = self.instances.iter().filter(|(_, instance)| !instance.detached);
        let units: Vec<_> = instances
            .flat_map(|(name, instance)| instance.units().map(|unit| (name.clone(), unit.clone())))
            .collect();
        for (name, unit) in units {
            match self.confine_unasked(&name, &unit, &services) {
                Ok(()) => drop(self.failing.remove(&unit)),
                Err(error) => self.tell_failure(&name, unit, error_chain(&error)),
            }
        }
        self.failing.retain(|unit, _| services.contains_key(unit));
        if let Err(error) = self.replace_other_versions(&services) {
            warn!("what another version of opencode-egress pinned stays: {}", error_chain(&error));
        }
        Ok(())
    }

    /// Pins the maps again that somebody took off their pins: the next daemon would make others, and judge by those.
    fn restore_maps(&mut self) -> Result<(), DaemonError> {
        if !self.pins.is_there() {
            // The lock is of a directory that is gone.
            self.lock = self.pins.lock()?;
        }
        let restored = self.map_pins.restore()?;
        if restored > 0 {
            warn!(
                MESSAGE_ID = LINKS_RESTORED_ID,
                "{restored} pins of maps were gone; somebody removed them, and they are back"
            );
        }
        Ok(())
    }

    /// Finds the units that are confined and that no instance lists any more. They keep their instance, or what is left of it,
    /// until they stop.
    pub(super) fn find_unlisted(&mut self) -> Result<(), DaemonError> {
        let Self { instances, loaded, registry, pins, .. } = self;
        let listed: BTreeSet<_> = instances.values().flat_map(Instance::listed).cloned().collect();
        let mut unlisted: BTreeMap<InstanceName, BTreeSet<UnitName>> = BTreeMap::new();
        for links in pins.all_links()?.into_iter().filter(|links| !listed.contains(&links.unit)) {
            let index = loaded.maps.scope_instance(links.cgroup);
            if let Some(name) = index.and_then(|index| registry.name_of(index)) {
                unlisted.entry(name.clone()).or_default().insert(links.unit);
            }
        }
        for (name, instance) in instances.iter_mut() {
            instance.unlisted = unlisted.remove(name).unwrap_or_default();
        }
        instances.retain(|_, instance| instance.policy.is_some() || !instance.unlisted.is_empty());
        for (name, units) in unlisted {
            if let Some(index) = registry.known().get(&name) {
                let denied = loaded.maps.counters(*index)?.denied;
                let instance = Instance { unlisted: units, ..Instance::new(*index, &denied) };
                instances.insert(name, instance);
            }
        }
        Ok(())
    }

    /// Takes away the links of other ABI versions where this one's are in place: new before old, so that the
    /// unit is confined all the time. A unit that is not this policy's keeps the old ones until it stops.
    fn replace_other_versions(&mut self, services: &Services) -> Result<(), DaemonError> {
        let others = self.pins.of_other_versions()?;
        let own = if others.is_empty() { vec![] } else { self.pins.all_links()? };
        for version in others {
            for links in version.all_links()? {
                let new = own.iter().find(|new| new.is_for_the_same(&links));
                if new.is_some_and(|new| self.ours(new) == ATTACH_ORDER.len()) {
                    info!("{}: the links of another version are replaced", links.unit);
                    links.remove()?;
                } else {
                    self.remove_if_dead(&links, services);
                }
            }
            version.remove_if_unused()?;
        }
        Ok(())
    }

    /// How many hooks' links of a cgroup have this daemon's programs.
    pub(super) fn ours(&self, links: &LinkDirectory) -> usize {
        links.count(|hook, info| self.loaded.programs.is_in(hook, info))
    }

    fn follow(&mut self) -> Result<(), DaemonError> {
        let slices = self.hierarchy.slices()?.into_iter().map(|slice| self.hierarchy.mount().join(slice));
        self.watch.slices(slices).map_err(DaemonError::Watch)?;
        self.watch.pins(self.pins.maps()).map_err(DaemonError::Watch)?;
        for links in self.pins.all_links()? {
            self.watch.pins(links.path()).map_err(DaemonError::Watch)?;
        }
        Ok(())
    }

    fn tell_failure(&mut self, name: &InstanceName, unit: UnitName, why: String) {
        if self.failing.get(&unit) != Some(&why) {
            error!(
                MESSAGE_ID = NOT_CONFINED_ID,
                OPENCODE_INSTANCE = %name,
                OBJECT_SYSTEMD_UNIT = %unit,
                "{unit} is not confined: {why}"
            );
            self.failing.insert(unit, why);
        }
    }

    /// Confines a unit that did not ask for it, or not yet: its cgroup comes a moment before its first process.
    fn confine_unasked(
        &mut self,
        name: &InstanceName,
        unit: &UnitName,
        services: &Services,
    ) -> Result<(), DaemonError> {
        for cgroup in self.hierarchy.open_all(services.get(unit))? {
            let was_confined = self.confined.contains(&cgroup.id());
            let Confined { there, made } = self.confine(self.instance(name)?.index, unit, &cgroup)?;
            if made == 0 {
                continue;
            }
            if self.let_go.remove(&cgroup.id()) {
                info!("{unit} is confined again");
            } else if was_confined || there > 0 {
                warn!(
                    MESSAGE_ID = LINKS_RESTORED_ID,
                    OPENCODE_INSTANCE = %name,
                    OBJECT_SYSTEMD_UNIT = %unit,
                    "{made} links of {unit} were gone, or their maps; somebody removed them, or a daemon ended while it made them. They are back"
                );
            } else if self.is_confined_by_another_version(unit, &cgroup)? {
                info!("{unit} was confined by another version and is taken over");
            } else if let Some(instance) = self.instances.get_mut(name) {
                instance.unasked.entry(unit.clone()).or_insert_with(Instant::now);
            }
            if cgroup.is_populated() {
                self.reset_denied(&[name])?;
            }
        }
        Ok(())
    }

    /// Reports the units that were confined a while ago and still have not asked for it.
    pub fn find_late(&mut self) {
        if self.instances.values().all(|instance| instance.unasked.is_empty()) {
            return;
        }
        // What cannot be looked at is looked at again in a second.
        let Ok(services) = self.hierarchy.services() else { return };
        let Self { instances, hierarchy, pins, .. } = self;
        for (name, instance) in instances {
            let (due, unasked): (BTreeMap<_, _>, _) = std::mem::take(&mut instance.unasked)
                .into_iter()
                .partition(|(_, since)| since.elapsed() > TIME_TO_ASK);
            instance.unasked = unasked;
            for unit in due.into_keys() {
                let cgroups = hierarchy.open_all(services.get(&unit)).unwrap_or_default();
                let running: Vec<_> = cgroups.into_iter().filter(Cgroup::is_populated).collect();
                if running.is_empty() {
                    continue;
                }
                warn!(
                    MESSAGE_ID = CONFINED_LATE_ID,
                    OPENCODE_INSTANCE = %name,
                    OBJECT_SYSTEMD_UNIT = %unit,
                    "{unit} did not ask to be confined before it ran: its first ExecStartPre=+ must be `opencode-egress attach {name}`. It is confined now; restart it"
                );
                for cgroup in running {
                    let marked = pins.links(&unit, cgroup.id()).and_then(|links| links.mark_late());
                    if let Err(error) = marked {
                        warn!("`status` will not show that {unit} was late: {}", error_chain(&error));
                    }
                }
            }
        }
    }

    fn is_confined_by_another_version(&self, unit: &UnitName, cgroup: &Cgroup) -> Result<bool, DaemonError> {
        for version in self.pins.of_other_versions()? {
            if version.all_links()?.iter().any(|links| links.unit == *unit && links.cgroup == cgroup.id()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Confines a cgroup of a unit.
    fn confine(
        &mut self,
        index: InstanceIndex,
        unit: &UnitName,
        cgroup: &Cgroup,
    ) -> Result<Confined, DaemonError> {
        let directory = self.pins.links(unit, cgroup.id())?;
        let (mut there, mut missing) = (vec![], vec![]);
        for hook in ATTACH_ORDER {
            match directory.link(hook)? {
                Some(link) => there.push((hook, link)),
                None => missing.push(hook),
            }
        }
        let before = there.len();
        let scope = self.loaded.maps.scope_instance(cgroup.id());
        if scope.is_none() {
            // What is there judges by maps that are nobody's any more. It goes when a new link is pinned in its place.
            (there, missing) = (vec![], ATTACH_ORDER.to_vec());
        }
        if !missing.is_empty() || scope != Some(index) {
            let attach = |loaded: &mut Loaded, hook: Hook, cgroup: &Cgroup| {
                missing.contains(&hook).then(|| loaded.programs.attach(hook, cgroup)).transpose()
            };
            for (hook, link) in self.loaded.confine(cgroup, index, attach)? {
                if let Some(link) = link {
                    directory.pin(hook, &link)?;
                }
            }
            // The next look tries again, and says so.
            let _ = self.watch.pins(directory.path());
        }
        // Last: an old program judges, a hook without a link does not.
        for (hook, link) in there {
            self.loaded.programs.renew(hook, &link, cgroup)?;
        }
        self.confined.insert(cgroup.id());
        Ok(Confined { there: before, made: missing.len() })
    }

    /// Confines the unit of a process that says it belongs to `name`.
    ///
    /// # Errors
    ///
    /// When it does not, or the kernel refuses.
    pub fn attach(&mut self, name: &str, pid: u32) -> Result<(UnitName, u32), DaemonError> {
        let name = self.known(name)?;
        let path = self.hierarchy.of_process(pid)?;
        let services = self.hierarchy.services()?;
        // A cgroup of that name elsewhere is no unit's; and what runs below a user's manager is that user's, not the system's.
        let found = unit_of(&path)
            .filter(|(unit, _)| !unit.as_str().starts_with("user@"))
            .filter(|(unit, path)| services.get(unit).is_some_and(|paths| paths.contains(path)));
        let Some((unit, unit_path)) = found else {
            return Err(DaemonError::NoUnit { pid, cgroup: path });
        };
        let instance = self.instance(&name)?;
        if instance.policy.is_none() {
            return Err(self.unknown(name.as_str()));
        }
        if !instance.listed().any(|listed| *listed == unit) {
            return Err(DaemonError::NotListed { unit, name });
        }
        let index = instance.index;
        let cgroup = self.hierarchy.open(&unit_path)?;
        for links in self.pins.all_links()?.into_iter().filter(|links| links.unit == unit) {
            self.remove_if_dead(&links, &services);
        }
        self.confine(index, &unit, &cgroup)?;
        self.pins.links(&unit, cgroup.id())?.unmark_late()?;
        self.let_go.remove(&cgroup.id());
        let generation = self.loaded.maps.current(index).generation();
        if let Some(instance) = self.instances.get_mut(&name) {
            instance.unasked.remove(&unit);
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
        let links = self.pins.all_links()?;
        let units: Vec<_> = self.instance(&name)?.units().cloned().collect();
        if let Some(instance) = self.instances.get_mut(&name) {
            instance.detached = true;
        }
        let mut detached = vec![];
        for directory in links.into_iter().filter(|links| units.contains(&links.unit)) {
            directory.remove()?;
            self.let_go.insert(directory.cgroup);
            warn!(
                MESSAGE_ID = DETACHED_ID,
                OPENCODE_INSTANCE = %name,
                OBJECT_SYSTEMD_UNIT = %directory.unit,
                "{} is no longer confined: detached on request",
                directory.unit
            );
            detached.push(directory.unit);
        }
        Ok(detached)
    }

    /// Removes the links of a cgroup that is none of those that the unit has. Not being able to look is no reason to let go.
    fn remove_if_dead(&mut self, links: &LinkDirectory, services: &Services) {
        match self.hierarchy.open_all(services.get(&links.unit)) {
            Ok(cgroups) if cgroups.iter().any(|cgroup| cgroup.id() == links.cgroup) => return,
            Ok(_) => {}
            Err(error) => return warn!("the links of {} stay: {}", links.unit, error_chain(&error)),
        }
        self.confined.remove(&links.cgroup);
        self.let_go.remove(&links.cgroup);
        if let Err(error) = links.remove() {
            warn!("{}", error_chain(&error));
        }
    }
}
