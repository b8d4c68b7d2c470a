//! Confining a unit's cgroups: when it asks, and when it did not; and letting go of what is gone.

use std::{os::fd::OwnedFd, time::Instant};

use opencode_egress_common::reason::Hook;
use tracing::{info, warn};

use crate::{
    cgroups::{Cgroup, Services, unit_of},
    control::caller::Caller,
    daemon::{error::DaemonError, state::Daemon},
    kernel::{hooks::Needs, instance::InstanceIndex, loader::Loaded, pins::LinkDirectory},
    policy::{InstanceName, UnitName},
    report::{
        human::{error_chain, now},
        journal::{DETACHED_ID, LINKS_RESTORED_ID},
        status::FailedAttach,
    },
};

/// What is remembered of why a start failed, in characters.
const LONGEST_REASON: usize = 2000;

/// How many links a cgroup had, and how many were made for it.
#[derive(Clone, Copy)]
struct Confined {
    /// Links that were there.
    there: usize,
    /// Links that were made though there should have been some: 0 when all were there.
    made: usize,
}

impl Daemon {
    /// Confines a unit that did not ask for it, or not yet: its cgroup comes a moment before its first process.
    pub(in crate::daemon) fn confine_unasked(
        &mut self,
        name: &InstanceName,
        unit: &UnitName,
        services: &Services,
    ) -> Result<(), DaemonError> {
        let index = self.instance(name)?.index;
        let mut result = Ok(());
        for cgroup in self.confinement.hierarchy.open_all(services.get(unit))? {
            let was_confined = self.confinement.confined.contains(&cgroup.id());
            match self.confine(index, unit, &cgroup) {
                Ok(Confined { made: 0, .. }) => {}
                Ok(Confined { there, made }) => {
                    self.tell_confined(name, unit, &cgroup, (was_confined || there > 0).then_some(made));
                }
                // One that cannot be confined is no reason to leave out another.
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// Says why a cgroup was confined that did not ask for it: `restored` links were missing of one that was confined before.
    fn tell_confined(
        &mut self,
        name: &InstanceName,
        unit: &UnitName,
        cgroup: &Cgroup,
        restored: Option<usize>,
    ) {
        if self.confinement.let_go.remove(&cgroup.id()) {
            info!("{unit} is confined again");
        } else if let Some(made) = restored {
            warn!(
                MESSAGE_ID = LINKS_RESTORED_ID,
                OPENCODE_INSTANCE = %name,
                OBJECT_SYSTEMD_UNIT = %unit,
                "links of {unit} were gone, or the maps by which they judge: {made}. Somebody removed them, or a daemon ended while it made them; they are back"
            );
        } else if self.is_confined_by_another_version(unit, cgroup) {
            info!("{unit} was confined by another version and is taken over");
        } else if let Some(instance) = self.instances.get_mut(name) {
            instance.unasked.entry(unit.clone()).or_insert_with(Instant::now);
        }
        if cgroup.is_populated() {
            self.reset_denied(&[name]);
        }
    }

    fn is_confined_by_another_version(&self, unit: &UnitName, cgroup: &Cgroup) -> bool {
        self.confinement.predecessors.iter().any(|predecessor| {
            let links = predecessor.pins().all_links().unwrap_or_default();
            links.iter().any(|links| links.unit == *unit && links.cgroup == cgroup.id())
        })
    }

    /// Confines a cgroup of a unit.
    fn confine(
        &mut self,
        index: InstanceIndex,
        unit: &UnitName,
        cgroup: &Cgroup,
    ) -> Result<Confined, DaemonError> {
        let directory = self.confinement.pins.links(unit, cgroup.id())?;
        let needs = self.needs(index);
        let (mut there, mut missing) = (vec![], vec![]);
        for hook in self.loaded.programs.hooks(needs) {
            match directory.link(hook)? {
                Some(link) => there.push((hook, link)),
                None => missing.push(hook),
            }
        }
        let before = there.len();
        if before == 0 {
            self.count_sockets_anew(index)?;
        }
        let scope = self.loaded.maps.instance_of(cgroup.id());
        if scope.is_none() && before > 0 {
            self.replace_orphans(index, &directory, cgroup)?;
            return Ok(Confined { there: before, made: self.loaded.programs.hooks(needs).count() });
        }
        if !missing.is_empty() || !self.loaded.maps.is_confined_to(cgroup.id(), index) {
            let attach = |loaded: &mut Loaded, hook: Hook, cgroup: &Cgroup| {
                missing.contains(&hook).then(|| loaded.programs.attach(hook, cgroup)).transpose()
            };
            for (hook, link) in self.loaded.confine(cgroup, index, needs, attach)? {
                if let Some(link) = link {
                    directory.pin(hook, &link)?;
                }
            }
            // The next look tries again, and says so.
            let _ = self.confinement.watch.pins(directory.path());
        }
        // Last: an old program judges, a hook without a link does not.
        for (hook, link) in there {
            self.loaded.programs.renew(hook, &link, cgroup.path())?;
        }
        let needed: Vec<_> = self.loaded.programs.hooks(needs).collect();
        for hook in self.loaded.programs.hooks(Needs::ALL).filter(|hook| !needed.contains(hook)) {
            directory.unpin(hook)?;
        }
        self.confinement.confined.insert(cgroup.id());
        // Those for what the policy has had none of until now were not missing.
        let expected: Vec<_> = self.loaded.programs.hooks(self.loaded.maps.needs(index)).collect();
        let made = missing.iter().filter(|hook| before == 0 || expected.contains(hook)).count();
        Ok(Confined { there: before, made })
    }

    /// What an instance's cgroups have links for: what its policy takes, and what one does that is about to be in force.
    pub(in crate::daemon) fn needs(&self, index: InstanceIndex) -> Needs {
        let soon = self.confinement.soon.get(&index).copied().unwrap_or_default();
        soon.and(self.loaded.maps.needs(index))
    }

    /// Makes new links where those that are there judge by maps that are nobody's any more; each of them goes when a new one is
    /// pinned in its place. The cgroup's storage is written last: until then everything is denied, and when this ends in the middle it is
    /// done again, and no old link is taken for one of this daemon's.
    fn replace_orphans(
        &mut self,
        index: InstanceIndex,
        directory: &LinkDirectory,
        cgroup: &Cgroup,
    ) -> Result<(), DaemonError> {
        for hook in self.loaded.programs.hooks(self.needs(index)) {
            let link = self.loaded.programs.attach(hook, cgroup)?;
            directory.pin(hook, &link)?;
        }
        self.loaded.maps.set_instance_of(cgroup.id(), index)?;
        self.confinement.confined.insert(cgroup.id());
        Ok(())
    }

    /// Confines the unit of a process that says it belongs to `name`, and that hands over the socket diagnosis of its network
    /// namespace; and remembers for `status` when that fails.
    ///
    /// # Errors
    ///
    /// When it does not belong to it, or the kernel refuses.
    pub fn attach(
        &mut self,
        name: &str,
        caller: Caller,
        diagnosis: Option<OwnedFd>,
    ) -> Result<(UnitName, u32), DaemonError> {
        let who = caller.name();
        let result = self.try_attach(name, caller, diagnosis);
        if let Err(error) = &result {
            self.remember_failure(name, who, &error_chain(error));
        }
        result
    }

    /// Remembers for `status` that the unit of a process was not confined, and so does not start.
    pub fn remember_failure(&mut self, name: &str, unit: String, why: &str) {
        // It is shown on terminals.
        let shown = |c: char| if c.is_control() { ' ' } else { c };
        let why = why.chars().take(LONGEST_REASON).map(shown).collect();
        let instance = self.instances.iter_mut().find(|(known, _)| known.as_str() == name);
        if let Some((_, instance)) = instance {
            instance.failed_attach = Some(FailedAttach { time: now(), unit, why });
        }
    }

    fn try_attach(
        &mut self,
        name: &str,
        caller: Caller,
        diagnosis: Option<OwnedFd>,
    ) -> Result<(UnitName, u32), DaemonError> {
        let name = self.known(name)?;
        self.keep_lock()?;
        let Caller { pid, cgroup, .. } = caller;
        let path = cgroup?;
        let services = self.confinement.hierarchy.services()?;
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
        let cgroup = self.confinement.hierarchy.open(&unit_path)?;
        self.confine(index, &unit, &cgroup)?;
        let links = self.confinement.pins.links(&unit, cgroup.id())?;
        links.unmark_late()?;
        if let Some(diagnosis) = diagnosis {
            self.keep_diagnosis(index, &links, diagnosis);
        }
        if links.is_in_other_network() && self.loaded.maps.has_names(index) {
            return Err(DaemonError::OtherNetwork { unit, name });
        }
        self.confinement.let_go.remove(&cgroup.id());
        let generation = self.loaded.maps.current(index).generation();
        if let Some(instance) = self.instances.get_mut(&name) {
            instance.unasked.remove(&unit);
            instance.detached = false;
            instance.failed_attach = None;
        }
        info!("{unit} is confined, instance {name}, generation {generation}");
        Ok((unit, generation))
    }

    /// Takes the links of the units that an instance lists away. They come back when a unit starts or at a reload. A unit that
    /// is not listed any more would not get them back, and nobody would see it: that is stopped instead. Sockets of earlier
    /// starts stay confined: who has them now is not known.
    ///
    /// # Errors
    ///
    /// When the file does not have the instance, or a pin cannot be removed.
    pub fn detach(&mut self, name: &str) -> Result<Vec<UnitName>, DaemonError> {
        let name = self.known(name)?;
        let (links, services) = (self.confinement.pins.all_links()?, self.confinement.hierarchy.services()?);
        let instance = self.instance(&name)?;
        if instance.policy.is_none() {
            return Err(self.unknown(name.as_str()));
        }
        let (index, units) = (instance.index, instance.listed().cloned().collect::<Vec<_>>());
        if let Some(instance) = self.instances.get_mut(&name) {
            instance.detached = true;
            instance.unasked.clear();
        }
        let mut detached = vec![];
        for directory in links.into_iter().filter(|links| units.contains(&links.unit)) {
            if self.is_gone(&directory, &services) {
                continue;
            }
            directory.remove()?;
            self.confinement.confined.remove(&directory.cgroup);
            self.confinement.let_go.insert(directory.cgroup);
            warn!(
                MESSAGE_ID = DETACHED_ID,
                OPENCODE_INSTANCE = %name,
                OBJECT_SYSTEMD_UNIT = %directory.unit,
                "{} is no longer confined: detached on request",
                directory.unit
            );
            detached.push(directory.unit);
        }
        self.count_sockets_anew(index)?;
        Ok(detached)
    }
}
