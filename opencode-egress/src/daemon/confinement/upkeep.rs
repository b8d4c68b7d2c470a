//! Looking after what is confined: units that come and go, links and maps that somebody removed, what another version left.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use tracing::{error, info, warn};

use crate::{
    cgroups::{Cgroup, Services},
    daemon::{
        confinement::outlived::remove_if_over,
        error::DaemonError,
        state::{Confinement, Daemon, InstanceState},
    },
    kernel::{hooks::Needs, pins::LinkDirectory},
    policy::{InstanceName, UnitName},
    report::{
        human::error_chain,
        journal::{CONFINED_LATE_ID, LINKS_RESTORED_ID, NOT_CONFINED_ID},
        status::CountersStatus,
    },
};

/// How soon after a unit's cgroup its `attach` comes. A unit that has not asked by then is reported.
const TIME_TO_ASK: Duration = Duration::from_secs(5);
/// How often users' own managers are looked at, at most.
const USERS_PAUSE: Duration = Duration::from_secs(4);

impl Daemon {
    /// Confines the units that have a cgroup without all links, and removes the pins of what the kernel has let go of. What
    /// cannot be confined is logged and shown by `status`; the next call tries again.
    pub fn reconcile(&mut self) {
        // Watched first, so that what comes after the look rings the bell.
        let followed = self.follow().err().map(|error| error_chain(&error));
        if let Some(why) =
            followed.as_ref().filter(|why| self.confinement.watch_trouble.as_ref() != Some(why))
        {
            warn!("what comes and goes is found within seconds, not at once: {why}");
        }
        self.confinement.watch_trouble = followed;
        let restored = self.restore_maps();
        let looked = self.look_after_units();
        let trouble = restored.and(looked).err().map(|error| error_chain(&error));
        if let Some(why) =
            trouble.as_ref().filter(|why| self.confinement.upkeep_trouble.as_ref() != Some(why))
        {
            error!("cannot look after every unit: {why}");
        }
        self.confinement.upkeep_trouble = trouble;
    }

    fn look_after_units(&mut self) -> Result<(), DaemonError> {
        let services = self.confinement.hierarchy.services()?;
        self.look_at_limits(&services);
        self.look_after_outlived(&services)?;
        self.find_unlisted()?;
        let instances = self.instances.iter().filter(|(_, instance)| !instance.detached);
        let units: Vec<_> = instances
            .flat_map(|(name, instance)| instance.units().map(|unit| (name.clone(), unit.clone())))
            .collect();
        for (name, unit) in units {
            match self.confine_unasked(&name, &unit, &services) {
                Ok(()) => drop(self.confinement.failing.remove(&unit)),
                Err(error) => self.tell_failure(&name, unit, error_chain(&error)),
            }
        }
        self.confinement.failing.retain(|unit, _| services.contains_key(unit));
        self.find_users_units()?;
        self.forget_let_go(&services)?;
        if let Err(error) = self.replace_other_versions(&services) {
            warn!("what another version of opencode-egress pinned stays: {}", error_chain(&error));
        }
        self.free_numbers()
    }

    /// Pins the maps again that somebody took off their pins: the next daemon would make others, and judge by those.
    fn restore_maps(&mut self) -> Result<(), DaemonError> {
        self.keep_lock()?;
        let restored = self.confinement.map_pins.restore()?;
        if restored > 0 {
            warn!(
                MESSAGE_ID = LINKS_RESTORED_ID,
                "pins of maps were removed by somebody and are back: {restored}"
            );
        }
        Ok(())
    }

    /// Sees to it that nobody else may change the pins: somebody can remove the directory that is locked.
    pub(in crate::daemon) fn keep_lock(&mut self) -> Result<(), DaemonError> {
        if !self.confinement.lock.is_of(&self.confinement.pins) {
            self.confinement.lock = self.confinement.pins.lock()?;
        }
        Ok(())
    }

    /// Forgets cgroups that were let go and are no more.
    fn forget_let_go(&mut self, services: &Services) -> Result<(), DaemonError> {
        if !self.confinement.let_go.is_empty() {
            let mut there = vec![];
            for unit in self.instances.values().flat_map(InstanceState::listed) {
                there.extend(self.confinement.hierarchy.open_all(services.get(unit))?.iter().map(Cgroup::id));
            }
            self.confinement.let_go.retain(|id| there.contains(id));
        }
        Ok(())
    }

    /// Finds the units that are confined and that no instance lists any more. They keep their instance, or what is left of it,
    /// until they stop and their sockets are closed.
    pub(in crate::daemon) fn find_unlisted(&mut self) -> Result<(), DaemonError> {
        let Self { instances, loaded, numbers, denials, confinement, .. } = self;
        let listed: BTreeSet<_> = instances.values().flat_map(InstanceState::listed).cloned().collect();
        let mut unlisted: BTreeMap<InstanceName, BTreeSet<UnitName>> = BTreeMap::new();
        let mut add = |name: Option<&InstanceName>, unit: UnitName| {
            if let Some(name) = name.filter(|_| !listed.contains(&unit)) {
                unlisted.entry(name.clone()).or_default().insert(unit);
            }
        };
        for links in confinement.pins.all_links()? {
            if !confinement.outlived.contains_key(&links.cgroup) {
                let index = loaded.maps.instance_of(links.cgroup);
                add(index.and_then(|index| numbers.name_of(index)), links.unit);
            }
        }
        // Another version's links judge by its policies, which nobody takes out of force.
        for predecessor in &confinement.predecessors {
            for links in predecessor.pins().all_links()? {
                add(predecessor.name_of(links.cgroup), links.unit);
            }
        }
        for name in confinement.outlived_instances() {
            if !instances.contains_key(name) {
                unlisted.entry(name.clone()).or_default();
            }
        }
        for (name, instance) in instances.iter_mut() {
            instance.unlisted = unlisted.remove(name).unwrap_or_default();
        }
        let outlived: BTreeSet<_> = confinement.outlived_instances().collect();
        instances.retain(|name, instance| {
            instance.policy.is_some() || !instance.unlisted.is_empty() || outlived.contains(name)
        });
        for (name, units) in unlisted {
            if let Some(index) = numbers.known().get(&name) {
                let lines = denials.journal.counts(index.number());
                let counters = CountersStatus::new(loaded.maps.counters(*index)?, &lines);
                let instance =
                    InstanceState { unlisted: units, ..InstanceState::new(*index, &counters, &lines) };
                instances.insert(name, instance);
            }
        }
        Ok(())
    }

