//! Reading the policy file and putting its policies in force.

mod changes;
mod explain;
mod read;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    path::PathBuf,
    sync::Arc,
};

use tracing::{error, info, warn};

pub(in crate::daemon) use self::{
    changes::InstancePolicies,
    read::{ChangedPolicy, Prepared, ReloadTask, read_or_last},
};
use crate::{
    daemon::{
        error::DaemonError,
        state::{Daemon, InstanceState},
    },
    kernel::{hooks::Needs, instance::InstanceIndex},
    policy::{InstanceName, LogLimits, Policy, Resolver, compile::CompiledName},
    report::{
        human::{error_chain, now},
        journal::RELOAD_REFUSED_ID,
    },
};

/// What putting a policy file in force did.
#[derive(Clone)]
pub(in crate::daemon) struct Applied {
    /// What changed, a line each.
    pub changes: Vec<String>,
    /// What is open and denied now, and was not reset, a line each.
    pub not_reset: Vec<String>,
}

/// What policies that came into force changed, still to be taken note of.
#[derive(Default)]
struct Changes {
    /// The name rules of each policy.
    with_names: Vec<(InstanceIndex, Vec<CompiledName>, Arc<Policy>)>,
    /// Instances that have another mode now.
    other_mode: Vec<InstanceIndex>,
    /// Instances that had no policy.
    new: Vec<(InstanceName, InstanceState)>,
    /// Map entries of each policy.
    entries: HashMap<InstanceName, usize>,
    /// Instances whose policy is another one.
    judged: Vec<InstanceName>,
}

impl Daemon {
    /// Begins to apply the policy file again: what takes long, to be run elsewhere. [`Daemon::end_reload`] takes the result,
    /// before the next one begins.
    pub(in crate::daemon) fn begin_reload(&self) -> ReloadTask {
        ReloadTask {
            config: self.policies.config.clone(),
            last_applied: self.policies.last_applied.clone(),
            log: self.policies.log,
            resolver: self.names.settings.clone(),
            in_force: self.in_force(),
            leased: self.leases.leased(),
        }
    }

    /// The policies in force.
    fn in_force(&self) -> InstancePolicies {
        let instances = self.instances.iter();
        instances.filter_map(|(name, instance)| Some((name.clone(), instance.policy.clone()?))).collect()
    }

    /// Puts what was prepared in force: all of it, or, when the file has an error, nothing. Returns what changed.
    ///
    /// # Errors
    ///
    /// When the file has an error; the running policy stays.
    pub(in crate::daemon) fn end_reload(
        &mut self,
        prepared: Result<(Prepared, Vec<String>), DaemonError>,
    ) -> Result<Applied, DaemonError> {
        let result = prepared.and_then(|(prepared, changes)| {
            self.keep_lock()?;
            self.remember_children();
            Ok(Applied { changes, not_reset: self.apply(prepared)? })
        });
        self.policies.reload_error = result.as_ref().err().map(|error| error_chain(error));
        match &result {
            Ok(Applied { changes, .. }) => {
                info!("applied {}: {} changes", self.policies.config.display(), changes.len());
            }
            Err(error) => {
                error!(MESSAGE_ID = RELOAD_REFUSED_ID, "the running policy stays: {}", error_chain(error))
            }
        }
        result
    }

    /// Puts one instance's policy in force, under other leases than before.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; the running policy stays.
    pub(in crate::daemon) fn apply_leased(
        &mut self,
        name: &InstanceName,
        policy: Arc<Policy>,
        changed: ChangedPolicy,
    ) -> Result<(), DaemonError> {
        self.keep_lock()?;
        self.remember_children();
        let had_names: BTreeSet<_> = self.names.of.keys().copied().collect();
        let (log, mark) = (self.policies.log, self.names.settings.mark);
        let policies = BTreeMap::from([(name.clone(), policy)]);
        let in_force = self.put_in_force([(name.clone(), changed)].into(), &policies, &log, mark);
        self.confinement.soon.clear();
        let changes = in_force.inspect_err(|_| self.names.forget_but(&had_names))?;
        self.take_note(changes, &policies, self.names.settings.clone());
        self.names.forget_unlisted();
        Ok(())
    }

