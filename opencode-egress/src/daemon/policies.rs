//! Policies: from the file into force.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    path::Path,
    time::Instant,
};

use opencode_egress_common::decide::{Verdict, decide};
use tracing::{error, info, warn};

use super::{Daemon, DaemonError, Instance, error_chain};
use crate::{
    compile::{CompiledPolicy, compile},
    config,
    connections::{self, Connection},
    human::now,
    journal::RELOAD_REFUSED_ID,
    policy::{InstanceName, Mode, Policy, PolicySet, mode_name},
};

impl Daemon {
    /// Applies the policy file again: all of it, or, when it has an error, nothing. Returns what changed.
    ///
    /// # Errors
    ///
    /// When the file has an error; the running policy stays.
    pub fn reload(&mut self) -> Result<Vec<String>, DaemonError> {
        let config = self.config.clone();
        let result = read(&config).and_then(|(set, compiled)| self.apply(set, compiled));
        self.reload_error = result.as_ref().err().map(|error| error_chain(error));
        match &result {
            Ok(changes) => info!("applied {}: {} changes", config.display(), changes.len()),
            Err(error) => {
                error!(MESSAGE_ID = RELOAD_REFUSED_ID, "the running policy stays: {}", error_chain(error))
            }
        }
        result
    }

    pub(super) fn apply(
        &mut self,
        set: PolicySet,
        compiled: BTreeMap<InstanceName, CompiledPolicy>,
    ) -> Result<Vec<String>, DaemonError> {
        let changes = changes(&self.set, &set);
        let mut changed = vec![];
        for name in compiled.keys() {
            let index = self.registry.claim(name)?;
            if self.instances.get(name).map(|instance| &instance.policy) != set.instances.get(name) {
                changed.push((name.clone(), index));
            }
        }
        let policies: Vec<_> = changed.iter().map(|(name, index)| (*index, &compiled[name])).collect();
        self.loaded.maps.install_all(&policies)?;
        self.loaded.maps.set_limits(&set.log)?;
        for (name, compiled) in compiled {
            let index = self.registry.claim(&name)?;
            let counters = self.loaded.maps.counters(index)?.denied;
            let instance = self.instances.entry(name.clone()).or_insert_with(|| Instance {
                index,
                policy: Policy::default(),
                entries: 0,
                unasked: BTreeMap::new(),
                late: BTreeMap::new(),
                detached: false,
                recent: VecDeque::new(),
                left_out: (counters.limited, counters.lost),
                lost_at: (counters.lost > 0).then(Instant::now),
            });
            instance.policy = set.instances[&name].clone();
            instance.entries = compiled.entries.len();
            instance.detached = false;
        }
        self.set = set;
        self.applied = now();
        self.reconcile();
        // After it, so that a unit whose instance has another name now is never without a policy.
        self.retire_others();
        let changed: Vec<_> = changed.iter().map(|(name, _)| name).collect();
        if let Err(error) = self.reset_denied(&changed) {
            warn!("open connections that are denied now are refused, but not reset: {}", error_chain(&error));
        }
        Ok(changes)
    }

    /// Takes the policies of instances that the file does not have out of force.
    fn retire_others(&mut self) {
        let others = self.registry.known().iter().filter(|(name, _)| !self.set.instances.contains_key(*name));
        let others: Vec<_> = others.map(|(name, index)| (name.clone(), *index)).collect();
        for (name, index) in others {
            self.instances.remove(&name);
            if self.loaded.maps.current(index).slot() != 0
                && let Err(error) = self.loaded.maps.retire(index)
            {
                warn!("the policy of {name} is out of force, but stays in memory: {}", error_chain(&error));
            }
        }
    }

    /// Resets what instances have open and their policies deny, so that no program waits for an answer.
    pub(super) fn reset_denied(&self, names: &[&InstanceName]) -> Result<(), DaemonError> {
        let services = self.hierarchy.services()?;
        // Cgroups, and by which of the policies what they have open is judged.
        let mut judged_by: HashMap<u64, usize> = HashMap::new();
        let mut policies = vec![];
        for name in names {
            let instance = self.instance(name)?;
            let paths = instance.policy.units.iter().filter_map(|unit| services.get(unit));
            let ids: Vec<_> = paths
                .filter_map(|path| self.hierarchy.open(path).ok())
                .flat_map(|cgroup| cgroup.ids())
                .collect();
            // An instance that does not run has nothing open.
            if ids.is_empty() || instance.policy.mode == Mode::Audit {
                continue;
            }
            if let Some(policy) = self.loaded.maps.policy(instance.index)? {
                judged_by.extend(ids.into_iter().map(|id| (id, policies.len())));
                policies.push(policy);
            }
        }
        if policies.is_empty() {
            return Ok(());
        }
        let denied = |connection: &Connection| {
            judged_by.get(&connection.cgroup).is_some_and(|policy| {
                let (head, rules) = &policies[*policy];
                !head.listens_on(connection.local_port) && decide(rules, &connection.flow) != Verdict::Allow
            })
        };
        let reset = connections::reset(denied).map_err(DaemonError::Connections)?;
        if !reset.is_empty() {
            info!("reset {} open connections that are denied now", reset.len());
        }
        Ok(())
    }
}

/// A file's policies, and what each compiles to.
type Read = (PolicySet, BTreeMap<InstanceName, CompiledPolicy>);

pub(super) fn read(config: &Path) -> Result<Read, DaemonError> {
    let set = config::load(config)?;
    let mut compiled = BTreeMap::new();
    for (name, policy) in &set.instances {
        let policy = compile(policy).map_err(|source| DaemonError::Compile { name: name.clone(), source })?;
        compiled.insert(name.clone(), policy);
    }
    Ok((set, compiled))
}

/// What differs between two policy sets, a line each.
fn changes(old: &PolicySet, new: &PolicySet) -> Vec<String> {
    fn lines(set: &PolicySet) -> BTreeSet<(String, String)> {
        let mut lines = BTreeSet::new();
        for (name, policy) in &set.instances {
            let units = policy.units.iter().map(|unit| format!("unit {unit}"));
            let allow = policy.allow.iter().map(|rule| format!("allow {rule}"));
            let deny = policy.deny.iter().map(|rule| format!("deny {rule}"));
            let listen = policy.listen.iter().map(|listen| format!("listen {listen}"));
            let mode = [format!("mode {}", mode_name(policy.mode))];
            let texts = units.chain(allow).chain(deny).chain(listen).chain(mode);
            lines.extend(texts.map(|text| (name.to_string(), text)));
        }
        lines
    }
    let (old, new) = (lines(old), lines(new));
    let removed = old.difference(&new).map(|(name, text)| (name, '-', text));
    let added = new.difference(&old).map(|(name, text)| (name, '+', text));
    let mut changes: Vec<_> = removed.chain(added).collect();
    changes.sort_by_key(|(name, ..)| *name);
    changes.into_iter().map(|(name, sign, text)| format!("{sign} {name}: {text}")).collect()
}
