//! Units: confining them when they ask, when they were forgotten, and letting go of what is gone.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use opencode_egress_common::reason::Hook;
use tracing::{error, info, warn};

use super::{Daemon, DaemonError, error_chain};
use crate::{
    cgroup::{Cgroup, unit_of},
    journal::{CONFINED_LATE_ID, LINKS_RESTORED_ID},
    loader::{ATTACH_ORDER, Loaded},
    pins::LinkDirectory,
    policy::{InstanceName, UnitName},
};

/// A unit's `attach` comes this soon after its cgroup.
const TIME_TO_ASK: Duration = Duration::from_secs(2);

impl Daemon {
    /// Confines the listed units that have a cgroup without all links, and removes the pins of cgroups that are
    /// gone. What cannot be confined is logged and shown by `status`; the next call tries again.
    pub fn reconcile(&mut self) {
        // Watched first, so that what comes after the look rings the bell.
        let followed = self.follow().err().map(|error| error_chain(&error));
        if let Some(why) = followed.as_ref().filter(|why| self.not_followed.as_ref() != Some(why)) {
            warn!("what comes and goes is found within seconds, not at once: {why}");
        }
        self.not_followed = followed;
        let services = match self.hierarchy.services() {
            Ok(services) => services,
            Err(error) => return error!("cannot look for units: {}", error_chain(&error)),
        };
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
            match self.confine_unasked(&name, &unit, path) {
                Ok(()) => drop(self.failing.remove(&unit)),
                Err(error) => self.tell_failure(unit, error_chain(&error)),
            }
        }
        if let Err(error) = self.replace_other_versions(&services) {
            warn!("what another version of opencode-egress pinned stays: {}", error_chain(&error));
        }
    }

    /// Takes away the links of other ABI versions where this one's are in place: new before old, so that the
    /// unit is confined all the time. A unit that is not this policy's keeps the old ones until it stops.
    fn replace_other_versions(&mut self, services: &BTreeMap<UnitName, PathBuf>) -> Result<(), DaemonError> {
        let others = self.pins.of_other_versions();
        let own = if others.is_empty() { vec![] } else { self.pins.all_links() };
        for version in others {
            for links in version.all_links() {
                let new = own.iter().find(|new| new.is_for_the_same(&links));
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

    fn follow(&mut self) -> Result<(), DaemonError> {
        let slices = self.hierarchy.slices()?.into_iter().map(|slice| self.hierarchy.mount().join(slice));
        self.watch.slices(slices).map_err(DaemonError::Watch)?;
        for links in self.pins.all_links() {
            self.watch.links(links.path()).map_err(DaemonError::Watch)?;
        }
        Ok(())
    }

    fn tell_failure(&mut self, unit: UnitName, why: String) {
        if self.failing.get(&unit) != Some(&why) {
            error!("{unit} is not confined: {why}");
            self.failing.insert(unit, why);
        }
    }

    /// Confines a unit that did not ask for it, or not yet: its cgroup comes a moment before its first process.
    fn confine_unasked(
        &mut self,
        name: &InstanceName,
        unit: &UnitName,
        path: &Path,
    ) -> Result<(), DaemonError> {
        let cgroup = match self.hierarchy.open(path) {
            Err(error) if error.is_not_found() => return Ok(()),
            cgroup => cgroup?,
        };
        let was_confined = self.confined.contains(&cgroup.id());
        let made = self.confine(name, unit, &cgroup)?;
        if made == 0 {
            return Ok(());
        }
        if self.let_go.remove(&cgroup.id()) {
            info!("{unit} is confined again");
        } else if was_confined || made < ATTACH_ORDER.len() {
            warn!(
                MESSAGE_ID = LINKS_RESTORED_ID,
                OPENCODE_INSTANCE = %name,
                OBJECT_SYSTEMD_UNIT = %unit,
                "{made} links of {unit} were gone; somebody removed them, and they are back"
            );
        } else if self.is_confined_by_another_version(unit, &cgroup) {
            info!("{unit} was confined by another version and is taken over");
        } else if let Some(instance) = self.instances.get_mut(name) {
            instance.unasked.insert(unit.clone(), Instant::now());
        }
        if cgroup.is_populated() { self.reset_denied(&[name]) } else { Ok(()) }
    }

    /// Reports the units that were confined a while ago and still have not asked for it.
    pub fn find_late(&mut self) {
        if self.instances.values().all(|instance| instance.unasked.is_empty()) {
            return;
        }
        // What cannot be looked at is looked at again in a second.
        let Ok(services) = self.hierarchy.services() else { return };
        let running = |unit: &UnitName| {
            let cgroup = services.get(unit).and_then(|path| self.hierarchy.open(path).ok());
            cgroup.filter(Cgroup::is_populated).map(|cgroup| cgroup.id())
        };
        for (name, instance) in &mut self.instances {
            let (due, unasked) = std::mem::take(&mut instance.unasked)
                .into_iter()
                .partition(|(_, since)| since.elapsed() > TIME_TO_ASK);
            instance.unasked = unasked;
            let due: BTreeMap<_, _> = due;
            for unit in due.into_keys() {
                let Some(cgroup) = running(&unit) else { continue };
                warn!(
                    MESSAGE_ID = CONFINED_LATE_ID,
                    OPENCODE_INSTANCE = %name,
                    OBJECT_SYSTEMD_UNIT = %unit,
                    "{unit} did not ask to be confined before it ran: its first ExecStartPre=+ must be `opencode-egress attach {name}`. It is confined now; restart it"
                );
                instance.late.insert(unit, cgroup);
            }
        }
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
        let (mut there, mut missing) = (vec![], vec![]);
        for hook in ATTACH_ORDER {
            match directory.link(hook)? {
                Some(link) => there.push((hook, link)),
                None => missing.push(hook),
            }
        }
        if !missing.is_empty() || self.loaded.maps.scope_instance(cgroup.id()) != Some(index) {
            let attach = |loaded: &mut Loaded, hook: Hook, cgroup: &Cgroup| {
                missing.contains(&hook).then(|| loaded.programs.attach(hook, cgroup)).transpose()
            };
            for (hook, link) in self.loaded.confine(cgroup, index, attach)? {
                if let Some(link) = link {
                    directory.pin(hook, &link)?;
                }
            }
            // The next look tries again, and says so.
            let _ = self.watch.links(directory.path());
        }
        // Last: an old program judges, a hook without a link does not.
        for (hook, link) in there {
            self.loaded.programs.renew(hook, &link, cgroup)?;
        }
        self.confined.insert(cgroup.id());
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
        self.let_go.remove(&cgroup.id());
        let generation = self.loaded.maps.current(self.instance(&name)?.index).generation();
        if let Some(instance) = self.instances.get_mut(&name) {
            instance.unasked.remove(&unit);
            instance.late.remove(&unit);
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
            self.let_go.insert(directory.cgroup);
            warn!("{} is no longer confined: detached on request", directory.unit);
            detached.push(directory.unit);
        }
        Ok(detached)
    }

    /// Removes the links of a cgroup that is not the one at `path`, where the unit is now. Not being able to look
    /// is no reason to let go.
    fn remove_if_dead(&mut self, links: &LinkDirectory, path: Option<&PathBuf>) {
        let here = path.map(|path| self.hierarchy.open(path)).transpose();
        let dead = match here {
            Ok(cgroup) => cgroup.is_none_or(|cgroup| cgroup.id() != links.cgroup),
            Err(error) if error.is_not_found() => true,
            Err(error) => return warn!("the links of {} stay: {}", links.unit, error_chain(&error)),
        };
        if !dead {
            return;
        }
        self.confined.remove(&links.cgroup);
        self.let_go.remove(&links.cgroup);
        if let Err(error) = links.remove() {
            warn!("{}", error_chain(&error));
        }
    }
}
