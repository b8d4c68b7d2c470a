//! Policies: from the file into force.

mod explain;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use opencode_egress_common::decide::{Verdict, decide};
use tracing::{error, info, warn};

use crate::{
    daemon::{
        error::DaemonError,
        last_applied::is_own,
        state::{Daemon, InstanceState},
    },
    kernel::connections::{self, Connection},
    policy::{
        InstanceName, LogLimits, Mode, PolicySet,
        compile::{CompiledPolicy, compile},
        file, mode_name,
    },
    report::{
        human::{error_chain, now},
        journal::RELOAD_REFUSED_ID,
    },
};

/// A policy file: its text, the policies in it, and what each compiles to.
pub(in crate::daemon) struct Read {
    text: String,
    pub(in crate::daemon) set: PolicySet,
    pub(in crate::daemon) compiled: BTreeMap<InstanceName, CompiledPolicy>,
}

pub(in crate::daemon) fn read(config: &Path) -> Result<Read, DaemonError> {
    let text = file::read(config)?;
    let set = file::parse(config, &text)?;
    let mut compiled = BTreeMap::new();
    for (name, policy) in &set.instances {
        let policy = compile(policy).map_err(|source| DaemonError::Compile { name: name.clone(), source })?;
        compiled.insert(name.clone(), policy);
    }
    Ok(Read { text, set, compiled })
}

/// The policy file; or, when that has an error, what was last applied, and the error.
pub(in crate::daemon) fn read_or_last(
    config: &Path,
    last_applied: &Path,
) -> Result<(Read, Option<String>), DaemonError> {
    let error = match read(config) {
        Ok(read) => return Ok((read, None)),
        Err(error) => error,
    };
    if !is_own(last_applied) {
        return Err(error);
    }
    // The error to tell is the file's.
    let Ok(last) = read(last_applied) else { return Err(error) };
    Ok((last, Some(error_chain(&error))))
}

impl Daemon {
    /// Applies the policy file again: all of it, or, when it has an error, nothing. Returns what changed.
    ///
    /// # Errors
    ///
    /// When the file has an error; the running policy stays.
    pub fn reload(&mut self) -> Result<Vec<String>, DaemonError> {
        let config = self.policies.config.clone();
        let result = self.keep_lock().and_then(|()| read(&config)).and_then(|read| self.apply(read));
        self.policies.reload_error = result.as_ref().err().map(|error| error_chain(error));
        match &result {
            Ok(changes) => info!("applied {}: {} changes", config.display(), changes.len()),
            Err(error) => {
                error!(MESSAGE_ID = RELOAD_REFUSED_ID, "the running policy stays: {}", error_chain(error))
            }
        }
        result
    }

