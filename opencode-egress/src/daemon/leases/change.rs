//! One change of an instance's leases: weighed, compiled elsewhere while the daemon answers, kept, and put in force.
//!
//! A lease is in the file before it is in force, and out of force before it is gone from there; the file says of one that is on its way out that
//! it does not come back. So whenever a daemon ends between the two, no lease is in force that the file does not have, and none that was
//! revoked returns. While the file cannot be written, none is granted; what ends does so all the same, and is written as soon as that is possible.

use std::sync::Arc;

use tracing::warn;

use super::{
    Leases, deadline,
    store::{Ending, InstanceLeases, Told, by_itself},
};
use crate::{
    daemon::{error::DaemonError, policies::ChangedPolicy, state::Daemon},
    kernel::{
        features::Features,
        maps::{boottime, since_boot},
    },
    policy::{
        AnyRule, InstanceName, Mode, Policy,
        compile::compile,
        lease::{Grantor, Lease, LeaseKind, LeaseStatus, LeaseTime, Leased, MAX_LEASES, Reason},
    },
    report::human::{error_chain, now},
};

/// What is to become of an instance's leases.
pub(in crate::daemon) enum Change {
    /// One begins.
    Grant { kind: LeaseKind, time: LeaseTime, hard: bool, reason: Option<Reason>, by: Grantor },
    /// One ends before its time.
    Revoke { kind: LeaseKind, by: Grantor },
    /// Those whose time is over end.
    End,
}

/// What became of them.
pub(in crate::daemon) struct LeaseOutcome {
    /// The lease that was granted or revoked.
    pub(in crate::daemon) lease: LeaseStatus,
    /// It took the place of another one.
    pub(in crate::daemon) replaced: bool,
    /// Of one that ended: what began under it may go on until its next packet.
    pub(in crate::daemon) until_next_packet: bool,
    /// What to know of it, a line each.
    pub(in crate::daemon) notes: Vec<String>,
}

/// A change, to be compiled.
pub(in crate::daemon) struct LeaseTask {
    name: InstanceName,
    policy: Arc<Policy>,
    leases: InstanceLeases,
    /// What is to be told of which.
    told: Vec<Told>,
    notes: Vec<String>,
}

/// A change that is ready to be put in force.
pub(in crate::daemon) struct LeaseChange {
    task: LeaseTask,
    policy: Arc<Policy>,
    changed: ChangedPolicy,
}

impl LeaseTask {
    /// Compiles the policy with the leases, and brings its rules into the kernel.
    pub(in crate::daemon) fn run(self) -> Result<LeaseChange, DaemonError> {
        let policy = Policy::clone(&self.policy).leased(Leased::of(&self.leases.active, &self.leases.ended));
        let possible = Features::of_this_kernel().check(&policy);
        possible.map_err(|source| DaemonError::Kernel { name: self.name.clone(), source })?;
        let compiled =
            compile(&policy).map_err(|source| DaemonError::Compile { name: self.name.clone(), source })?;
        Ok(LeaseChange { changed: ChangedPolicy::load(compiled)?, policy: Arc::new(policy), task: self })
    }
}

impl Daemon {
    /// Begins a change of an instance's leases: what takes long, to be run elsewhere. [`Daemon::end_lease_change`] takes the result, before
    /// the next change or reload begins.
    ///
    /// # Errors
    ///
    /// When there is nothing to change, or it may not be.
    pub(in crate::daemon) fn begin_lease_change(
        &self,
        name: &str,
        change: Change,
    ) -> Result<LeaseTask, DaemonError> {
        let name = self.known(name)?;
        let Some(policy) = self.instance(&name)?.policy.clone() else {
            return Err(self.unknown(name.as_str()));
        };
        let mut leases = self.leases.of.get(&name).cloned().unwrap_or_default();
        let (mut told, mut notes) = (vec![], vec![]);
        match change {
            Change::Grant { kind, time, hard, reason, by } => {
                notes = weigh(&name, &kind, &policy)?;
                self.check_network(&name, &kind)?;
                let before = leases.active.iter().position(|lease| lease.kind == kind);
                let before = before.map(|place| leases.active.remove(place));
                if leases.active.len() >= MAX_LEASES {
                    return Err(DaemonError::TooManyLeases { name });
                }
                leases.ended.retain(|lease| lease.kind != kind);
                let deadline = deadline(since_boot(), time);
                let lease = Lease { kind, hard, reason, by: by.clone(), from: now(), deadline };
                leases.active.push(lease.clone());
                told.push((lease, if before.is_some() { "replaced" } else { "granted" }, by));
            }
            Change::Revoke { kind, by } => {
                let take = |leases: &mut Vec<Lease>| {
                    let place = leases.iter().position(|lease| lease.kind == kind)?;
                    Some(leases.remove(place))
                };
                let lease = take(&mut leases.active).or_else(|| take(&mut leases.ended));
                let lease =
                    lease.ok_or_else(|| DaemonError::NoLease { name: name.clone(), kind: kind.clone() })?;
                leases.ending.push(Ending { lease: lease.clone(), revoked_by: Some(by.clone()) });
                told.push((lease, "revoked", by));
            }
            Change::End => {
                for lease in leases.end(boottime()) {
                    if lease.hard {
                        leases.ending.push(Ending { lease: lease.clone(), revoked_by: None });
                    }
                    told.push(by_itself(lease, "ended"));
                }
                // Somebody else ended them, or granted them anew, since they were found to be over.
                if told.is_empty() {
                    return Err(DaemonError::NothingOver { name });
                }
            }
        }
        Ok(LeaseTask { name, policy, leases, told, notes })
    }