    /// Takes away the links of other ABI versions where this one's are in place: new before old, so that the
    /// unit is confined all the time. A unit that nobody lists, and whose instance cannot be read from the other version's
    /// maps, keeps the old ones until it stops.
    fn replace_other_versions(&mut self, services: &Services) -> Result<(), DaemonError> {
        let others = self.confinement.pins.of_other_versions()?;
        let own = if others.is_empty() { vec![] } else { self.confinement.pins.all_links()? };
        for version in others {
            for links in version.all_links()? {
                let new = own.iter().find(|new| new.is_for_the_same(&links));
                let all = |new: &LinkDirectory| {
                    let index = self.loaded.maps.instance_of(new.cgroup);
                    let needs = index.map_or(Needs::NONE, |index| self.needs(index));
                    self.ours(new) == self.loaded.programs.hooks(needs).count()
                };
                if new.is_some_and(all) {
                    info!("{}: the links of another version are replaced", links.unit);
                    links.remove()?;
                } else if self.is_gone(&links, services) {
                    remove_if_over(&links);
                }
            }
            version.remove_if_unused()?;
        }
        Ok(())
    }

    /// How many hooks' links of a cgroup have this daemon's programs.
    pub(in crate::daemon) fn ours(&self, links: &LinkDirectory) -> usize {
        links.count(|hook, info| self.loaded.programs.is_in(hook, info))
    }

    /// Finds the units of users' own managers that have a listed unit's name: whoever started one may think that it is confined.
    fn find_users_units(&mut self) -> Result<(), DaemonError> {
        let Self { instances, confinement, .. } = self;
        if confinement.users_looked.is_some_and(|at| at.elapsed() < USERS_PAUSE) {
            return Ok(());
        }
        confinement.users_looked = Some(Instant::now());
        let listed: Vec<_> = instances.values().flat_map(InstanceState::listed).collect();
        let found: BTreeSet<_> = confinement.hierarchy.users_services(&listed)?.into_iter().collect();
        for (user, unit) in found.difference(&confinement.users_units) {
            warn!(
                "a {unit} runs in user {user}'s own systemd (systemctl --user), and nothing confines it: only system units can be. Make it one, with User="
            );
        }
        confinement.users_units = found;
        Ok(())
    }

    fn follow(&mut self) -> Result<(), DaemonError> {
        let slices = self
            .confinement
            .hierarchy
            .slices()?
            .into_iter()
            .map(|slice| self.confinement.hierarchy.mount().join(slice));
        self.confinement.watch.slices(slices).map_err(DaemonError::Watch)?;
        self.confinement.watch.pins(self.confinement.pins.maps()).map_err(DaemonError::Watch)?;
        for links in self.confinement.pins.all_links()? {
            self.confinement.watch.pins(links.path()).map_err(DaemonError::Watch)?;
        }
        Ok(())
    }

    fn tell_failure(&mut self, name: &InstanceName, unit: UnitName, why: String) {
        if self.confinement.failing.get(&unit) != Some(&why) {
            error!(
                MESSAGE_ID = NOT_CONFINED_ID,
                OPENCODE_INSTANCE = %name,
                OBJECT_SYSTEMD_UNIT = %unit,
                "{unit} is not confined: {why}"
            );
            self.confinement.failing.insert(unit, why);
        }
    }

    /// Reports the units that were confined a while ago and still have not asked for it.
    pub fn find_late(&mut self) {
        if self.instances.values().all(|instance| instance.unasked.is_empty()) {
            return;
        }
        // What cannot be looked at is looked at again in a second.
        let (Ok(services), Ok(links)) =
            (self.confinement.hierarchy.services(), self.confinement.pins.all_links())
        else {
            return;
        };
        let Self { instances, confinement: Confinement { hierarchy, .. }, .. } = self;
        for (name, instance) in instances {
            let (due, unasked): (BTreeMap<_, _>, _) = std::mem::take(&mut instance.unasked)
                .into_iter()
                .partition(|(_, since)| since.elapsed() > TIME_TO_ASK);
            instance.unasked = unasked;
            for unit in due.into_keys() {
                let cgroups = hierarchy.open_all(services.get(&unit)).unwrap_or_default();
                let running = |links: &&LinkDirectory| {
                    cgroups.iter().any(|cgroup| cgroup.id() == links.cgroup && cgroup.is_populated())
                };
                let late: Vec<_> = links.iter().filter(|links| links.unit == unit).filter(running).collect();
                if late.is_empty() {
                    continue;
                }
                warn!(
                    MESSAGE_ID = CONFINED_LATE_ID,
                    OPENCODE_INSTANCE = %name,
                    OBJECT_SYSTEMD_UNIT = %unit,
                    "{unit} did not ask to be confined before it ran: its first ExecStartPre=+ must be `opencode-egress attach {name}`. It is confined now; restart it"
                );
                for links in late {
                    if let Err(error) = links.mark_late() {
                        warn!("`status` will not show that {unit} was late: {}", error_chain(&error));
                    }
                }
            }
        }
    }
}