    pub(in crate::daemon) fn apply(&mut self, read: Read) -> Result<Vec<String>, DaemonError> {
        let Read { text, set, compiled } = read;
        let (changes, first) = (changes(&self.policies.set, &set), self.policies.applied == 0);
        let (mut changed, mut other_mode, mut new) = (vec![], vec![], vec![]);
        self.claim_numbers(&set)?;
        for (name, policy) in &set.instances {
            let Some(index) = self.numbers.known().get(name).copied() else { continue };
            match self.instances.get(name) {
                Some(instance) if instance.policy.as_ref() == Some(policy) => continue,
                Some(instance) if instance.mode() != policy.mode => other_mode.push(index),
                Some(_) => {}
                None => {
                    let denied = self.loaded.maps.counters(index)?.denied;
                    new.push((name.clone(), InstanceState::new(index, &denied)));
                }
            }
            changed.push((name.clone(), index));
        }
        self.loaded.maps.set_limits(&set.log)?;
        // What was folded until now was judged in another mode.
        other_mode.iter().for_each(|index| self.end_folds(*index));
        let policies: Vec<_> = changed.iter().map(|(name, index)| (*index, &compiled[name])).collect();
        if let Err(error) = self.loaded.maps.install_all(&policies) {
            let _ = self.loaded.maps.set_limits(&self.policies.set.log);
            // Those that were new with this file; the next look tries again.
            let _ = self.free_numbers();
            return Err(error.into());
        }
        // They are in force. Nothing from here on makes that untrue.
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
            if let Some(policy) = set.instances.get(name) {
                instance.policy = Some(policy.clone());
                instance.entries = compiled[name].entries.len();
                instance.detached = false;
            }
        }
        self.policies.set = set;
        self.policies.applied = now();
        self.keep(&text);
        self.reconcile();
        // After it, so that a unit whose instance has another name now is never without a policy.
        let retired = self.retire_others();
        if !first {
            let kept = |name: &InstanceName| self.policies.set.instances.contains_key(name);
            self.retire_predecessors(|name| {
                !kept(name) || changed.iter().any(|(changed, _)| changed == name)
            });
        }
        let judged: Vec<_> = changed.iter().map(|(name, _)| name).chain(&retired).collect();
        if let Err(error) = self.reset_denied(&judged) {
            warn!("open connections that are denied now are refused, but not reset: {}", error_chain(&error));
        }
        Ok(changes)
    }

    /// Keeps what was applied, for a start with a file that has an error.
    fn keep(&self, text: &str) {
        let keep = || -> io::Result<()> {
            let new = self.policies.last_applied.with_extension("new");
            fs::create_dir_all(new.parent().unwrap_or(&new))?;
            // Left by a daemon that ended while it wrote; or by somebody who wants it written elsewhere.
            let _ = fs::remove_file(&new);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(text.as_bytes())?;
            fs::rename(&new, &self.policies.last_applied)
        };
        if let Err(error) = keep() {
            let path = self.policies.last_applied.display();
            warn!(
                "cannot keep a copy of the policy file at {path}, so a daemon that starts with a bad file ends: {error}"
            );
        }
    }

    /// Takes the policies of instances that the file does not have out of force, and returns those whose units run.
    fn retire_others(&mut self) -> Vec<InstanceName> {
        let others = self.numbers.known().iter().filter(|(name, index)| {
            !self.policies.set.instances.contains_key(*name) && self.loaded.maps.current(**index).slot() != 0
        });
        let others: Vec<_> = others.map(|(_, index)| *index).collect();
        if let Err(error) = self.loaded.maps.retire(&others) {
            warn!("policies are out of force, but stay in memory: {}", error_chain(&error));
        }
        let removed =
            self.instances.iter_mut().filter(|(name, _)| !self.policies.set.instances.contains_key(*name));
        removed.for_each(|(_, instance)| {
            instance.policy = None;
            instance.entries = 0;
        });
        if let Err(error) = self.find_unlisted() {
            warn!("cannot find units that no instance lists any more: {}", error_chain(&error));
        }
        let without = self.instances.iter().filter(|(_, instance)| instance.policy.is_none());
        without.map(|(name, _)| name.clone()).collect()
    }

    /// Resets what instances have open and their policies deny, so that no program waits for an answer.
    pub(in crate::daemon) fn reset_denied(&self, names: &[&InstanceName]) -> Result<(), DaemonError> {
        let services = self.confinement.hierarchy.services()?;
        // Cgroups, and by which of the policies what they have open is judged. Without one, all is denied.
        let mut judged_by: HashMap<u64, usize> = HashMap::new();
        let mut policies = vec![];
        for name in names {
            let instance = self.instance(name)?;
            let mut ids = vec![];
            for unit in instance.units() {
                let cgroups = self.confinement.hierarchy.open_all(services.get(unit))?;
                ids.extend(cgroups.iter().flat_map(|cgroup| cgroup.ids()));
            }
            ids.extend(self.all_outlived(name)?);
            // An instance that does not run and of which no socket is left has nothing open.
            if ids.is_empty() || instance.mode() == Mode::Audit {
                continue;
            }
            judged_by.extend(ids.into_iter().map(|id| (id, policies.len())));
            policies.push(self.loaded.maps.policy(instance.index)?);
            judged_by.extend(self.retired_cgroups(name)?.into_iter().map(|id| (id, policies.len())));
            policies.push(None);
        }
        if policies.is_empty() {
            return Ok(());
        }
        let denied = |connection: &Connection| {
            judged_by.get(&connection.cgroup).is_some_and(|policy| match &policies[*policy] {
                Some((header, rules)) => {
                    !header.listens_on(connection.local_port)
                        && decide(rules, &connection.flow) != Verdict::Allow
                }
                None => true,
            })
        };
        let reset = connections::reset(denied).map_err(DaemonError::Connections)?;
        if !reset.is_empty() {
            info!("reset {} open connections that are denied now", reset.len());
        }
        Ok(())
    }
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
    let limits = (old.log != new.log).then(|| [('-', limits(&old.log)), ('+', limits(&new.log))]);
    let limits = limits.into_iter().flatten().map(|(sign, limits)| format!("{sign} log: {limits}"));
    let (old, new) = (lines(old), lines(new));
    let removed = old.difference(&new).map(|(name, text)| (name, '-', text));
    let added = new.difference(&old).map(|(name, text)| (name, '+', text));
    let mut changes: Vec<_> = removed.chain(added).collect();
    changes.sort_by_key(|(name, ..)| *name);
    let changes = changes.into_iter().map(|(name, sign, text)| format!("{sign} {name}: {text}"));
    limits.chain(changes).collect()
}

/// Limits of the log as the policy file has them.
fn limits(log: &LogLimits) -> String {
    let LogLimits { interval, burst, per_sec } = log;
    format!("interval_secs {}, burst {burst}, per_sec {per_sec}", interval.as_secs())
}