    /// Refuses a lease of a name where no resolver answers.
    fn check_network(&self, name: &InstanceName, kind: &LeaseKind) -> Result<(), DaemonError> {
        let LeaseKind::Rule(rule) = kind else { return Ok(()) };
        if matches!(rule.rule(), AnyRule::Network(_)) {
            return Ok(());
        }
        let units: Vec<_> = self.instance(name)?.units().collect();
        let links = self.confinement.pins.all_links()?;
        match links.into_iter().find(|links| units.contains(&&links.unit) && links.is_in_other_network()) {
            Some(links) => Err(DaemonError::OtherNetwork { unit: links.unit, name: name.clone() }),
            None => Ok(()),
        }
    }

    /// Keeps a change of leases and puts it in force: all of it, or nothing.
    ///
    /// # Errors
    ///
    /// When a grant cannot be kept, or the kernel refuses; then everything is as it was.
    pub(in crate::daemon) fn end_lease_change(
        &mut self,
        change: Result<LeaseChange, DaemonError>,
    ) -> Result<LeaseOutcome, DaemonError> {
        let result = change.and_then(|change| self.put_lease_in_force(change));
        if let Err(error) = &result {
            warn!("leases stay as they are: {}", error_chain(error));
        }
        result
    }

    fn put_lease_in_force(&mut self, change: LeaseChange) -> Result<LeaseOutcome, DaemonError> {
        let LeaseChange { task: LeaseTask { name, leases, told, mut notes, .. }, policy, changed } = change;
        let before = self.leases.of.insert(name.clone(), leases.clone());
        let undo = |daemon: &mut Self| {
            match before.clone() {
                Some(before) => daemon.leases.of.insert(name.clone(), before),
                None => daemon.leases.of.remove(&name),
            };
        };
        let grants = told.iter().any(|(_, what, _)| ["granted", "replaced"].contains(what));
        let Leases { of, store, .. } = &mut self.leases;
        if let Err(source) = store.write(of)
            && grants
        {
            let path = store.path().to_owned();
            undo(self);
            return Err(DaemonError::KeepLeases { path, source });
        }
        let may_allow = policy.may_allow_by_name_or_lease();
        if let Err(error) = self.apply_leased(&name, policy, changed) {
            undo(self);
            self.write_leases();
            return Err(error);
        }
        let over: Vec<_> =
            self.leases.of.get_mut(&name).map(|leases| leases.ending.drain(..).collect()).unwrap_or_default();
        self.write_leases();
        notes.extend(self.leases.trouble());
        for (lease, what, by) in &told {
            self.tell_lease(&name, lease, what, by);
        }
        if !over.is_empty() {
            self.retire_predecessors(|other| *other == name);
        }
        // Of audit mode what was denied meanwhile is open, and refused from now on.
        let audit = told.iter().any(|(lease, what, _)| lease.kind == LeaseKind::Audit && *what == "ended");
        if audit || !over.is_empty() {
            notes.extend(self.reset_denied(&[&name]));
        }
        let Some((lease, what, _)) = told.into_iter().next() else {
            return Err(DaemonError::NothingOver { name });
        };
        let lease = LeaseStatus::of(&lease, boottime(), now());
        let until_next_packet = may_allow && lease.lease.kind != LeaseKind::Audit;
        Ok(LeaseOutcome { lease, replaced: what == "replaced", until_next_packet, notes })
    }
}

/// What to know of a lease beside a policy, a line each.
fn weigh(name: &InstanceName, kind: &LeaseKind, policy: &Policy) -> Result<Vec<String>, DaemonError> {
    let LeaseKind::Rule(rule) = kind else {
        return if policy.mode_of_file() == Mode::Audit {
            Err(DaemonError::AuditAlready { name: name.clone() })
        } else {
            Ok(vec![])
        };
    };
    if policy.has(rule.rule()) {
        return Err(DaemonError::HasRule { name: name.clone(), rule: rule.clone() });
    }
    if rule.is_denied_by(&policy.deny) {
        let by = rule.denied_in_part(&policy.deny).map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Err(DaemonError::LeaseDenied { name: name.clone(), rule: rule.clone(), by });
    }
    let part =
        rule.denied_in_part(&policy.deny).map(|deny| format!("the policy denies {deny}, and still does"));
    Ok(part.take(10).collect())
}