    /// Puts what was prepared in force. Returns what is open and denied now, and was not reset, a line each.
    pub(in crate::daemon) fn apply(&mut self, prepared: Prepared) -> Result<Vec<String>, DaemonError> {
        let Prepared { log, resolver, policies, changed, copy } = prepared;
        let first = self.policies.applied == 0;
        self.claim_numbers(&policies)?;
        let had_names: BTreeSet<_> = self.names.of.keys().copied().collect();
        let in_force = self.put_in_force(changed, &policies, &log, resolver.mark);
        self.confinement.soon.clear();
        let changes = match in_force {
            Ok(changes) => changes,
            Err(error) => {
                let _ = self.loaded.maps.set_limits(&self.policies.log);
                // A daemon that starts ends with this, and the next one takes the sockets.
                if !first {
                    self.names.forget_but(&had_names);
                }
                // Those that were new with this file; the next look tries again.
                let _ = self.free_numbers();
                return Err(error);
            }
        };
        // They are in force. Nothing from here on makes that untrue.
        let mut judged = self.take_note(changes, &policies, resolver);
        for name in policies.keys() {
            if let Some(instance) = self.instances.get_mut(name) {
                instance.detached = false;
            }
        }
        self.policies.log = log;
        self.policies.applied = now();
        self.keep(copy);
        self.reconcile();
        // After it, so that a unit whose instance has another name now is never without a policy.
        if !first {
            self.retire_predecessors(|name| !policies.contains_key(name) || judged.contains(name));
        }
        judged.extend(self.retire_others(&policies));
        self.drop_leases(&policies);
        self.names.forget_brought_but(|name| policies.keys().any(|listed| listed.as_str() == name));
        if !first {
            self.names.forget_unlisted();
        }
        Ok(self.reset_denied(&judged.iter().collect::<Vec<_>>()))
    }

    /// Takes note of policies that came into force, and returns their instances.
    fn take_note(
        &mut self,
        changes: Changes,
        policies: &InstancePolicies,
        resolver: Resolver,
    ) -> Vec<InstanceName> {
        let Changes { with_names, other_mode, new, entries, judged } = changes;
        self.names_in_force(resolver, with_names);
        for index in other_mode {
            if let Err(error) = self.loaded.maps.report_repeats_at_once(index) {
                warn!(
                    "repeats of what was denied before are told at the end of their interval: {}",
                    error_chain(&error)
                );
            }
        }
        self.instances.extend(new);
        for (name, instance) in &mut self.instances {
            if let Some(policy) = policies.get(name) {
                instance.policy = Some(policy.clone());
                if let Some(entries) = entries.get(name) {
                    instance.entries = *entries;
                }
            }
        }
        judged
    }

    /// Puts policies in force: all of these, or none. What else was done for them until then is the caller's to undo.
    fn put_in_force(
        &mut self,
        changed: BTreeMap<InstanceName, ChangedPolicy>,
        policies: &InstancePolicies,
        log: &LogLimits,
        mark: u32,
    ) -> Result<Changes, DaemonError> {
        let mut put_in_force = vec![];
        let mut changes = Changes::default();
        for (name, ChangedPolicy { mut loaded, entries: count, names }) in changed {
            let Some(index) = self.numbers.known().get(&name).copied() else { continue };
            if !names.is_empty() {
                let (port, learned) = self.names.prepare(index, &name, &names)?;
                loaded.with_names(port, mark, learned);
            } else if !policies[&name].leased.is_empty() {
                loaded.with_names(0, mark, vec![]);
            }
            if loaded.needs() != Needs::NONE {
                self.confinement.soon.insert(index, loaded.needs());
            }
            changes.with_names.push((index, names, Arc::clone(&policies[&name])));
            match self.instances.get(&name) {
                Some(instance) if instance.mode() != policies[&name].mode => changes.other_mode.push(index),
                Some(_) => {}
                None => {
                    let lines = self.denials.journal.counts(index.number());
                    let instance = InstanceState::new(index, &self.counters(index)?, &lines);
                    changes.new.push((name.clone(), instance));
                }
            }
            put_in_force.push((index, loaded));
            changes.entries.insert(name.clone(), count);
            changes.judged.push(name);
        }
        // Before the policies: a question that is not sent to the resolver is denied.
        let confined = self.confine_for_names();
        self.loaded.maps.set_limits(log)?;
        // What was folded until now was judged in another mode.
        changes.other_mode.iter().for_each(|index| self.end_folds(*index));
        confined?;
        self.loaded.maps.put_in_force(put_in_force)?;
        Ok(changes)
    }

