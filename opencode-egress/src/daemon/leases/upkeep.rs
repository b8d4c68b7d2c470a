//! Looking after leases: what is told of them, and when they end.

use std::collections::BTreeMap;

use tokio::sync::broadcast::Receiver;
use tracing::warn;

use super::{Leases, store::InstanceLeases};
use crate::{
    daemon::{
        error::DaemonError,
        policies::InstancePolicies,
        state::{Daemon, RECENT_EVENTS},
    },
    kernel::maps::boottime,
    policy::{
        InstanceName,
        lease::{Grantor, Lease, LeaseStatus, Leased},
    },
    report::{human::now, lease::LeaseEvent},
};

impl Daemon {
    /// The leases in force, by instance.
    ///
    /// # Errors
    ///
    /// When there is no such instance.
    pub(in crate::daemon) fn leases(
        &self,
        name: Option<&str>,
    ) -> Result<BTreeMap<String, Vec<LeaseStatus>>, DaemonError> {
        let names = match name {
            Some(name) => vec![self.known(name)?],
            None => self.instances.keys().cloned().collect(),
        };
        let status = |name: InstanceName| (name.to_string(), self.leases.status(&name));
        Ok(names.into_iter().map(status).filter(|(_, leases)| name.is_some() || !leases.is_empty()).collect())
    }

    /// An instance of which a lease is over.
    pub(in crate::daemon) fn next_over(&self) -> Option<InstanceName> {
        self.leases.next_over(boottime(), |name| self.instances.contains_key(name)).cloned()
    }

    /// Has an instance's leases that are over, and that could not be ended, tried again later: of these the kernel lets nothing new pass.
    pub(in crate::daemon) fn end_leases_later(&mut self, name: &InstanceName) {
        self.leases.wait(name);
    }

    /// Tells which leases of an earlier daemon are in force again, and which are over. What began under one that ended so, and was to be
    /// ended with it, is: it is in no policy.
    pub(in crate::daemon) fn tell_kept_leases(&mut self) {
        for (name, (lease, what, by)) in std::mem::take(&mut self.leases.untold) {
            self.tell_lease(&name, &lease, what, &by);
        }
        self.write_leases();
    }

    /// Forgets the leases of instances that the policy file does not have any more, and of those beside whose policies they have no room.
    pub(in crate::daemon) fn drop_leases(&mut self, policies: &InstancePolicies) {
        let leased = self.leases.leased();
        let has_room = |(name, leased): &(&InstanceName, &Leased)| {
            // A lease of audit mode takes none, and says nothing where the policy has that for good.
            let takes_none = leased.rules.is_empty() && leased.ended.is_empty();
            policies.get(*name).is_some_and(|policy| takes_none || !policy.leased.is_empty())
        };
        let gone: Vec<_> =
            leased.iter().filter(|entry| !has_room(entry)).map(|(name, _)| name.clone()).collect();
        for name in &gone {
            let dropped = self.leases.drop(name);
            let why = match policies.contains_key(name) {
                true => "beside its policy there is no room in the kernel's maps for them",
                false => "the policy file does not have the instance any more",
            };
            if !dropped.is_empty() {
                warn!("{name}: its leases are over: {why}");
            }
            dropped.iter().for_each(|lease| self.tell_lease(name, lease, "dropped", &lease.by));
        }
        if !gone.is_empty() {
            self.write_leases();
        }
    }

    /// Tells the log what became of a lease, and by whom, and has those told who follow events.
    pub(super) fn tell_lease(&mut self, name: &InstanceName, lease: &Lease, what: &str, by: &Grantor) {
        let event = LeaseEvent {
            time: now(),
            instance: name.to_string(),
            lease: what.to_owned(),
            who: by.clone(),
            of: LeaseStatus::of(lease, boottime(), now()),
        };
        event.log();
        let Leases { recent, followers, .. } = &mut self.leases;
        if recent.len() >= RECENT_EVENTS {
            recent.pop_front();
        }
        recent.push_back(event.clone());
        // Nobody follows: nobody is told.
        let _ = followers.send(event);
    }

    /// What became of leases lately, and where to hear of what is to come.
    pub(in crate::daemon) fn lease_events(&self) -> (Vec<LeaseEvent>, Receiver<LeaseEvent>) {
        (self.leases.recent.iter().cloned().collect(), self.leases.followers.subscribe())
    }

    pub(super) fn write_leases(&mut self) {
        let Leases { of, store, .. } = &mut self.leases;
        of.retain(|_, leases| *leases != InstanceLeases::default());
        // What `status` says of it; a grant asks for more.
        let _ = store.write(of);
    }

    /// Writes the file that could not be written before.
    pub(in crate::daemon) fn write_leases_again(&mut self) {
        if self.leases.trouble().is_some() {
            self.write_leases();
        }
    }
}
