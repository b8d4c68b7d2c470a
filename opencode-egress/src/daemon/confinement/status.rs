//! Gathering what `status` shows.

use std::{collections::BTreeMap, path::PathBuf};

use opencode_egress_common::reason::DropReason;

use crate::{
    cgroups::{Cgroup, Services, limits::OpenFiles, unit_of},
    control::caller::Caller,
    daemon::{
        error::DaemonError,
        state::{Daemon, InstanceState},
    },
    kernel::{instance::InstanceIndex, pins::LinkDirectory},
    policy::{DEFAULT_MAX_SOCKETS, UnitName, mode_name},
    report::status::{CountersStatus, InstanceStatus, NEWS, NamesStatus, SocketsStatus, Status, UnitStatus},
};

impl Daemon {
    /// Everything that `status` shows.
    ///
    /// # Errors
    ///
    /// When a counter or the pins cannot be read.
    pub fn status(&mut self) -> Result<Status, DaemonError> {
        let (links, services) = (self.confinement.pins.all_links()?, self.confinement.hierarchy.services()?);
        self.look_at_limits(&services);
        let mut instances = BTreeMap::new();
        for (name, instance) in &self.instances {
            let units = instance.units().map(|unit| {
                let unlisted = instance.unlisted.contains(unit);
                self.unit_status(unit, (instance.index, unlisted), &links, services.get(unit))
            });
            let InstanceState { index, policy, entries, detached, recent, lost_at, failed_attach, .. } =
                instance;
            let rules = policy.as_ref().map(|policy| {
                [policy.allow.len() + policy.names.len(), policy.deny.len(), policy.listen.len()]
            });
            let counters = self.counters(*index)?;
            let expired = counters.denied_for(DropReason::NameExpired);
            let names = self.names.of.get(index).map(|names| NamesStatus {
                expired_lately: instance.names_expired.is_news(expired),
                ..names.status()
            });
            let status = InstanceStatus {
                mode: mode_name(instance.mode()).to_owned(),
                mode_of_file: policy
                    .as_ref()
                    .map(|policy| mode_name(policy.mode_of_file()).to_owned())
                    .unwrap_or_default(),
                generation: self.loaded.maps.current(*index).generation(),
                rules: rules.unwrap_or_default(),
                entries: *entries,
                units: units.collect(),
                removed: policy.is_none(),
                detached: *detached,
                lost_lately: lost_at.is_some_and(|at| at.elapsed() < NEWS),
                sockets: self.sockets_status(instance, &counters)?,
                limits: instance.limits.status(self.fullest(instance, &services)),
                outlived: self.all_outlived(name)?.len(),
                outlived_denials: self.outlived_denials(name),
                failed_attach: failed_attach.clone(),
                counters,
                names,
                steady: self.steady(instance),
                leases: self.leases.status(name),
                last_denial: recent.back().cloned(),
            };
            instances.insert(name.to_string(), status);
        }
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config: self.policies.config.display().to_string(),
            reload_error: self.policies.reload_error.clone(),
            applied: self.policies.applied,
            not_reset: self.connections.not_reset.clone(),
            troubles: self.troubles(),
            instances,
        })
    }

    /// What the daemon itself cannot do as it should.
    fn troubles(&self) -> Vec<String> {
        let watch = self.confinement.watch_trouble.as_ref();
        let watch =
            watch.map(|why| format!("what comes and goes is found within seconds, not at once: {why}"));
        let callers = self.loaded.callers.as_ref().err();
        let callers = callers.map(|why| {
            format!("who asked is looked for in /proc, where a process that ended at once is not found, nor the files of other users' (exe=-): {why}")
        });
        watch
            .into_iter()
            .chain(callers)
            .chain(self.denials.trouble())
            .chain(self.names.troubles())
            .chain(self.leases.trouble())
            .collect()
    }

    fn sockets_status(
        &self,
        instance: &InstanceState,
        counters: &CountersStatus,
    ) -> Result<SocketsStatus, DaemonError> {
        Ok(SocketsStatus {
            open: self.loaded.maps.open_sockets(instance.index)?,
            limit: instance.policy.as_ref().map_or(DEFAULT_MAX_SOCKETS, |policy| policy.max_sockets),
            denied_lately: instance.sockets_denied.is_news(counters.denied_for(DropReason::TooManySockets)),
        })
    }

    /// Looks which limits were reached. What a unit reached after the last look and before it ended is in no count of ours.
    pub(in crate::daemon) fn look_at_limits(&mut self, services: &Services) {
        for instance in self.instances.values_mut() {
            let cgroups: Vec<Cgroup> = instance
                .units()
                .flat_map(|unit| self.confinement.hierarchy.open_all(services.get(unit)).unwrap_or_default())
                .collect();
            instance.limits.see(cgroups.iter().map(|cgroup| (cgroup.id(), cgroup.reached())));
        }
    }

    /// The process of an instance's units that may open the fewest more files.
    fn fullest(&self, instance: &InstanceState, services: &Services) -> Option<OpenFiles> {
        let units = instance.units();
        let cgroups = units
            .flat_map(|unit| self.confinement.hierarchy.open_all(services.get(unit)).unwrap_or_default());
        cgroups.filter_map(|cgroup| cgroup.fullest()).min_by_key(OpenFiles::left)
    }

    fn unit_status(
        &self,
        unit: &UnitName,
        (index, unlisted): (InstanceIndex, bool),
        links: &[LinkDirectory],
        paths: Option<&Vec<PathBuf>>,
    ) -> UnitStatus {
        let cgroups = self.confinement.hierarchy.open_all(paths).unwrap_or_default();
        let (populated, empty): (Vec<_>, Vec<_>) = cgroups.into_iter().partition(Cgroup::is_populated);
        let running = !populated.is_empty();
        let of =
            |cgroup: &Cgroup| links.iter().find(|links| links.unit == *unit && links.cgroup == cgroup.id());
        let users = self.confinement.users_units.iter().filter(|(_, known)| known == unit);
        let judged = if running { populated } else { empty };
        let confined = judged.iter().map(|cgroup| of(cgroup).map_or(0, |links| self.ours(links)));
        UnitStatus {
            unit: unit.to_string(),
            running,
            unlisted,
            links: confined.min().unwrap_or(0),
            hooks: self.loaded.programs.hooks(self.needs(index)).count(),
            late: judged.iter().filter_map(of).any(LinkDirectory::is_late),
            users: users.map(|(user, _)| *user).collect(),
        }
    }

    /// Whether a caller is in a confined unit. Such a one may ask for its own confinement and nothing else.
    pub fn is_confined(&self, caller: &Caller) -> bool {
        let (Ok(path), Ok(links)) = (&caller.cgroup, self.confinement.pins.all_links()) else {
            return true;
        };
        unit_of(path).is_some_and(|(unit, _)| {
            self.instances.values().any(|instance| instance.units().any(|known| *known == unit))
                || links.iter().any(|links| links.unit == unit)
        })
    }
}