    /// Takes note of what is in force of names now, and has the resolver told.
    fn names_in_force(
        &mut self,
        resolver: Resolver,
        with_names: Vec<(InstanceIndex, Vec<CompiledName>, Arc<Policy>)>,
    ) {
        let other = self.names.settings.upstream != resolver.upstream;
        self.names.settings = resolver;
        if other {
            self.names.tell_upstream();
        }
        for (index, names, policy) in with_names {
            match names.is_empty() {
                true => self.names.gone(index),
                false => self.names.in_force(index, names, &policy),
            }
        }
    }

    /// Makes the links that name rules take, for the units of instances that are about to have some.
    fn confine_for_names(&mut self) -> Result<(), DaemonError> {
        let soon = self.confinement.soon.iter();
        let new = soon.filter(|(index, needs)| {
            let before = self.loaded.maps.needs(**index);
            before.and(**needs) != before
        });
        let new: Vec<_> = new.map(|(index, _)| *index).collect();
        if new.is_empty() {
            return Ok(());
        }
        let services = self.confinement.hierarchy.services()?;
        let units: Vec<_> = self
            .instances
            .iter()
            .filter(|(_, instance)| new.contains(&instance.index) && !instance.detached)
            .flat_map(|(name, instance)| instance.units().map(|unit| (name.clone(), unit.clone())))
            .collect();
        units.iter().try_for_each(|(name, unit)| self.confine_unasked(name, unit, &services))
    }

    /// Keeps a copy of what was applied, for a start with a file that has an error.
    fn keep(&self, copy: io::Result<PathBuf>) {
        if let Err(error) = copy.and_then(|copy| fs::rename(copy, &self.policies.last_applied)) {
            let path = self.policies.last_applied.display();
            warn!(
                "cannot keep a copy of the policy file at {path}, so a daemon that starts with a bad file ends: {error}"
            );
        }
    }

    /// Takes the policies of instances that the file does not have out of force, and returns those whose units run.
    fn retire_others(&mut self, policies: &InstancePolicies) -> Vec<InstanceName> {
        let others = self.numbers.known().iter().filter(|(name, index)| {
            !policies.contains_key(*name) && self.loaded.maps.current(**index).slot() != 0
        });
        let others: Vec<_> = others.map(|(_, index)| *index).collect();
        if let Err(error) = self.loaded.maps.retire(&others) {
            warn!("policies are out of force, but stay in memory: {}", error_chain(&error));
        }
        let removed = self.instances.iter_mut().filter(|(name, _)| !policies.contains_key(*name));
        removed.for_each(|(_, instance)| {
            instance.policy = None;
            instance.entries = 0;
        });
        let gone: Vec<_> =
            self.names.of.iter().filter(|(_, names)| !policies.contains_key(&names.name)).collect();
        let gone: Vec<_> = gone.into_iter().map(|(index, _)| *index).collect();
        gone.into_iter().for_each(|index| self.names.gone(index));
        if let Err(error) = self.find_unlisted() {
            warn!("cannot find units that no instance lists any more: {}", error_chain(&error));
        }
        let without = self.instances.iter().filter(|(_, instance)| instance.policy.is_none());
        without.map(|(name, _)| name.clone()).collect()
    }
}
